"""What do its units answer to? Shares of types under each rule, by layer under the rule that counts, dead blocks by name."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Row, Section, Text, figure, missing, table
from vitprune.report.reading.values import clean, mapping, number, sequence
from vitprune.report.sections.vlm import plots

WORDS = ("visual", "text", "multimodal", "unknown")
RULES = ("test", "counts", "rates")
DOUBT = (
    'The rules need not agree, so a share says little without its rule, and "text" may mean where the answer stands: with '
    "short, nearly constant texts position and modality are one."
)


def types_section(record: Json) -> Section:
    """Tables, plot and what was found dead."""
    found, title = mapping(record.get("types")), "What do its units answer to?"
    rules = mapping(found.get("rules"))
    if not rules:
        return Section("types", title, (missing("types of units (`types`)"),))
    chosen = clean(found.get("rule"))
    blocks: list[Block] = [*_dead(record, found), _by_rule(found, rules, chosen), Text(DOUBT, "note")]
    layers = _layers(mapping(rules.get(chosen)))
    shares = [own for _, own in layers]
    caption = f"Types by language block, by the rule {chosen}"
    blocks += figure(plots.layers("types", WORDS, shares, "Types by block"), caption)
    blocks.append(Fold("Types by block as a table", (_by_layer(record, layers, caption),)))
    return Section("types", title, tuple(blocks))


def _dead(record: Json, found: Json) -> list[Text]:
    blocks = [clean(block) for block in sequence(found.get("dead_vision_blocks"))]
    if not blocks:
        return []
    gone = "drop_dead: true" in clean(record.get("recipe_yaml"), lines=True)
    which = f"Vision block{'s' if len(blocks) > 1 else ''} {', '.join(blocks)}"
    what = "was taken out" if gone else "is computed for nothing; drop_dead: true takes it out, and no logit changes"
    return [Text(f"{which}: no logit depends on what is computed there, so it {what}.", "good" if gone else "warning")]


def _by_rule(found: Json, rules: Json, chosen: str) -> Block:
    rows = []
    for rule in RULES:
        own = mapping(rules.get(rule))
        shares = [number(mapping(own.get("shares")).get(word)) for word in WORDS]
        agree = number(own.get("stability"))
        cells = [Cell(numbers.share(value), value) for value in (*shares, agree)]
        rows.append(Row((Cell(rule), *cells), "counts" if rule == chosen else ""))
    units, samples = number(found.get("units")), number(found.get("samples"))
    told = f"Types of {numbers.count(units)} language units by {numbers.count(samples)} pairs, and how far halves agree"
    return table(told, ("Rule", *(f">{w[0].upper()}{w[1:]}" for w in WORDS), ">Halves agree"), rows)


def _layers(rule: Json) -> list[tuple[str, list[float]]]:
    """Of every block its name and four shares; one that has not four numbers is left out."""
    made = []
    for name, values in mapping(rule.get("by_layer")).items():
        shares = [number(value) for value in sequence(values)]
        known = [value for value in shares if value is not None]
        if len(known) == len(shares) == len(WORDS):
            made.append((clean(name), known))
    return made


def _by_layer(record: Json, layers: list[tuple[str, list[float]]], caption: str) -> Block:
    exam = sequence(record.get("exam"))
    row = mapping(exam[1]) if len(exam) > 1 else {}
    kept, whole = mapping(row.get("kept")), mapping(row.get("of"))
    columns = ["Block", *(f">{w[0].upper()}{w[1:]}" for w in WORDS), *([">Kept"] if kept else [])]
    rows = []
    for block, (name, shares) in enumerate(layers):
        cells = [Cell(str(block), block), *(Cell(numbers.share(value), value) for value in shares)]
        if kept:
            left, all_ = number(kept.get(name)), number(whole.get(name))
            of = f" of {numbers.count(all_)}" if all_ is not None else ""
            cells.append(Cell(f"{numbers.count(left)}{of}" if left is not None else "all", left))
        rows.append(Row(tuple(cells)))
    return table(caption, columns, rows)
