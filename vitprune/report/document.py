"""A record as a document: the seven questions in order, warnings first (one more of a frontier, and one of units)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vitprune.core.reading import Json
from vitprune.report.backbone import compare as backbone_compare
from vitprune.report.backbone import result as backbone_result
from vitprune.report.page.blocks import Document, Section, Text
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.places import told
from vitprune.report.reading.values import clean, mapping, sequence
from vitprune.report.sections.comparing.contenders import comparison_section
from vitprune.report.sections.comparing.frontier import frontier_sections
from vitprune.report.sections.deploy import deploy_section
from vitprune.report.sections.hurt.classes import classes_section
from vitprune.report.sections.kept import kept_section
from vitprune.report.sections.removed import removed_sections
from vitprune.report.sections.reproduce import reproduce_section
from vitprune.report.sections.trust import failed_checks, trust_section
from vitprune.report.sections.verdict.result import result_section
from vitprune.report.sections.vlm import result as vlm_result
from vitprune.report.sections.vlm import types as vlm_types
from vitprune.report.sections.vlm import units as vlm_units
from vitprune.report.sections.vlm import use as vlm_use

SCHEMA = 1
SOURCE = "Every number on this page comes from report.json beside it and the files that report.json names."


Made: TypeAlias = Callable[[Json, Beside], tuple[Section, ...]]

# The questions in their order; one that a record gives no reason to ask answers with nothing.
SECTIONS: tuple[Made, ...] = (
    lambda record, beside: (result_section(record, beside),),
    lambda record, _: frontier_sections(record),
    lambda record, _: (trust_section(record),),
    lambda record, beside: (comparison_section(record, beside),),
    lambda record, beside: (classes_section(record, beside),),
    removed_sections,
    lambda record, beside: (kept_section(record, beside),),
    lambda record, _: (deploy_section(record),),
    lambda record, _: (reproduce_section(record),),
)
# Of a model whose outputs are features: nothing is classified.
BACKBONE: tuple[Made, ...] = (
    lambda record, _: (backbone_result.result_section(record),),
    lambda record, _: (trust_section(record),),
    lambda record, _: (backbone_compare.comparison_section(record),),
    removed_sections,
    lambda record, beside: (kept_section(record, beside),),
    lambda record, _: (deploy_section(record),),
    lambda record, _: (reproduce_section(record),),
)

# Of a vision-language model.
VLM: tuple[Made, ...] = (
    lambda record, _: (vlm_result.result_section(record),),
    lambda record, _: (vlm_types.types_section(record),),
    vlm_units.units_section,
    lambda record, _: (vlm_use.use_section(record),),
    lambda record, _: (reproduce_section(record),),
)


def document(record: Json, beside: Beside) -> Document:
    """The page of one run; `record` holds pure JSON types (see `values.plain`), `beside` reads the files it names."""
    record = told(record)
    name = clean(record.get("name")) or "unnamed run"
    asked = BACKBONE if mapping(record.get("backbone")) else SECTIONS
    asked = VLM if record.get("kind") == "vision-language" else asked
    sections = tuple(section for made in asked for section in made(record, beside))
    return Document(f"vitprune report: {name}", _subtitle(record), sections, _warnings(record), SOURCE)


def _subtitle(record: Json) -> str:
    model, machine = mapping(record.get("model")), mapping(record.get("machine"))
    known, targets = sequence(record.get("classes")), sequence(record.get("target_classes"))
    classes = f"{len(targets):,} of {len(known):,} classes" if targets else f"{len(known):,} classes" if known else ""
    architecture = clean(model.get("architecture"))
    named = clean(model.get("name")) or (clean(record["model"]) if isinstance(record.get("model"), str) else "")
    parts = [f"{named} {f'({architecture})' if architecture else ''}".strip()]
    parts += [classes, clean(machine.get("device"))]
    parts.append(clean(record.get("created")) or "date not recorded")
    return " · ".join(part for part in parts if part)


def _warnings(record: Json) -> tuple[Text, ...]:
    found: list[str] = []
    absent = [clean(item) for item in sequence(record.get("missing")) if clean(item)]
    if record.get("complete") is not True or absent:
        what = f" It lacks: {', '.join(absent)}." if absent else " It does not say what is missing."
        found.append(f"This run is not complete.{what} Sections without data say so.")
    if failed := failed_checks(record):
        found.append(f"Failed: {'; '.join(failed)}. Do not use these figures before that is explained.")
    if record.get("schema") != SCHEMA:
        stated = clean(record.get("schema"))
        which = f"follows schema {stated}" if stated else "names no schema"
        found.append(f"The record {which}; this page was made for schema {SCHEMA}.")
    return tuple(Text(text, "warning") for text in found)
