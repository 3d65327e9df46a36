"""What a report is made of. The sections build these once; Markdown and HTML only render them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

Tone = Literal["", "note", "missing", "warning", "good", "lead"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell: its text, the value to sort by, a tone for failures, and the length of a bar under it, 0 to 1."""

    text: str
    sort: float | None = None
    tone: Tone = ""
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Cells in column order (the first heads the row); `tag` is a short word shown beside the first one."""

    cells: tuple[Cell, ...]
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a caption; a column title that starts with `>` holds numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    tone: Tone = ""

    def numeric(self, index: int) -> bool:
        """Whether column `index` holds numbers (right-aligned, sorted by value)."""
        return self.columns[index].startswith(">")

    def title(self, index: int) -> str:
        """The column's title without its marker."""
        return self.columns[index].removeprefix(">")


@dataclass(frozen=True, slots=True)
class Text:
    """One paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """An inline SVG, its caption and what it says in words."""

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Code:
    """Verbatim text; `language` is a Markdown info string."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Label and value pairs."""

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Number:
    """One big number: the value, what it is, and the fine print."""

    value: str
    label: str
    detail: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The big numbers, side by side."""

    kind: ClassVar[str] = "numbers"
    items: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks behind a summary line."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Two columns of blocks where the page is wide, one below the other where it is not."""

    kind: ClassVar[str] = "columns"
    left: tuple[Block, ...]
    right: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture as a `data:` address (empty: it is gone), its title, its name, and label and value pairs; of a
    `pair` the two values stand side by side."""

    source: str
    title: str
    name: str
    lines: tuple[tuple[str, str], ...]
    pair: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures in a grid; `wide` ones are several times as wide as high. `heads`: what titles and names are, in a table."""

    kind: ClassVar[str] = "gallery"
    caption: str
    pictures: tuple[Picture, ...]
    wide: bool = False
    heads: tuple[str, str] = ("Class", "Image")


Block: TypeAlias = "Table | Text | Heading | Figure | Code | Facts | Numbers | Fold | Columns | Gallery"


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer; `key` is the anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole page: title, the line under it, sections, warnings before them, and where its numbers come from."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    warnings: tuple[Text, ...]
    source: str


def table(caption: str, columns: Sequence[str], rows: Iterable[Row], tone: Tone = "") -> Table:
    """A table; checks that every row has a cell per column."""
    made = Table(caption, tuple(columns), tuple(rows), tone)
    assert all(len(row.cells) == len(made.columns) for row in made.rows), caption
    return made


def missing(what: str) -> Text:
    """The plain statement that something is not in the record."""
    return Text(f"Not in the record: {what}.", "missing")


def figure(svg: str, caption: str) -> tuple[Block, ...]:
    """The figure, or nothing where there was nothing to draw."""
    return (Figure(svg, caption),) if svg else ()
