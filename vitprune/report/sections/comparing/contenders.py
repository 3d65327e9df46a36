"""How does it compare? Honest rows in one table, oracle-routed rows in another, each with its plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Heading, Row, Section, Text, figure, missing, table
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.rows import Line, lines, of_protocol, setting, without_protocol
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence
from vitprune.report.sections.comparing.contender_plots import captioned, facets_of, honest_plot, kept_text, oracle_plot
from vitprune.report.sections.comparing.over_splits import splits_blocks

ORACLE = "oracle-routed: the mask is chosen by the image's true label, so this is not a deployable accuracy"
HONEST_CAPTION = "Honest rows: mask chosen on the probe split, measured on the test split"
HONEST_FIGURE = "Top-1 of the honest rows with 95 % intervals (± one standard deviation where seeds were merged)"
SIGNIFICANCE = (
    "{first}: exact McNemar test on the same test images (of several seeds the largest), not corrected for the number of "
    "rows. A large p means that these images cannot tell the two apart."
)
OF_DENSE = "Change and p are against the dense model, p exported against the exported one"
OF_EXPORTED = "Change is against the dense model, p exported against the exported one"
CHANCE = "no better than always answering with the most frequent class"
MAX_FACETS = 6


def comparison_section(record: Json, beside: Beside) -> Section:
    """Both tables, both plots, the comparison over several splits where there is one, and rows that fit neither."""
    blocks = [*_honest(record), *splits_blocks(record, beside), *_oracle(record), *_unknown(record)]
    return Section("comparison", "How does it compare?", tuple(blocks))


def _honest(record: Json) -> list[Block]:
    rows = of_protocol(record, "honest")
    if not rows:
        return [missing("any honest measurement")]
    exported = [setting(row) for row in (mapping(record.get("result")), *mapping(record.get("results")).values())]
    ordered = sorted(lines(rows), key=lambda line: _order(line, exported))
    lost = [line for line in ordered if _chance(line, record, exported)]
    shown = [line for line in ordered if line not in lost]
    blocks: list[Block] = [_table(_counted(HONEST_CAPTION, ordered), shown, exported, among=ordered)]
    if lost:
        rest = _table("Honest rows at chance level", lost, exported, among=ordered)
        blocks.append(Fold(f"{numbers.plural(len(lost), 'more row')}, {CHANCE}", (rest,)))
    if any(line.draws > 1 for line in ordered):
        blocks.append(Text("A value with ± is the mean and standard deviation over seeds; report.json has every draw."))
    if any(line.p is not None or line.dense_p is not None for line in ordered):
        told = OF_DENSE if any(line.dense_p is not None for line in ordered) else OF_EXPORTED
        blocks.append(Text(SIGNIFICANCE.format(first=told), "note"))
    if not any(line.dense for line in ordered):
        blocks.append(missing("the dense model's accuracy, so the plot has no dense line"))
    facets = facets_of(rows)
    for index, (name, members) in enumerate(facets[:MAX_FACETS]):
        blocks += figure(honest_plot(f"honest-{index}", name, members), captioned(HONEST_FIGURE, name))
    return blocks + _omitted(facets)


def _oracle(record: Json) -> list[Block]:
    rows = of_protocol(record, "oracle")
    if not rows:
        return []
    ordered = sorted(lines(rows), key=lambda line: (not line.dense, line.text("criterion"), _t(line)))
    blocks: list[Block] = [Heading("Oracle-routed")]
    blocks.append(_table(ORACLE[0].upper() + ORACLE[1:], ordered, [], tone="warning"))
    facets = facets_of(rows)
    for index, (name, members) in enumerate(facets[:MAX_FACETS]):
        svg = oracle_plot(f"oracle-{index}", name, members, of_protocol(record, "honest"))
        blocks += figure(svg, captioned("Oracle-routed top-1 against t, the units kept per path and block", name))
    return blocks + _omitted(facets)


def _unknown(record: Json) -> list[Block]:
    rows = without_protocol(record)
    if not rows:
        return []
    text = "These rows say neither “honest” nor “oracle”, so they are compared with nothing."
    return [Heading("Protocol not recorded"), Text(text, "warning"), _table("Rows without a protocol", lines(rows), [])]


def _table(
    caption: str, found: Sequence[Line], exported: Sequence[str], tone: Any = "", among: Sequence[Line] = ()
) -> Block:
    """The lines under the columns that `among`, or they themselves, give reason for."""
    every = among or found
    optional = [key for key in ("group", "head", "budget", "allocation", "t") if _varies(every, key)]
    columns = ["Criterion", "Recovery", *(">t" if key == "t" else key.capitalize() for key in optional)]
    of_dense, tested = (any(getattr(line, key) is not None for line in every) for key in ("dense_p", "p"))
    columns += [">Top-1", ">95 % interval", ">Change, points", *([">p"] * of_dense), *([">p exported"] * tested)]
    counted = len({line.values["n"] for line in every}) > 1
    columns += [">Kept", ">True-class probability", ">Parameters", ">MACs"]
    columns += [">Images"] * counted
    shown = (of_dense, tested, counted)
    return table(caption, columns, (_row(line, optional, exported, shown) for line in found), tone)


def _counted(caption: str, found: Sequence[Line]) -> str:
    """The caption, with the number of images where it is the same of every line."""
    images = {line.values["n"] for line in found}
    return caption if len(images) > 1 or None in images else f"{caption}, {numbers.count(images.pop())} images"


def _row(line: Line, optional: Sequence[str], exported: Sequence[str], shown: tuple[bool, bool, bool]) -> Row:
    value, (of_dense, tested, counted) = line.values, shown
    cells = [Cell(line.text("criterion") or "unnamed"), Cell("—" if line.dense else line.text("recovery") or "—")]
    cells += [Cell(line.text(key) or "—", number(line.row.get(key)) if key == "t" else None) for key in optional]
    cells += [_top1(line), _interval(line)]
    cells.append(Cell("—" if line.dense else numbers.points(value["top1_change_points"]), value["top1_change_points"]))
    cells += [Cell(numbers.probability(line.dense_p), line.dense_p)] * of_dense
    cells += [Cell(numbers.probability(line.p), line.p)] * tested
    cells.append(Cell(kept_text(line), value["kept"]))
    probability = value["mean_true_probability"]
    cells.append(Cell("—" if probability is None else f"{probability:.3f}", probability))
    cells += [Cell(numbers.compact(value[key]), value[key]) for key in ("params", "macs")]
    cells += [Cell(numbers.count(value["n"]), value["n"])] * counted
    return Row(tuple(cells), "exported" if _mine(line, exported) else "")


def _mine(line: Line, exported: Sequence[str]) -> bool:
    return not line.dense and line.row.get("protocol") == "honest" and setting(line.row) in exported


def _chance(line: Line, record: Json, exported: Sequence[str]) -> bool:
    """Whether a pruned model's interval reaches down to the share of the most frequent class among its test images."""
    if line.dense or line.low is None or _mine(line, exported):
        return False
    per_class = mappings(mapping(record.get("split")).get("per_class"))
    sizes = {clean(row.get("class")): number(row.get("test")) or 0.0 for row in per_class}
    classes = [clean(name) for name in sequence(line.row.get("classes"))]
    known = [sizes[name] for name in classes if name in sizes]
    if not known or len(known) < len(classes) or sum(known) <= 0:
        return bool(classes) and line.low <= 1 / len(classes)
    return line.low <= max(known) / sum(known)


