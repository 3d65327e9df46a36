"""What `see` drew of units: maps, masks, block plots and stimulus images, and what it calls them, each beside its control."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Figure, Fold, Gallery, Heading, Picture, Row, Text, table
from vitprune.report.plots import block_plots
from vitprune.report.plots.block_plots import Band
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence

MOST = 48  # units of a gallery
SHOWN = {"scaled_1": "one unit", "scaled_3": "three units"}


def picture_blocks(see: Json, beside: Beside) -> list[Block]:
    """Blocks for those parts that the run did; nothing for the others."""
    return [
        *_maps(mapping(see.get("maps")), beside),
        *_masks(mapping(see.get("masks")), beside),
        *_plots(mapping(see.get("blocks"))),
        *_stimuli(mapping(see.get("stimuli")), beside),
    ]


def _maps(maps: Json, beside: Beside) -> list[Block]:
    units = mappings(maps.get("units"))[:MOST]
    if not units:
        return []
    told = (
        "Each unit's maps are on one scale of its own, up to its 99.9th percentile over "
        f"{numbers.count(number(maps.get('images')))} images: dark is silent, light is as loud as it gets. The strongest "
        "images first, after the gap one drawn at random."
    )
    unseen = maps.get("unseen_block")
    if isinstance(unseen, int) and any(clean(unit.get("unit")).startswith(f"{unseen}:") for unit in units):
        told += f" What block {unseen} holds at the patches reaches no logit: its maps show what its units react to, no more."
    pictures = tuple(_map(unit, beside) for unit in units)
    found = Gallery("Maps of the units above", pictures, wide=True, heads=("Unit", "Scale"))
    return [Heading("Where units fire"), Text(told), found]


def _map(unit: Json, beside: Beside) -> Picture:
    scale = number(unit.get("scale"))
    lines = [("own class", clean(unit.get("own_class")) or numbers.NONE)]
    lines.append(("own class above others (0.5: chance)", numbers.fixed(number(unit.get("auroc")), 2)))
    share = number(unit.get("on_outlying_tokens"))
    if share:
        lines.append(("on tokens of outlying norm", numbers.share(share)))
    silent = sum(mapping(one).get("note") == "does not fire here" for one in sequence(unit.get("images")))
    if silent:
        lines.append(("does not fire on", numbers.plural(silent, "image")))
    name = clean(unit.get("note")) or "scale: 0 to " + (numbers.NONE if scale is None else f"{scale:.3g}")
    return Picture(beside.picture(unit.get("picture")), clean(unit.get("unit")), name, tuple(lines))


def _masks(masks: Json, beside: Beside) -> list[Block]:
    rows = mappings(masks.get("classes"))[:MOST]
    if not rows:
        return []
    needed, n = number(masks.get("needed")), number(masks.get("n"))
    told = (
        f"Marked are the pixels where the top unit of a class is above its threshold. Of {numbers.count(n)} units "
        f"{numbers.count(needed)} fall further, at their highest patch, when these pixels are blackened than when as large an "
        "area elsewhere is."
    )
    if masks.get("unseen") is True:
        told += " They are of the last block, whose patches reach no logit: no other block carries classes."
    pictures = [
        Picture(
            beside.picture(row.get("picture")),
            clean(row.get("class")),
            f"unit {clean(row.get('unit'))}",
            (("further fall", _plus_minus(row)), ("area", numbers.share(number(row.get("area"))))),
        )
        for row in rows
    ]
    found = Gallery("Masks of the classes' top units", tuple(pictures), wide=True, heads=("Class", "Unit"))
    return [Heading("Which pixels they need"), Text(told), found, *_running(rows, beside)]


def _running(rows: list[Json], beside: Beside) -> list[Block]:
    """Masks of the running mean over the blocks, where they were asked for."""
    pictures = [
        Picture(
            beside.picture(mapping(row["running"]).get("picture")),
            clean(row.get("class")),
            f"units {', '.join(clean(unit) for unit in sequence(mapping(row['running']).get('units')))}",
            (("IoU with the masks above", numbers.fixed(number(mapping(row["running"]).get("iou")), 2)),),
        )
        for row in rows
        if mapping(row.get("running"))
    ]
    if not pictures:
        return []
    caption = (
        "The same of the running mean over the blocks up to the unit's, of the class's top unit in each; each image's own "
        "threshold. In blocks that carry no classes these units are chance."
    )
    return [Gallery(caption, tuple(pictures), wide=True, heads=("Class", "Units"))]


def _plus_minus(row: Json) -> str:
    value, error = number(row.get("deletion")), number(row.get("standard_error"))
    return f"{numbers.fixed(value, 3)} ± {numbers.fixed(error, 3)}"


def _plots(blocks: Json) -> list[Block]:
    carrying = [int(b) for b in sequence(blocks.get("blocks")) if number(b) is not None]
    if not carrying:
        note = clean(blocks.get("note"))
        return [Heading("From block to block"), Text(note, "note")] if note else []
    top = _band("classes", mapping(blocks.get("top_block")))
    first = block_plots.histogram(
        "see-top-block", range(len(top.value)), top, "Blocks of the classes' top units", "classes"
    )
    mean = mapping(blocks.get("mean_distances"))
    bands = [_joined(words, mappings(mean.get(kind)), len(carrying)) for kind, words in SHOWN.items()]
    second = block_plots.lines("see-distances", carrying, bands, "How far the classes' mean maps lie apart", "L2")
    text = (
        "Distances between the mean maps of any two classes, each of the class's own top units; the shaded bars are the 95 % "
        "of labels that were permuted over the images, the error bars standard errors. The numbers, those of maps as they "
        "are, class means and most active units are in see/blocks."
    )
    captions = (
        "Blocks of the classes' top units",
        "Distances between the classes' mean maps, each map on its own scale",
    )
    figures = [Figure(svg, caption) for svg, caption in zip((first, second), captions, strict=True) if svg]
    return [Heading("From block to block"), *figures, Text(text, "note")]


def _band(name: str, found: Json) -> Band:
    lists = (
        [number(v) for v in sequence(found.get(key))] for key in ("value", "standard_error", "null_low", "null_high")
    )
    value, *rest = lists
    error, low, high = ([*one, *[None] * len(value)][: len(value)] for one in rest)
    return Band(name, value, error, low, high)


def _joined(name: str, found: list[Json], count: int) -> Band:
    each = [_band(name, one) for one in found[:count]]
    pick = lambda values: values[0] if values else None  # noqa: E731
    columns = [[pick(getattr(one, key)) for one in each] for key in ("value", "error", "low", "high")]
    return Band(name, *([*column, *[None] * (count - len(column))] for column in columns))


def _stimuli(stimuli: Json, beside: Beside) -> list[Block]:
    rates = mapping(stimuli.get("rates"))
    heading = Heading("Images made for units")
    if not rates:
        note = clean(stimuli.get("note"))
        return [heading, Text(note, "note")] if note else []
    judges = list(dict.fromkeys(str(who) for kind in rates.values() for who in mapping(kind)))
    kinds = {"top": "Top units of classes", "random": "Random units of the same blocks"}
    rows = [
        Row((Cell(words), *(cell for who in judges for cell in _rate(mapping(mapping(rates.get(kind)).get(who))))))
        for kind, words in kinds.items()
    ]
    caption = (
        f"Images that were given the class of their unit (chance {numbers.share(number(stimuli.get('chance')))}), and "
        "its 95 % interval"
    )
    p = numbers.probability(number(stimuli.get("top_against_random_p")))
    text = f"Top units against random ones, by the model itself: Fisher's p = {p}."
    pictures = [
        Picture(
            beside.picture(unit.get("picture")),
            f"{clean(unit.get('class'))}{'' if unit.get('kind') == 'top' else ', random unit'}",
            f"unit {clean(unit.get('unit'))}",
            (("seen as", ", ".join(clean(v) for v in sequence(unit.get("seen_as")) if v) or numbers.NONE),),
        )
        for unit in mappings(stimuli.get("units"))[: 2 * MOST]
    ]
    found = Gallery("Stimulus images", tuple(pictures), heads=("Class", "Unit"))
    who = {"own": ">The model itself", "slim": ">The slim model", "judge": ">The judge"}
    columns = [column for one in judges for column in (who.get(one, f">{clean(one)}"), ">95 %")]
    made = table(caption, ("Units", *columns), rows)
    return [heading, made, Text(text), Fold("The images", (found,))]


def _rate(rate: Json) -> tuple[Cell, Cell]:
    """The share, and its interval with how many images it is of."""
    share, ends = number(rate.get("share")), [number(v) for v in sequence(rate.get("ci95"))]
    if share is None or len(ends) != 2:
        return Cell(numbers.NONE), Cell(numbers.NONE)
    failed = number(rate.get("failed"))
    more = f"; {numbers.count(failed)} failed" if failed else ""
    n = numbers.count(number(rate.get("n")))
    between = f"{numbers.share(ends[0])} to {numbers.share(ends[1])}, n = {n}{more}"
    return Cell(numbers.share(share), share), Cell(between)


def name_lines(card: Json) -> list[tuple[str, str]]:
    """What a unit is called, for its card, with the score of the name and that of others' names."""
    lines: list[tuple[str, str]] = []
    if card.get("name"):
        lines.append(("name", clean(card.get("name"))))
    for words, key in (("the name's correlation", "name"), ("the classes' correlation", "simulated")):
        score, control = (number(card.get(f"{key}{end}")) for end in (("_score" if key == "name" else ""), "_control"))
        if score is not None:
            beside = "" if control is None else f" (others' {numbers.fixed(control, 2)})"
            lines.append((words, f"{numbers.fixed(score, 2)}{beside}"))
    return lines


