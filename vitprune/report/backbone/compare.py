"""How does a backbone compare? Every row's features beside the dense model's, paired with the exported model's."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Row, Section, Text, missing, table
from vitprune.report.reading.rows import of_protocol, setting
from vitprune.report.reading.values import clean, interval, mapping, number

COLUMNS = (
    "Criterion", "Repair", ">Seed", ">Kept", ">MACs", ">Cosine", ">Centred", ">FVU", ">Patches' cosine", ">Patches' FVU",
    ">Neighbours",
)  # fmt: skip
USES = (("knn_top1", ">kNN"), ("probe_top1", ">Probe"))
PAIRED = (("cosine", ">Cosine less the exported"), ("tokens_cosine", ">Patches' cosine less the exported"))
NOTE = (
    "FVU: the share of the features' variance that is not explained. Plain cosine flatters where features share a large mean: "
    "centred is about the dense mean. Neighbours: of the ten nearest test images those that stay. The last columns are means "
    "over the same test images with their 95 % intervals: below nothing, the exported model is ahead."
)


def comparison_section(record: Json) -> Section:
    """One table of all rows: repaired ones first, the best of them first."""
    rows = of_protocol(record, "honest")
    if not rows:
        return Section("comparison", "How does it compare?", (missing("any measurement"),))
    exported = setting(mapping(record.get("result")))
    used = [(key, title) for key, title in USES if any(number(row.get(key)) is not None for row in rows)]
    columns = (*COLUMNS, *(title for _, title in used), *(title for _, title in PAIRED))
    made = [_row(row, [key for key, _ in used], exported) for row in sorted(rows, key=_order)]
    blocks: list[Block] = [table("Features of the slim models beside the dense model's, test split", columns, made)]
    return Section("comparison", "How does it compare?", (*blocks, Text(NOTE, "note")))


def _order(row: Json) -> tuple[bool, bool, float]:
    dense = row.get("criterion") == "dense"
    return not dense, row.get("recovery") == "none", -(number(row.get("cosine")) or 0.0)


def _row(row: Json, used: list[str], exported: str) -> Row:
    seed = number(row.get("seed"))
    cells = [Cell(clean(row.get("criterion"))), Cell(clean(row.get("recovery"))), Cell(clean(row.get("seed")), seed)]
    cells += [_share(row, key, 1) for key in ("kept", "macs_ratio")]
    for key, digits in (("cosine", 4), ("centred_cosine", 4), ("fvu", 3), ("tokens_cosine", 4), ("tokens_fvu", 3)):
        value = number(row.get(key))
        cells.append(Cell(numbers.fixed(value, digits), value))
    cells.append(_share(row, "neighbours", 0))
    cells += [_share(row, key, 1) for key in used]
    cells += [_paired(mapping(row.get("paired")), key) for key, _ in PAIRED]
    return Row(tuple(cells), "exported" if setting(row) == exported and not row.get("paired") else "")


def _share(row: Json, key: str, digits: int) -> Cell:
    value = number(row.get(key))
    return Cell(numbers.share(value, digits), value)


def _paired(found: Json, key: str) -> Cell:
    mean, ends = number(found.get(key)), interval(found.get(f"{key}_ci95"))
    if mean is None or ends is None:
        return Cell(numbers.NONE)
    low, high = (numbers.fixed(end, 4) for end in ends)
    return Cell(f"{numbers.fixed(mean, 4)} ({low} to {high})", mean)
