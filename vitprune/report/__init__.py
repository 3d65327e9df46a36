"""A run's record as JSON, Markdown for a pull request, and one self-contained HTML page.

The record's fields are described in `schema.json`. A partial record makes a page that says what is missing.
"""

from __future__ import annotations

import json
from pathlib import Path

from vitprune.core import ledger
from vitprune.core.files import write_text
from vitprune.core.reading import Json
from vitprune.report.document import document
from vitprune.report.page.html import html
from vitprune.report.page.markdown import markdown
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.values import plain
from vitprune.report.runs_page import comparison

__all__ = ["compare_reports", "write_report"]

COMPARE = "compare.json"


def write_report(record: Json, folder: Path) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into `folder`, each in one step; answer their paths.

    A comparison that lies there (`compare.json`) is named in the record and shown. Non-finite floats become null.
    Raises TypeError for values JSON cannot hold and UserError where the folder cannot be written.
    """
    safe = plain(record)
    safe.pop("compare", None)
    if (folder / COMPARE).is_file():
        safe["compare"] = COMPARE
    page = document(safe, Beside(folder))
    text = json.dumps(safe, indent=2, allow_nan=False) + "\n"
    return _write(folder, {"report.json": text, "report.md": markdown(page), "report.html": html(page)})


def compare_reports(records: list[tuple[Path, Json]], folder: Path) -> list[Path]:
    """Write `comparison.md` and `comparison.html` for several runs, each given with the path of its record."""
    page = comparison([(path, plain(record)) for path, record in records])
    return _write(folder, {"comparison.md": markdown(page), "comparison.html": html(page)})


def _write(folder: Path, texts: dict[str, str]) -> list[Path]:
    for name in texts:
        ledger.guard(folder / name, anywhere=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