BY = {"labels": "classes and attributes", "clip": "a CLIP", "server": "a language model"}
PREDICTORS = {"labels": "mean of the image's class", "attributes": "attributes", "clip": "names, by a CLIP",
              "server": "names, by a language model"}  # fmt: skip


def naming_blocks(see: Json) -> list[Block]:
    """How far names, classes and attributes tell what units do; nothing where neither was asked for."""
    names, simulator = mapping(see.get("names")), mapping(see.get("simulator"))
    if not names and not simulator:
        return []
    blocks: list[Block] = [Heading("What units are called, and whether that tells what they do")]
    images = mapping((names or simulator).get("images"))
    read = "class token" if (names or simulator).get("tokens") == "cls" else "mean over the patches"
    blocks.append(Text(
        f"Names are claims. They are by {BY.get(str(names.get('by')), 'classes')}, from "
        f"{numbers.count(number(images.get('for_names')))} probe images; every figure is a correlation of predicted and true "
        f"activation ({read}) on {numbers.count(number(images.get('for_scores')))} others. The control is what explanations "
        "of other units of the block reach."
    ))  # fmt: skip
    tables = [("names", names), *mapping(simulator.get("predictors")).items()]
    rows = [row for name, one in tables for row in _score_rows(str(name), mappings(mapping(one).get("blocks")))]
    if rows:
        caption = "Median over the units of a block, with the 95 % interval over images"
        columns = ("Explanation", ">Block", ">Correlation", ">95 %", ">Control", ">Units", ">Without one")
        blocks.append(Fold(caption, (table(caption, columns, rows),)))
    maps = mapping(simulator.get("maps"))
    rows = [_map_row(str(name), mapping(one)) for name, one in maps.items()]
    if rows:
        caption = "Maps of the shown units, place by place: median correlation of predicted and true"
        blocks.append(table(caption, ("Explanation", ">Correlation", ">Control", ">Units", ">Images"), rows))
    return blocks


