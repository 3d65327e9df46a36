"""What a finished run prints, at the widths of terminals: no number is cut, and what is left out is said."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from vitprune.cli import tables
from vitprune.core.progress.fitting import fitted
from vitprune.core.reading import Json

ROW: Json = {
    "criterion": "fisher-obs", "keep": 0.25, "recovery": "layerwise+head", "head": "targets", "group": "footwear, bags",
    "top1": 0.91875, "top1_ci95": [0.9075, 0.9315], "mean_true_probability": 0.888, "params": 21_678_730,
    "macs": 4_633_382_400, "budget": {"macs": 0.25}, "protocol": "honest",
}  # fmt: skip
LINE: Json = {
    "budget": {"size_mb": 12.5}, "top1": 0.91875, "top1_change_points": -10.25, "mcnemar_p": 2.9e-06, "macs_ratio": 0.25,
    "params_ratio": 0.341, "latency_ratio": 0.335, "folder": "size-12.5",
}  # fmt: skip


def shown(width: int, table: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(table(console))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [80, 110, 200])
def test_no_number_is_cut(width: int) -> None:
    text = shown(width, lambda console: tables._table(console, "Test split, honest: one model for every image", [ROW]))
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "91.88" in text and "4633.4 M" in text and "layerwise" in text
    told = re.search(r"not shown at this width: (.*)", text)
    assert ("21,678,730" in text) == (told is None or "params" not in told[1])
    assert (told is None) == (width == 200)
    if told:
        assert told[1].startswith("head")
    text = shown(width, lambda console: tables._frontier(console, [LINE]))
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "-10.25" in text and "0.250" in text and "size-12.5" in text and "91.88" in text


def test_names_are_folded_before_a_number_is_cut() -> None:
    def table(console: Console) -> Table:
        made = Table()
        made.add_column("model")
        made.add_column("ms", justify="right")
        made.add_row("exported/a-name-that-is-very-long/model.int8.onnx", "1234.5678")
        return fitted(console, made, ())

    text = shown(40, table)
    assert "1234.5678" in text and max(map(len, text.splitlines())) <= 40 and "…" not in text
    whole = "".join(re.findall(r"│ ([\w./-]+) +│", text))
    assert whole == "exported/a-name-that-is-very-long/model.int8.onnx"
