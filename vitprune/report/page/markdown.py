"""A document as GitHub Markdown, for a pull request. No plots; every value is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitprune.report.page.blocks import (
    Block,
    Cell,
    Code,
    Columns,
    Document,
    Facts,
    Figure,
    Fold,
    Gallery,
    Heading,
    Numbers,
    Row,
    Table,
    Text,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
MAX_ROWS = 100  # a pull request comment holds 65,536 characters
_LABELS = {"warning": "⚠ **Warning:** ", "missing": "", "note": "", "good": "", "lead": "", "": ""}


def markdown(document: Document) -> str:
    """The whole document, ending in one newline."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    parts += [f"> {_text(warning)}" for warning in document.warnings]
    for number, section in enumerate(document.sections, 1):
        parts += [f"## {number}. {escape(section.title)}", *map(_block, section.blocks)]
    parts.append(f"_{escape(document.source)}_")
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """`text` as inline Markdown that shows exactly those characters: no markup, HTML, mention or link."""
    text = text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _SPECIAL.sub(r"\\\1", text)
    text = re.sub(r"^([-=])", r"\\\1", text)
    text = re.sub(r"^(\d+)\.(?=\s|$)", r"\1\\.", text)
    # A zero-width space keeps a name from notifying a user or becoming a link.
    return text.replace("@", "@\u200b").replace("://", ":\u200b//").replace("www.", "www\u200b.")


def _block(block: Block) -> str:
    match block:
        case Text():
            return _text(block)
        case Heading():
            return f"### {escape(block.text)}"
        case Numbers():
            return "\n".join(f"- **{escape(n.value)}** {escape(n.label)} ({escape(n.detail)})" for n in block.items)
        case Facts():
            return "\n".join(f"- {escape(label)}: {escape(value)}" for label, value in block.items)
        case Code():
            return _code(block)
        case Table():
            return _table(block)
        case Fold():
            return _fold(block.summary, block.blocks)
        case Columns():
            return "\n\n".join(part for part in map(_block, block.left + block.right) if part)
        case Gallery():
            return _gallery(block)
        case Figure():
            return ""


def _text(text: Text) -> str:
    if text.tone == "lead":
        return f"**{escape(text.text)}**"
    return f"_{escape(text.text)}_" if text.tone == "missing" else _LABELS[text.tone] + escape(text.text)


def _code(code: Code) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{code.language}\n{code.text}\n{fence}"


def _table(table: Table) -> str:
    head = _line(escape(table.title(index)) for index in range(len(table.columns)))
    rule = _line("--:" if table.numeric(index) else ":--" for index in range(len(table.columns)))
    lines = [f"**{escape(table.caption)}**", "", head, rule, *map(_row, table.rows[:MAX_ROWS])]
    left = len(table.rows) - MAX_ROWS
    return "\n".join([*lines, *(["", f"_{left:,} more rows are on the HTML page._"] if left > 0 else [])])


def _gallery(gallery: Gallery) -> str:
    """The pictures' names and lines as a table."""
    labels = list(dict.fromkeys(label for picture in gallery.pictures for label, _ in picture.lines))
    cells = [(p.title, p.name, *(dict(p.lines).get(label, "") for label in labels)) for p in gallery.pictures]
    rows = tuple(Row(tuple(map(Cell, line))) for line in cells)
    return _table(Table(gallery.caption, (*gallery.heads, *labels), rows))


def _row(row: Row) -> str:
    cells = [_cell(cell) for cell in row.cells]
    return _line([cells[0] + (f" **({escape(row.tag)})**" if row.tag else ""), *cells[1:]])


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"**{text}**" if cell.tone == "warning" and text else text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fold(summary: str, blocks: tuple[Block, ...]) -> str:
    inside = "\n\n".join(map(_block, blocks))
    title = summary.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<details>\n<summary>{title}</summary>\n\n{inside}\n\n</details>"
