"""How do I reproduce it? Command, recipe, hashes, versions, time per stage."""

from __future__ import annotations

import json
from typing import Any

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Code, Facts, Fold, Heading, Row, Section, Text, missing, table
from vitprune.report.reading.values import clean, mapping, mappings, number


def reproduce_section(record: Json) -> Section:
    """Everything another person needs to get the same figures."""
    command = clean(record.get("command"))
    blocks: list[Block] = [Code(command, "sh") if command else missing("the command")]
    blocks.append(_recipe(record))
    about: list[Block] = []
    for key, title in (("hashes", "Hashes"), ("versions", "Versions"), ("machine", "Machine")):
        about += _facts(title, mapping(record.get(key)))
    about += _preprocessing(mapping(record.get("preprocessing")))
    blocks.append(Fold("Hashes, versions, machine, preprocessing", tuple(about)))
    spent = [*_stages(mappings(record.get("stages"))), *_discoveries(mappings(record.get("discoveries")))]
    return Section("reproduce", "How do I reproduce it?", (*blocks, Fold("Time, memory, discovery", tuple(spent))))


def _recipe(record: Json) -> Block:
    if text := clean(record.get("recipe_yaml"), lines=True):
        return Fold("Recipe", (Code(text, "yaml"),))
    if recipe := mapping(record.get("recipe")):
        return Fold("Recipe (resolved)", (Code(clean(json.dumps(recipe, indent=2), lines=True), "json"),))
    return missing("the recipe")


def _facts(title: str, facts: Json) -> list[Block]:
    if not facts:
        return [missing(f"the {title.lower()}")]
    return [Heading(title), Facts(tuple((clean(key), clean(value) or numbers.NONE) for key, value in facts.items()))]


def _preprocessing(found: Json) -> list[Block]:
    """How images are prepared, and who says so."""
    if not found:
        return []
    said_by = mapping(found.get("said_by"))
    rows = [(key, _values(value), clean(said_by.get(key))) for key, value in found.items() if key != "said_by"]
    items = tuple((clean(key), f"{value} ({who})" if who else value) for key, value, who in rows)
    return [Heading("Preprocessing"), Facts(items)]


def _values(value: Any) -> str:
    return ", ".join(map(clean, value)) if isinstance(value, list) else clean(value) or numbers.NONE


def _stages(stages: list[Json]) -> list[Block]:
    if not stages:
        return [missing("the time per stage")]
    rows = [_stage(row) for row in stages]
    spent = [
        value for row in stages if row.get("skipped") is not True and (value := number(row.get("seconds"))) is not None
    ]
    total = Row((Cell("this run"), Cell(numbers.seconds(sum(spent)), sum(spent)), Cell(""), Cell("")))
    columns = ("Stage", ">Time", ">Peak memory", "State")
    note = Text("Peak memory: the most that the stage's process held beyond what it held when the stage began.", "note")
    return [Heading("Time and memory"), table("Time and memory per stage", columns, [*rows, total]), note]


def _stage(row: Json) -> Row:
    skipped, took = row.get("skipped") is True, number(row.get("seconds"))
    state = "unchanged, skipped" if skipped else "done" if took is not None else "not finished"
    peak = number(row.get("peak_memory_mb"))
    memory = Cell(numbers.size(None if peak is None else 1e6 * peak), peak)
    return Row((Cell(clean(row.get("name"))), Cell(numbers.seconds(took), took), memory, Cell(state)))


def _discoveries(found: list[Json]) -> list[Block]:
    """What was attributed, how, and how far the integration is from complete."""
    if not found:
        return []
    columns = ("Criterion", ">t", "Integration", "Tokens", ">Images", ">Per image", ">Batch", ">Completeness gap")
    note = Text(
        "Completeness gap: of a few found paths, the mean of |joint integrated gradients − (p(path at its clean values) − "
        "p(path zeroed))|, the error of the quadrature; 0 would be exact.",
        "note",
    )
    return [Heading("Discovery"), table("Scores of the probe split", columns, [_discovery(row) for row in found]), note]


def _discovery(row: Json) -> Row:
    how, gap = mapping(row.get("settings")), number(mapping(row.get("completeness")).get("mean_abs_gap"))
    t, images, took, batch = (number(row.get(key)) for key in ("t", "images", "seconds", "batch"))
    each = took / images if took is not None and images else None
    smallest = number(row.get("smallest_batch"))
    halved = f" (down to {smallest:.0f})" if batch and smallest is not None and smallest < batch else ""
    nodes = number(how.get("nodes"))
    rule = f"{clean(how.get('quadrature'))}, {nodes:.0f} nodes" if nodes else numbers.NONE
    formula = clean(how.get("formula"))
    name = clean(how.get("criterion")) + (f" ({formula})" if formula not in ("", "jas") else "")
    return Row(
        (
            Cell(name),
            Cell(numbers.count(t), t),
            Cell(rule),
            Cell(clean(how.get("tokens")) or numbers.NONE),
            Cell(numbers.count(images), images),
            Cell(numbers.milliseconds(None if each is None else each * 1000), each),
            Cell(numbers.count(batch) + halved, batch),
            Cell(numbers.NONE if gap is None else f"{gap:.1e}", gap),
        )
    )
