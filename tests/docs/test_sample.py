"""The documentation's sample report: made by today's code of a committed record, with pictures that show what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def made() -> tuple[str, str]:
    return module("hooks").made(DOCS / "sample")


def test_the_sample_is_whole_and_tells_no_place(made: tuple[str, str]) -> None:
    page, markdown = made
    assert "This run is not complete" not in page and "Not in the record" not in page
    assert "No top-1 lost" in markdown and page.count("<svg") >= 6 and page.count("<img") > 30
    assert "random units" in markdown and "What was removed?" in page
    for place in ("/home/", "/tmp/", "/work/", "/root/", "/Users/"):
        assert place not in page
    size = sum(file.stat().st_size for file in (DOCS / "sample").rglob("*.*"))
    assert size < 600_000 and len(page) < 1_500_000


@pytest.mark.parametrize("name", ["light", "dark"])
def test_its_pictures_show_what_it_says(made: tuple[str, str], name: str) -> None:
    """Where this fails, the first section has changed: `make screenshots` (or `make sample`) takes them again."""
    with Image.open(DOCS / f"report-{name}.png") as picture:
        assert picture.size == (1100, 1220) and picture.info["vitprune"] == module("sample").said(made[1])
        assert (picture.convert("L").getpixel((2, 2)) < 60) == (name == "dark")
    assert (DOCS / f"report-{name}.png").stat().st_size < 250_000


def test_the_library_reference_has_every_name() -> None:
    import vitprune

    text = module("hooks").library()
    for name in vitprune.__all__:
        assert f"## {name} {{: #{name.lower()} }}" in text
        first = (getattr(vitprune, name).__doc__ or "").strip().splitlines()[0]
        assert first and first in text
