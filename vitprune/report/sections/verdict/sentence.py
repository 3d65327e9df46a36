"""The verdict: what was lost, whether random units with the same repair did as well, and whether these images can tell."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.core.reading import Json
from vitprune.exam import paired as losses
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Text
from vitprune.report.reading.rows import Line, dense_for, lines, of_protocol
from vitprune.report.reading.values import mapping, number, sequence

SIGNIFICANT = 0.05
_ALIKE = ("keep", "budget", "allocation", "recovery", "protocol", "group", "classes", "head", "t")
_ALIKE_IN_ALL = tuple(key for key in _ALIKE if key != "allocation")
_NO_RANDOM = "random units with the same repair were not examined, so what the choice of units is worth is not known"


def verdict(record: Json, result: Json) -> list[Block]:
    """One sentence of at most three parts, and what it rests on; nothing where the loss is not in the record."""
    if result.get("protocol") != "honest" or number(result.get("top1_change_points")) is None:
        return []
    dense = mapping(dense_for(of_protocol(record, "honest"), result | {"protocol": "honest"}))
    parts = [part for part in (_loss(dense, result), _random(record, result), _power(dense, result)) if part[0]]
    text = "; ".join(said for said, _ in parts)
    details = ". ".join(f"{detail[0].upper()}{detail[1:]}" for _, detail in parts if detail)
    return [Text(f"{text[0].upper()}{text[1:]}.", "lead"), *([Text(f"{details}.", "note")] if details else [])]


def differing(dense: Json, result: Json) -> tuple[int, int, int] | None:
    """Images that only the dense model gets right, that only the slim one does, and all; None where they are not counted."""
    only, n = [number(x) for x in sequence(dense.get("only_right"))], number(result.get("n"))
    if len(only) != 2 or only[0] is None or only[1] is None or n is None:
        return None
    lost, gained, images = int(only[0]), int(only[1]), int(n)
    return (lost, gained, images) if lost >= 0 and gained >= 0 and 0 < images <= 1 << 40 >= lost + gained else None


def _loss(dense: Json, result: Json) -> tuple[str, str]:
    change, before, after = (
        number(x) for x in (result.get("top1_change_points"), dense.get("top1"), result.get("top1"))
    )
    if change is None:
        return "", ""
    size = numbers.points(abs(change)).removeprefix("+")
    what = f"{size} points of top-1 {'lost' if change < 0 else 'gained'}" if float(size) else "no top-1 lost"
    told = f"top-1 {numbers.share(before, 2)} → {numbers.share(after, 2)}" if before is not None else ""
    if told and (pair := bounds(dense, result)) is not None:
        low, high = map(numbers.points, pair)
        told += f", paired 95{numbers.THIN}% interval of the change {low} to {high} points"
    return what, told


def bounds(dense: Json, result: Json) -> tuple[float, float] | None:
    """The 95 % interval of the change of top-1 in points, by the images that only one of the models gets right."""
    counts = differing(dense, result)
    if counts is None or sum(counts[:2]) > counts[2]:
        return None
    low, high = losses.interval(*counts)
    return -100 * high, -100 * low


def _random(record: Json, result: Json) -> tuple[str, str]:
    if result.get("criterion") == "random":
        return "the units were chosen at random", ""
    line, where = random_line(record, result), ""
    if line is None:  # units of the same number, shared out over the blocks in another way
        line, where = random_line(record, result, _ALIKE_IN_ALL), ", in other widths per block,"
    top1, mine = number(line and line.values["top1"]), number(result.get("top1"))
    if line is None or top1 is None or mine is None:
        return _NO_RANDOM, ""
    drawn = f"the mean of {line.draws} draws" if line.draws > 1 else "one draw"
    told = f"random units{where.removesuffix(',')}: {numbers.share(top1, 2)}, {drawn}"
    told += "" if line.p is None else f", p {numbers.probability(line.p)} against the exported model"
    if top1 >= mine or (line.p is not None and line.p >= SIGNIFICANT):
        return f"random units with the same repair{where} did as well", told
    behind = numbers.points(100 * (mine - top1)).removeprefix("+")
    return f"random units with the same repair{where} lost {behind} points more", told


def random_line(record: Json, result: Json, alike: Sequence[str] = _ALIKE) -> Line | None:
    """The honest random rows that are `alike` the exported setting in these keys, merged over their draws."""
    rows = [row for row in of_protocol(record, "honest") if row.get("criterion") == "random"]
    same = [row for row in rows if all(row.get(key) == result.get(key) for key in alike)]
    return next(iter(lines(same)), None)


def _power(dense: Json, result: Json) -> tuple[str, str]:
    counts, p = differing(dense, result), number(dense.get("mcnemar_p"))
    if counts is None or sum(counts[:2]) > counts[2]:
        return "", ""
    least = numbers.points(100 * losses.detectable(counts[0] + counts[1], counts[2])).removeprefix("+")
    images = numbers.plural(counts[2], "test image")
    show = (
        f"{images}, of which the models differ on {numbers.count(sum(counts[:2]))}, show a loss of {least} points or "
    )
    show += "more in four cases of five"
    if p is None:
        return f"these images show a loss from {least} points on", show
    told = "tell the two models apart" if p < SIGNIFICANT else "cannot tell the two models apart"
    return f"these images {told}", f"McNemar's exact test: p {numbers.probability(p)}; {show}"