def _score_rows(name: str, blocks: list[Json]) -> list[Row]:
    rows = []
    for block in blocks:
        score, control, n, none = (number(block.get(key)) for key in ("score", "control", "n", "null"))
        ends = [number(v) for v in sequence(block.get("ci95"))]
        if score is None and name == "names" and n is None:
            continue
        interval = f"{numbers.fixed(ends[0], 2)} to {numbers.fixed(ends[1], 2)}" if len(ends) == 2 else numbers.NONE
        cells = [Cell(clean(PREDICTORS.get(name, name))), Cell(clean(block.get("block")), number(block.get("block")))]
        cells += [Cell(numbers.fixed(score, 2), score), Cell(interval), Cell(numbers.fixed(control, 2), control)]
        rows.append(Row((*cells, Cell(numbers.count(n), n), Cell(numbers.count(none), none))))
    return rows


def _map_row(name: str, found: Json) -> Row:
    median, control, n, images = (number(found.get(key)) for key in ("median", "control", "n", "images"))
    cells = [Cell(clean(PREDICTORS.get(name, name))), Cell(numbers.fixed(median, 2), median)]
    return Row(
        (
            *cells,
            Cell(numbers.fixed(control, 2), control),
            Cell(numbers.count(n), n),
            Cell(numbers.count(images), images),
        )
    )
