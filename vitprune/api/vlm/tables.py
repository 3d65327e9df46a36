"""What is written of a vision-language model's types and exam: a table of units, a picture by layer, lines for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitprune.core.reading import Json
from vitprune.model.sites.ffn import FfnSite
from vitprune.see.types.rules import RULES, TYPES
from vitprune.see.types.typing import Types

COLUMNS = (
    "block", "unit", "type", "p_visual", "p_text", "p_multimodal", "p_unknown", "difference", "p", "rate_visual", "rate_text",
    "type_test", "type_counts", "type_rates", "type_half_1", "type_half_2", "fires", "max_at_sink",
)  # fmt: skip
COLOURS = ("#2b6cb0", "#c05621", "#6b46c1", "#a0aec0")


def units(types: Types, sites: Sequence[FfnSite], rule: str) -> str:
    """One line per language unit, as CSV, blocks and units from 0."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for site in sites:
        verdict, name = types.verdicts[site.name], site.name
        evidence = verdict.evidence
        labels = {r: types.labels[r][name].tolist() for r in RULES}
        halves = [half[rule][name].tolist() for half in types.halves]
        numbers = [
            verdict.shares.T.tolist(),
            *(_list(x) for x in (evidence.difference, evidence.p, evidence.visual, evidence.text)),
        ]
        for j in range(site.size):
            shares, *others = (column[j] for column in numbers)
            writer.writerow([
                site.block, j, TYPES[labels[rule][j]], *(f"{x:.4g}" for x in (*shares, *others)),
                *(TYPES[labels[r][j]] for r in RULES), *(TYPES[half[j]] for half in halves),
                int(verdict.fires[j]), int(verdict.at_sink[j]),
            ])  # fmt: skip
    return out.getvalue()


def _list(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found


def summary(types: Types, sites: Sequence[FfnSite], rule: str, vision: Sequence[FfnSite], dead: Sequence[int]) -> Json:
    """What see.json says of the types: shares by layer and in all under each rule, stability, what sits at sinks."""
    total = sum(site.size for site in sites)
    return {
        "rule": rule,
        "samples": types.samples,
        "units": total,
        "rules": {
            r: {
                "stability": round(types.stability(r), 4),
                "shares": {
                    word: round(sum(int((types.labels[r][s.name] == k).sum()) for s in sites) / total, 4)
                    for k, word in enumerate(TYPES)
                },
                "by_layer": {s.name: [round(x, 4) for x in types.shares(r)[s.name]] for s in sites},
            }
            for r in RULES
        },
        "max_at_sink": round(float(torch.cat([types.verdicts[s.name].at_sink for s in sites]).double().mean()), 4),
        "vision_units": {"count": sum(s.size for s in vision), "type": "visual by what they see, so not counted"},
        "dead_vision_blocks": list(dead),
    }


def picture(found: Json) -> str:
    """Shares of types by layer, one strip of stacked bars per rule, as SVG."""
    width, high, gap = 24, 110, 52
    layers = len(next(iter(found["rules"].values()))["by_layer"])
    total = max(70 + layers * width, 520)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {30 + len(RULES) * (high + gap)}" '
        'font-family="sans-serif" font-size="11">',
        *_legend(),
    ]
    for row, rule in enumerate(RULES):
        top = 44 + row * (high + gap)
        kept = found["rules"][rule]
        lines.append(f'<text x="4" y="{top - 6}">{rule}: halves agree on {kept["stability"]:.0%} of units</text>')
        for layer, shares in enumerate(kept["by_layer"].values()):
            lines += _bar(40 + layer * width, top, high, width - 3, layer, shares)
    return "\n".join([*lines, "</svg>", ""])


def _legend() -> Iterator[str]:
    for k, word in enumerate(TYPES):
        yield f'<rect x="{40 + 110 * k}" y="6" width="10" height="10" fill="{COLOURS[k]}"/>'
        yield f'<text x="{54 + 110 * k}" y="15">{word}</text>'


def _bar(x: int, top: int, high: int, width: int, layer: int, shares: Sequence[float]) -> Iterator[str]:
    at = float(top)
    for k, share in enumerate(shares):
        title = f"<title>layer {layer}: {TYPES[k]} {share:.1%}</title>"
        yield f'<rect x="{x}" y="{at:.1f}" width="{width}" height="{share * high:.1f}" fill="{COLOURS[k]}">{title}</rect>'
        at += share * high
    yield f'<text x="{x + width / 2}" y="{top + high + 13}" text-anchor="middle">{layer}</text>'


def lines_of_types(found: Json) -> Iterator[str]:
    """The types for a terminal."""
    yield f"Types of {found['units']:,} language units by {found['samples']} pairs"
    for rule in RULES:
        kept = found["rules"][rule]
        shares = "  ".join(f"{word} {share:6.1%}" for word, share in kept["shares"].items())
        yield f"  {rule:<7}{'*' if rule == found['rule'] else ' '} {shares}   halves {kept['stability']:.1%}"
    yield f"  {found['max_at_sink']:.1%} of units are greatest at a first token, which no rule looks at"
    yield f"  {found['vision_units']['count']:,} vision units are {found['vision_units']['type']}"
    for block in found["dead_vision_blocks"]:
        yield f"  vision block {block} is dead: no logit depends on it; drop_dead: true takes it out"


def lines_of_units(found: Json) -> Iterator[str]:
    """The shown units for a terminal, and how well they are told."""
    yield f"Units explained by {found['by']}, from {found['pairs']['explain']} pairs"
    for row in found["units"]:
        yield f"  {row['unit']:<10}{row['type']:<12}{row['chosen']:<11}{row['name'] or 'no name'}"
    for by, parts in found["simulator"].items():
        for kind, told in parts.items():
            if told["n"]:
                score, control = (f"{x:.2f}" if x is not None else "none" for x in (told["median"], told["control"]))
                yield f"  told by {by} on {kind}s: r {score}, other units' explanations {control} ({told['n']} units)"


def lines_of_exam(rows: Sequence[Json]) -> Iterator[str]:
    """The exam for a terminal."""
    yield f"{'nats per text token':<28}{'right':>8}{'shuffled':>10}{'none':>8}{'alone':>8}{'reliance':>10}{'parameters':>16}"
    for row in rows:
        n = row["nll"]
        yield (
            f"{row['model']:<28}{n['right']:>8.3f}{n['shuffled']:>10.3f}{n['none']:>8.3f}{n['alone']:>8.3f}"
            f"{n['reliance']:>10.3f}{row['parameters']:>16,}"
        )