def _top1(line: Line) -> Cell:
    text = numbers.share(line.values["top1"], 2)
    if line.sd is not None:
        text = f"{text.removesuffix(chr(0x202F) + '%')} ± {numbers.share(line.sd, 2)}"
    return Cell(text, line.values["top1"])


def _interval(line: Line) -> Cell:
    if line.sd is not None:
        return Cell(f"{line.draws} seeds", line.low)
    pair = (line.low, line.high) if line.low is not None and line.high is not None else None
    return Cell(numbers.span(pair), line.low)


def _order(line: Line, exported: Sequence[str]) -> tuple[Any, ...]:
    """Groups and heads together, the exported one first, then dense, then by budget, then the best first."""
    top1 = line.values["top1"]
    return (
        line.text("group"),
        line.text("head"),
        not _mine(line, exported),
        not line.dense,
        -(line.values["macs"] or 0.0) if line.text("budget") else 0.0,
        -(line.values["kept"] or 0.0),
        -top1 if top1 is not None else 1.0,
    )


def _t(line: Line) -> float:
    return number(line.row.get("t")) or 0.0


def _varies(found: Sequence[Line], key: str) -> bool:
    """Whether a setting tells rows apart (the dense model has no budget, no allocation and no t)."""
    values = {line.text(key) for line in found if not (line.dense and key in ("budget", "allocation", "t"))}
    return len(values) > 1 or (key == "t" and values not in (set(), {""}))


def _omitted(facets: Sequence[object]) -> list[Block]:
    return (
        [Text(f"Plots of the first {MAX_FACETS} of {len(facets)} groups only.", "note")]
        if len(facets) > MAX_FACETS
        else []
    )
