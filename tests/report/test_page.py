"""The page in a real browser: nothing cut or overlapping, no request, no complaint; tables sort, links lead somewhere."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from page_checks import ACCESS, AXE, LAYOUT
from records import compare_beside, files_beside, made_record
from safetensors.numpy import save_file

from vitprune.report import compare_reports, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
DEMO = Path(__file__).parents[2] / "exported" / "demo" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full report, one of a run that stopped early, one that compares runs; the demo's where it has been made."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("full", "partial"):
        files_beside(folder / name)
    compare_beside(folder / "full")
    record = made_record()
    half = {key: record[key] for key in ("schema", "name", "created", "command", "split", "stages")}
    write_report(record, folder / "full")
    write_report(half | {"complete": False, "missing": ["evaluate", "export"]}, folder / "partial")
    other = copy.deepcopy(record) | {"name": "other"}
    compare_reports([(Path("exported/demo"), record), (Path("exported/other"), other)], folder)
    made = {name: folder / name / "report.html" for name in ("full", "partial")}
    demo = {"demo": DEMO} if DEMO.is_file() else {}
    return made | {"comparison": folder / "comparison.html"} | demo


@pytest.mark.parametrize("name", ["full", "partial", "comparison", "demo"])
@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_hidden_or_fetched(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    if name not in pages:
        pytest.skip("the demo has not been run here")
    for dark in (False, True):
        browser.open(pages[name], width, dark)
        assert browser.run(LAYOUT) == []
        assert browser.run(ACCESS) == []
        assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.skipif(not AXE, reason="no axe-core: pip install axe-core-python, or name an axe.min.js in VITPRUNE_AXE")
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], width: int) -> None:
    """Deque's axe-core, all its rules, with every fold open; `ACCESS` is what goes without it."""
    ask = "axe.run(document).then(found => found.violations.map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`))"
    for name, dark in itertools.product(pages, (False, True)):
        browser.open(pages[name], width, dark)
        browser.run("document.querySelectorAll('details').forEach(fold => { fold.open = true; }); 0")
        browser.run(f"{AXE}; 0")
        assert browser.run(ask) == [], (name, dark)
    browser.run(
        "document.querySelector('table').insertAdjacentHTML('afterend', '<img src=\"data:,\"><h5>deep</h5>'); 0"
    )
    assert any(line.startswith("image-alt") for line in browser.run(ask))


def test_the_checks_would_see_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    cut = '<div class="scroll" tabindex="0" style="overflow:auto;width:99px"><p style="width:400px">cut</p></div>'
    svg = '<svg class="plot" viewBox="0 0 90 40"><text x="5" y="20">one</text><text x="9" y="21">two</text>'
    page.write_text(
        f'<body style="background:#fff;color:#bbb"><p style="width:900px">pale and wide</p>{cut}<img src="data:,">{svg}'
        '<text x="80" y="20">outside</text></svg><h3>deep</h3><table><tr><td>x</table>'
        "<script>console.error('oh'); fetch('http://127.0.0.1:9/')</script>",
        "utf-8",
    )
    browser.open(page, 390)
    found = " ".join(browser.run(LAYOUT))
    assert all(part in found for part in ("page is", "on one: two", "outside its figure: outside", "cut columns: cut"))
    found = " ".join(browser.run(ACCESS))
    assert all(part in found for part in ("contrast", "picture without", "figure without", "table without", "no main"))
    assert any("oh" in line for line in browser.complaints()) and "http://127.0.0.1:9/" in browser.complaints()


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages.get("demo", pages["full"]), 1400)
    column = "(() => [...table.tBodies[0].rows].map(row => Number(row.cells[at].dataset.sort)))()"
    browser.run(
        "var table = [...document.querySelectorAll('table')].find(t => t.getAttribute('aria-label').startsWith('Honest'));"
        "var at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === 'Top-1');"
        "var button = table.tHead.rows[0].cells[at].querySelector('button'); 0"
    )
    before = browser.run(column)
    browser.run("button.click()")
    assert browser.run(column) == sorted(before) != sorted(before, reverse=True)
    assert browser.run("button.parentElement.getAttribute('aria-sort')") == "ascending"
    browser.run("button.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
    assert browser.run(column) == sorted(before, reverse=True)
    assert browser.run("button.parentElement.getAttribute('aria-sort')") == "descending"


def test_every_link_on_the_page_leads_to_its_place(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("full", "comparison", *(["demo"] if "demo" in pages else [])):
        browser.open(pages[name], 390)
        links = browser.run("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        assert len(links) > 4 and all(link.startswith("#") for link in links)
        for index, link in enumerate(links):
            browser.run(f"scrollTo(0, 0); document.querySelectorAll('a')[{index}].click()")
            assert browser.run("location.hash") == link
            top = browser.run(f"document.querySelector({link!r}).getBoundingClientRect().top")
            end = browser.run("Math.abs(innerHeight + scrollY - document.documentElement.scrollHeight) < 2")
            assert -1 <= top < 60 or end, link


def test_it_prints(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.open(pages["full"], 1400, dark=True)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.open(pages["full"], 718)  # what A4 leaves between its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details')].every(fold => fold.open)")
    widest = (
        "Math.max(...[...document.querySelectorAll('table, figure, pre')].map(n => n.getBoundingClientRect().right))"
    )
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.run(widest) <= 718
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def _rows_are_found(browser: Browser, name: str) -> None:
    """A long table has a field above it that leaves the rows whose first cell holds what is typed."""
    browser.run(
        "var fields = [...document.querySelectorAll('input')], find = fields.find(f => f.placeholder.includes('1,000'));"
        "for (let fold = find; fold; fold = fold.parentElement?.closest('details')) fold.open = true;"
        "var rows = [...find.nextElementSibling.querySelector('table').tBodies[0].rows];"
        f"find.value = '{name.upper()[:9]}'; find.dispatchEvent(new Event('input')); 0"
    )
    left = "rows.filter(row => row.offsetHeight).map(row => row.cells[0].textContent.trim())"
    assert browser.run(left) == [name]
    browser.run("find.value = ''; find.dispatchEvent(new Event('input')); 0")
    assert len(browser.run(left)) == 1000


def test_a_thousand_classes(browser: Browser, tmp_path: Path) -> None:
    """Under 5 MB, and open in under two seconds of a core of its own."""
    record, generator = made_record(), np.random.default_rng(0)
    names = [f"n{index:08d} a class" for index in range(1000)]
    files_beside(tmp_path)
    rows = [
        {"class": name, "n": 50, "dense_top1": 0.8, "slim_top1": 0.8 + change / 100, "change_points": change}
        for name, change in zip(names, generator.normal(-1, 3, 1000).round(2).tolist(), strict=True)
    ]
    unit = generator.normal(size=(1000, 40)).astype(np.float32) + generator.normal(size=(1, 40)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    save_file({"similarity": unit @ unit.T}, tmp_path / "report-data" / "class-similarity.safetensors")
    record |= {"classes": names, "target_classes": names, "per_class": rows}
    record["paths"]["most_frequent"] |= {name: list(range(12)) for name in names}
    record["class_similarity"] = {"classes": names, "file": "report-data/class-similarity.safetensors"}
    page = write_report(record, tmp_path)[2]
    assert page.stat().st_size < 5e6
    assert page.read_text("utf-8").count("data:image/png;base64,") == 3
    browser.open(page, 390)
    assert browser.complaints() == []
    _rows_are_found(browser, names[123])
    took = min(browser.open(page, 1400) for _ in range(2))
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert took < 2 * busy
