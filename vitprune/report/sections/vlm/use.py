"""How do I use it? The lines that load the smaller model."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page.blocks import Block, Code, Section, Text, missing
from vitprune.report.reading.values import clean, mapping, sequence


def use_section(record: Json) -> Section:
    """Which library loads it, and how."""
    lines, title = clean(record.get("usage"), lines=True), "How do I use it?"
    if not lines:
        return Section("deploy", title, (missing("a smaller model; give `keep` or `keep_types`"),))
    exam = sequence(record.get("exam"))
    slim = mapping(exam[1] if len(exam) > 1 else None)
    why = clean(slim.get("unsaid")) or "its widths"
    said = (
        "Every layer of a tower has one width, so transformers loads the folder as it is."
        if slim.get("plain_from_pretrained") is True
        else f"Transformers' configuration has no words for {why}; vitprune's loader knows."
    )
    blocks: list[Block] = [Text(said), Code(lines, "python")]
    return Section("deploy", title, tuple(blocks))
