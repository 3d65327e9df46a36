"""What was removed? What went with the removed units, matched strips of removed and kept ones, drift, stand-ins."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import (
    Block,
    Cell,
    Fold,
    Gallery,
    Heading,
    Picture,
    Row,
    Section,
    Text,
    missing,
    table,
)
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence
from vitprune.report.sections.removed.directions import direction_blocks
from vitprune.report.sections.removed.labelled import concept_blocks
from vitprune.report.sections.removed.pictures import name_lines, naming_blocks, picture_blocks
from vitprune.report.sections.removed.room import Room
from vitprune.report.sections.removed.stream import readout_blocks

MOST = 24  # units of a strip
LISTED = 20  # rows that stand open
NAMED = 12  # classes that are named
NULL = (
    "Block", ">Found", ">Random", ">z", "Carries classes", ">Writes = fires, class token", ">patches", ">by chance",
)  # fmt: skip


def removed_sections(record: Json, beside: Beside) -> tuple[Section, ...]:
    """The section, where the run looked at its units."""
    see = mapping(record.get("see"))
    if not see:
        return ()
    kept, room = mapping(see.get("kept")), Room(beside)
    blocks: list[Block] = []
    for place, group in enumerate(kept):
        if len(kept) > 1:
            blocks.append(Heading(f"Class set {clean(group)}"))
        blocks += _of_set(see, str(group), room if place == 0 else Beside(None), place == 0)
    if not blocks:
        blocks = [missing("which units were removed")]
    return (Section("removed", "What was removed?", (*blocks, *_rest(see, room))),)


def _rest(see: Json, beside: Room) -> list[Block]:
    """What is not of one class set."""
    seen = [*concept_blocks(mapping(see.get("concepts"))), *picture_blocks(see, beside)]
    seen += [*naming_blocks(see), *_null(see), *direction_blocks(see, beside, _picture, NULL, _block_row)]
    return [*seen, *readout_blocks(mapping(see.get("readout"))), *_end(see, beside)]


def _of_set(see: Json, group: str, beside: Beside, pictures: bool) -> list[Block]:
    evidence = mapping(mapping(mapping(see.get("alignment")).get("evidence")).get(group))
    drift = mapping(mapping(see.get("drift")).get(group))
    blocks: list[Block] = [Text(_sentence(see, group, evidence))]
    if pictures:
        blocks += [*_strips(mapping(mapping(see.get("shown")).get(group)), see, beside), *_tops(see, beside)]
    return blocks + _classes(evidence) + _drift(drift) + _twins(drift)


def _sentence(see: Json, group: str, evidence: Json) -> str:
    """What went, in one sentence of figures."""
    widths = [number(width) or 0 for width in sequence(see.get("widths"))]
    left = [number(width) or 0 for width in sequence(mapping(see.get("kept")).get(group))]
    gone, every = sum(widths) - sum(left), sum(widths)
    text = f"{numbers.count(gone)} of {numbers.count(every)} hidden units were removed"
    share, between = number(evidence.get("share")), mapping(evidence.get("between"))
    if share is not None:
        where = ", ".join(clean(block) for block in sequence(evidence.get("blocks")))
        read = "class token" if evidence.get("read") == "class" else "patches"
        count = len(mappings(evidence.get("classes")))
        text += (
            f"; they carried {numbers.share(share)} of the direct class evidence (block{'s' if ',' in where else ''} {where}, "
            f"{read}, mean of {numbers.plural(count, 'class', 'classes')})"
        )
    elif evidence:
        text += "; no block carries class evidence that could be told from chance, so no share of it is given"
    return text + _selective(mapping(mapping(see.get("exemplars")).get("selectivity")).get(group), between) + "."


def _selective(auroc: object, between: Json) -> str:
    """Whether the removed units told classes apart less than the kept ones: median AUROCs, or where the run has none shares of
    variance; nothing where neither is known."""
    found = mapping(auroc)
    removed, kept = number(found.get("removed")), number(found.get("kept"))
    if removed is not None and kept is not None:
        return (
            f"; they fired {_word(removed, kept)} selectively: median AUROC for the class that a unit fires for "
            f"{numbers.fixed(removed, 3)} against {numbers.fixed(kept, 3)} of the kept ones (chance: 0.5)"
        )
    removed, kept = number(between.get("removed")), number(between.get("kept"))
    if removed is None or kept is None:
        return ""
    return (
        f"; they told classes apart {_word(removed, kept)}: median share of a unit's variance between classes "
        f"{numbers.share(removed)} against {numbers.share(kept)} of the kept ones "
        f"(labels at random: {numbers.share(number(between.get('chance')))})"
    )


def _word(removed: float, kept: float) -> str:
    if round(removed, 2) == round(kept, 2):
        return "equally"  # no more apart than two digits tell
    return "less" if removed < kept else "more"


def _strips(shown: Json, see: Json, beside: Beside) -> list[Block]:
    """Removed units, then as many kept ones of the same blocks."""
    blocks: list[Block] = []
    how = "of the recipe's list" if see.get("drawn") is False else "by a seeded draw, nobody picked them"
    beside_them = (
        "Kept units" if see.get("drawn") is False or see.get("match") == "none" else "Kept units of the same blocks"
    )
    for side, words in (("removed", "Removed units"), ("kept", beside_them)):
        cards = mappings(shown.get(side))[:MOST]
        if cards:
            pictures = tuple(_picture(card, beside) for card in cards)
            told = f"{words}: {len(cards)} {how}; "
            told += "the images that move a unit most, after the gap one drawn at random"
            blocks.append(Gallery(told, pictures, wide=True, heads=("Unit", "Strongest image")))
    return [Heading("Units side by side"), *blocks] if blocks else []


def _tops(see: Json, beside: Beside) -> list[Block]:
    """The units that speak most for the classes, wherever they ended."""
    pictures: list[Picture] = []
    for row in mappings(see.get("tops")):
        for card in mappings(row.get("units")):
            found = _picture(card, beside)
            states = [str(value) for key, value in card.items() if key == "kept" or key.startswith("kept_")]
            state = (
                "kept" if set(states) == {"yes"} else "removed" if set(states) == {"no"} else "kept by some class sets"
            )
            title = f"{clean(row.get('class'))}: {found.title}, {state}"
            pictures.append(Picture(found.source, title, found.name, found.lines))
    if not pictures:
        return []
    told = "They are picked by what they write alone. To speak for a class at the head is not to fire for it."
    gallery = Gallery(
        "Top units of the classes", tuple(pictures[:MOST]), wide=True, heads=("Class and unit", "Strongest image")
    )
    return [Heading("The units that speak most for each class"), Text(told), gallery]


def _picture(card: Json, beside: Beside) -> Picture:
    lines = [("writes", _writes(card))] if "norm" in card else []
    read = next((read for read in ("class", "patches") if f"fires_{read}_1" in card), None)
    if read:
        lines.append(("fires for", _three(card, f"fires_{read}")))
    lines += name_lines(card)
    if card.get("concept"):
        iou, chance = (numbers.fixed(number(card.get(key)), 3) for key in ("concept_iou", "concept_iou_chance"))
        lines.append(("shows", f"{clean(card['concept'])}, IoU {iou} ({chance} by chance)"))
    for key, value in card.items():
        if key.startswith("drift_corr") and number(value) is not None:
            lines.append(("after the repair", f"correlation {numbers.fixed(number(value), 2)}"))
        if key.startswith("twin_corr") and number(value) is not None:
            twin = clean(card.get(key.replace("twin_corr", "twin")))
            lines.append(("stand-in", f"{twin}, correlation {numbers.fixed(number(value), 2)}"))
    name = clean(card.get("strongest_image")) if card.get("fires") != "no" else "never fires on these images"
    return Picture(beside.picture(card.get("strip")), clean(card.get("unit")), name, tuple(lines))


def _writes(card: Json) -> str:
    if card.get("dead") == "yes":
        return "nothing, it is dead"
    return _three(card, "writes") or "not said: no class evidence in this block"


def _three(card: Json, start: str) -> str:
    return ", ".join(clean(card[f"{start}_{rank}"]) for rank in (1, 2, 3) if card.get(f"{start}_{rank}"))


def _classes(evidence: Json) -> list[Block]:
    rows = mappings(evidence.get("classes"))
    if not rows:
        return []
    caption = "Direct evidence that went with the removed units, per class, beside what the class lost in the exam"
    made = table(caption, ("Class", ">Evidence removed", ">Points lost", ">Test images"), map(_class_row, rows))
    return [
        Heading("Does the removed evidence tell where it hurts?"),
        Text(_rank(evidence)),
        Fold(caption, (made,)) if len(rows) > LISTED else made,
    ]


def _class_row(row: Json) -> Row:
    share, lost, n = (number(row.get(key)) for key in ("share", "lost_points", "n"))
    shown = numbers.NONE if lost is None else numbers.fixed(lost, 2)
    return Row(
        (Cell(clean(row.get("class"))), Cell(numbers.share(share), share), Cell(shown, lost), Cell(numbers.count(n), n))
    )


def _rank(evidence: Json) -> str:
    rho, p, n = (number(evidence.get(key)) for key in ("rho", "p", "classes_compared"))
    if rho is None or p is None:
        return "Too few classes with a measured loss, or all the same: no rank correlation."
    verdict = "the classes that lost more evidence lost more accuracy" if rho > 0 else "not in the direction of damage"
    if p >= 0.05:
        verdict = "no more than classes in a random order would show"
    told = f"Spearman's ρ of evidence removed and points lost: {numbers.fixed(rho, 2)} over {numbers.count(n)} classes"
    return f"{told} (permutation p = {numbers.probability(p)}): {verdict}."


def _drift(drift: Json) -> list[Block]:
    if not drift:
        return []
    cos, corr = mapping(drift.get("cos")), mapping(drift.get("corr"))
    middle = {key: numbers.fixed(number(one.get("median")), 3) for key, one in (("cos", cos), ("corr", corr))}
    changed = {key: numbers.count(number(one.get("changed"))) for key, one in (("cos", cos), ("corr", corr))}
    below = numbers.general(number(drift.get("below")))
    text = (
        f"Of {numbers.count(number(drift.get('kept')))} kept units, activations before pruning and after the repair have a "
        f"median correlation of {middle['corr']} (least {numbers.fixed(number(corr.get('least')), 3)}; "
        f"{changed['corr']} below {below}), and what they write a median cosine of "
        f"{middle['cos']} ({changed['cos']} below {below})."
    )
    blocks: list[Block] = [Heading("Drift through the repair"), Text(text)]
    other = mapping(drift.get("other_class"))
    units, n = mappings(other.get("units")), number(other.get("n"))
    if n:
        other_now = numbers.count(len(units))
        told = f"{other_now} of {numbers.count(n)} kept units that write a class write another now."
        blocks.append(Text(told))
    if units:
        rows = [Row(tuple(Cell(clean(unit.get(key))) for key in ("unit", "before", "after"))) for unit in units]
        caption = "Kept units whose most aligned class changed"
        blocks.append(Fold(caption, (table(caption, ("Unit", "Before", "After"), rows),)))
    return blocks


def _twins(drift: Json) -> list[Block]:
    twins = mapping(drift.get("twins"))
    median = number(twins.get("median"))
    if median is None:
        return []
    text = (
        f"Each removed unit's best stand-in among the kept ones of its block correlates with it, up to the sign, at a median "
        f"of {numbers.fixed(median, 2)} ({numbers.share(number(twins.get('near')))} at 0.9 or more; unrelated units would "
        f"reach about {numbers.fixed(number(twins.get('chance')), 2)} by chance). The nearer, the less a random mask can hurt."
    )
    return [Heading("Stand-ins of the removed units"), Text(text)]


def _null(see: Json) -> list[Block]:
    aligned = mapping(see.get("alignment"))
    rows = [_block_row(block) for block in mappings(aligned.get("blocks"))]
    if not rows:
        return []
    caption = (
        f"Mean over classes of the largest cosine to a unit, against {numbers.count(number(aligned.get('heads')))} random "
        f"heads; below {numbers.general(number(aligned.get('enough')))} standard deviations nothing is said of what "
        "units write"
    )
    return [Fold("Do units write classes at all? The test against random heads", (table(caption, NULL, rows),))]


def _block_row(block: Json) -> Row:
    found, random, sd, z = (number(block.get(key)) for key in ("found", "random", "random_sd", "z"))
    agreement = mapping(block.get("agreement"))
    cells = [Cell(clean(block.get("block")), number(block.get("block"))), Cell(numbers.fixed(found, 3), found)]
    cells += [Cell(f"{numbers.fixed(random, 3)} ± {numbers.fixed(sd, 3)}", random), Cell(numbers.fixed(z, 1), z)]
    cells.append(Cell("yes" if block.get("carries") is True else "no"))
    shares = [number(mapping(agreement.get(read)).get("share")) for read in ("class", "patches")]
    cells += [Cell(numbers.share(share), share) for share in shares]
    chance = next((c for one in agreement.values() if (c := number(mapping(one).get("chance"))) is not None), None)
    return Row((*cells, Cell(numbers.share(chance), chance)))


def _end(see: Json, beside: Room) -> list[Block]:
    """Where the rest is, and what is not offered."""
    left = [f"{clean(name)} was left out: {clean(why)}." for name, why in mapping(see.get("left_out")).items()]
    without = [clean(name) for name in sequence(see.get("classes_without_images"))]
    if without:
        more = f" and {len(without) - NAMED:,} more" if len(without) > NAMED else ""
        left.append(f"No probe image is of {', '.join(without[:NAMED])}{more}: nothing is said of what fires for them.")
    if beside.left_out:
        left.append(
            f"{numbers.plural(beside.left_out, 'picture')} found no room on this page; the folder see has all of them."
        )
    images = mapping(see.get("images"))
    atlas = clean(mapping(see.get("atlas")).get("file"))
    text = f"Seen on {numbers.count(number(images.get('n')))} probe images; none of the exam's."
    text += f" Every unit is in {atlas} and units.csv beside it." if atlas else ""
    return [Text(" ".join([text, *left]), "note")]
