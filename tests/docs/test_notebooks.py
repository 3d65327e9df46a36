"""The notebooks of the documentation: executed cell after cell, and kept without outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    found = json.loads(path.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]


def test_notebooks_are_whole_and_without_outputs() -> None:
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        found = json.loads(path.read_text("utf-8"))
        assert (found["nbformat"], found["metadata"]["language_info"]["name"]) == (4, "python")
        assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
        for cell in found["cells"]:
            assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
        for text in cells(path):
            compile(text, path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    """In a process of its own, in a folder with nothing but the checkout's package."""
    (tmp_path / "vitprune").symlink_to(ROOT / "vitprune")
    script = "\n\n".join(cells(path))
    command = [sys.executable, "-W", "ignore", "-c", script]
    got = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": "."}
    )
    assert got.returncode == 0, got.stderr[-3000:]
    assert (tmp_path / "exported" / "notebook" / "report.html").is_file()
    if path.stem == "compress":
        the_lines_of_the_report_work(tmp_path / "exported" / "notebook")


def the_lines_of_the_report_work(folder: Path) -> None:
    """Those for onnxruntime alone answer as `vitprune predict` does; each is run as it stands on the page."""
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=100)
    (lines,) = re.findall(
        r"^```python\n(import numpy, onnxruntime.*?)^```", (folder / "report.md").read_text(), re.M | re.S
    )
    (predict,) = re.findall(r"^```sh\n(vitprune predict .*?)\n```", (folder / "report.md").read_text(), re.M)
    labels = json.loads((folder / "report.json").read_text())["labels"]
    script = (
        f"{lines}\nassert logits.shape == (1, {len(labels)}) and numpy.isfinite(logits).all()\nprint(logits.argmax())"
    )
    command = [sys.executable, "-W", "ignore"]
    got = subprocess.run([*command, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, got.stderr[-3000:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [*command, "-m", *predict.split()]
    told = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert told.returncode == 0, told.stderr[-3000:]
    first = min((label for label in labels if label in told.stdout), key=told.stdout.index)
    assert first == labels[int(got.stdout)]
