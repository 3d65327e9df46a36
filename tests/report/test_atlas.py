"""The atlas in a real browser: nothing cut, no request, every unit found by its number, class, block and state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from page_checks import ACCESS, LAYOUT
from PIL import Image

from vitprune.report.atlas import page

WIDTHS = [30, 50]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def data(widths: list[int] = WIDTHS, each: int = 4) -> dict[str, Any]:
    units = sum(widths)
    place = np.arange(units)
    return {
        "name": "tiny <b>", "widths": widths, "blocks": [{"carries": False}, {"carries": True}],
        "kept": "".join("1" if i % 4 == 0 else "0" for i in place), "silent": "".join("1" if i == 3 else "0" for i in place),
        "writes": [-1 if i < widths[0] else int(i % 3) for i in place], "fires": (place % 2).tolist(),
        "between": [None if i == 3 else int(i % 100) for i in place], "read": "class token",
        "drift": [99 if i % 4 == 0 else None for i in place], "twin": [-1 if i % 4 == 0 else 4 for i in place],
        "twinned": [None if i % 4 == 0 else -51 for i in place], "classes": ["boot", "bag", "</script>"],
        "sheets": [["thumbnails/0000.png", 28]], "across": 16,
        "named": ["stripes </script>", "boot"], "called": [-1 if i == 3 else int(i % 2) for i in place],
        "called_score": [None if i % 7 == 0 else 40 for i in place], "called_control": [3] * units,
        "labels": ["sleeve", "sole"], "shows": [-1 if i < widths[0] else int(i % 2) for i in place],
        "shows_score": [None if i < widths[0] else 7 for i in place],
        "shows_control": [None if i < widths[0] else 2 for i in place],
        "images": (np.arange(units * each) % 20).tolist(), "each": each,
    }  # fmt: skip


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    (folder / "thumbnails").mkdir()
    Image.new("L", (16 * 28, 2 * 28), 120).save(folder / "thumbnails" / "0000.png")
    (folder / "atlas.html").write_text(page.html(data()), encoding="utf-8")
    return folder / "atlas.html"


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_hidden_or_fetched(browser: Browser, atlas: Path, width: int) -> None:
    for dark in (False, True):
        browser.open(atlas, width, dark)
        assert browser.run(LAYOUT) == [] and browser.run(ACCESS) == [] and browser.complaints() == []


def test_units_are_found(browser: Browser, atlas: Path) -> None:
    browser.open(atlas, 1400)

    def count(**fields: str) -> str:
        browser.run("document.getElementById('clear').click()")
        for name, value in fields.items():
            browser.run(f"document.getElementById('{name}').value = '{value}'")
        browser.run("document.getElementById('filters').dispatchEvent(new Event('input'))")
        return str(browser.run("document.getElementById('count').textContent")).split(" of ")[0]

    assert count() == "80" and count(unit="1:49") == "1" and count(block="0") == "30"
    assert count(state="1") == "20" and count(state="0", block="0") == "22"
    assert count(**{"class": "boot", "which": "fires"}) == "40" and count(**{"class": "moon"}) == "0"
    assert (
        count(**{"class": "stripes", "which": "name"}) == "40"
        and count(**{"class": "stripes", "which": "fires"}) == "0"
    )
    assert count(**{"class": "sole", "which": "shows"}) == "25" and count(**{"class": "sole", "which": "writes"}) == "0"
    assert count(**{"class": "boot", "which": "writes"}) == str(sum(i % 3 == 0 for i in range(30, 80)))


def test_an_address_leads_to_its_unit_and_arrows_lead_on(browser: Browser, atlas: Path) -> None:
    browser.open(atlas, 1400)
    browser.run("location.hash = '1:49'; new Promise((done) => setTimeout(done, 200))")
    assert browser.run("document.activeElement.id") == "1:49"
    text = browser.run("document.activeElement.innerText")
    assert "removed" in text and "stand-in" in text and "1:4, correlation -0.51" in text
    assert "boot (correlation 0.40, other names 0.03)" in text
    assert "sole (IoU 0.07, 0.02 by chance)" in text
    browser.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}))")
    assert browser.run("document.activeElement.id") == "1:48" and browser.complaints() == []


def test_directions_of_attention_have_a_page_of_their_own(browser: Browser, tmp_path: Path) -> None:
    found = {
        "name": "tiny", "widths": [6, 6], "dims": [3, 3], "blocks": [], "kept": "000111222111", "read": "class token",
        "fires": [0] * 12, "classes": ["boot"], "other": "atlas.html",
    }  # fmt: skip
    path = tmp_path / "attention.html"
    path.write_text(page.html(found), encoding="utf-8")
    browser.open(path, 390)
    assert browser.run(LAYOUT) == [] and browser.run(ACCESS) == []
    browser.run("location.hash = '1:h0.2'; new Promise((done) => setTimeout(done, 200))")
    assert browser.run("document.activeElement.id") == "1:h0.2"
    assert "turned" in browser.run("document.activeElement.innerText")
    browser.run("document.getElementById('unit').value = '1:h1'")
    browser.run("document.getElementById('filters').dispatchEvent(new Event('input'))")
    assert browser.run("document.getElementById('count').textContent") == "3 of 12 directions"
    words = browser.run("document.body.innerText")
    assert "Every direction of attention of tiny" in words and "A name is a claim" not in words
    assert browser.complaints() == []


def test_forty_thousand_units_are_under_five_megabytes() -> None:
    made = page.html(data([3072] * 13))
    assert len(made.encode()) < 5_000_000
