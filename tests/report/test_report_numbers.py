"""Every number that a page shows is in report.json, in a file it names, or follows from them by a rule named here."""

from __future__ import annotations

import json
import re
import statistics
from typing import Any

import pytest
from records import Page, Record, answers, compare_beside, files_beside, made_record

from vitprune.exam import paired
from vitprune.report import write_report
from vitprune.report.reading.predictions import reliability

NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[−+-]?)(?P<whole>\d[\d,]*)(?:\.(?P<decimals>\d+))?(?P<e>e-\d\d)?"
    r"(?:\u202f?(?P<unit>%|kB|MB|GB|k|M|G|ms|s|×)(?!\w))?(?!\w)"
)
SCALES = {"%": [100.0], "k": [1e-3], "M": [1e-6], "G": [1e-9], "kB": [1e-3], "MB": [1e-6, 1.0], "GB": [1e-9]}
SKIPPED = ("svg", "style", "script")  # a figure's axes are a scale, its data are in the tables


class Visible(Page):
    """Text outside figures, one string per text node."""

    def __init__(self, text: str) -> None:
        self.depth, self.seen = 0, []
        super().__init__(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        super().handle_starttag(tag, attrs)
        self.depth += tag in SKIPPED

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        self.depth -= tag in SKIPPED

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        self.seen += [data] if not self.depth and data.strip() else []


def values(value: Any) -> tuple[list[float], list[str]]:
    """Every number, the length of every list and object, and every text (keys included) of JSON."""
    if isinstance(value, dict | list):
        numbers, texts = [float(len(value))], [str(key) for key in value] if isinstance(value, dict) else []
        for more, names in map(values, value.values() if isinstance(value, dict) else value):
            numbers += more
            texts += names
        return numbers, texts
    if isinstance(value, bool) or value is None:
        return [], []
    return ([float(value)], [str(value)]) if isinstance(value, (int, float)) else ([], [value])


def derived(record: Record) -> list[float]:
    """Figures that the page computes: ratios to dense, mean and deviation of draws, counts, times per image, sums."""
    model, rows = record["model"], record["rows"]
    draws = [row for row in rows if row["criterion"] == "random" and row["recovery"] == "none"]
    random = [row["top1"] for row in draws]
    found = [model[f"{key}_slim"] / model[f"{key}_dense"] for key in ("params", "macs")]
    found += [slim / dense for slim, dense in zip(model["widths_slim"], model["widths_dense"], strict=True)]
    for key in ("top1", "mean_true_probability", "top1_change_points"):
        found.append(statistics.fmean(row[key] for row in draws))
    found += [statistics.stdev(random), float(len(random))]
    for protocol in ("honest", "oracle"):
        found.append(float(sum(row["protocol"] == protocol for row in rows)))
    changes = [row["change_points"] for row in record["per_class"]]
    found += [float(sum(c < 0 for c in changes)), float(sum(c > 0 for c in changes))]
    found.append(1 / min(row["n"] for row in record["per_class"]) * 100)
    found += [cost["seconds"] / cost["images"] * 1000 for cost in record["discoveries"]]
    found.append(sum(stage["seconds"] for stage in record["stages"]))
    found += [*of_answers(record), 255.0]  # of a pixel's values, in the lines for onnxruntime
    found += [float(len(model["widths_dense"])), *map(float, range(len(model["widths_dense"])))]
    return found


def of_answers(record: Record) -> list[float]:
    """What follows from the answers and from the images that only one model gets right: see test_verdict.py for each."""
    found, columns = [], answers()
    hits = {name: columns[name] == columns["label"] for name in ("dense", "slim")}
    found += [float((hits["dense"] & hits["slim"]).sum()), float((~hits["dense"] & ~hits["slim"]).sum())]
    for name, hit in hits.items():
        sure = columns[f"{name}_confidence"]
        made = reliability(sure, hit)
        found += [made.ece, made.chance, float(sure.mean()), float(hit.mean())]
    lost, gained = record["rows"][0]["only_right"]
    found += [-100 * edge for edge in paired.interval(lost, gained, record["result"]["n"])]
    return [*found, 100 * paired.detectable(lost + gained, record["result"]["n"]), float(lost + gained)]


def unexplained(page: str, record: Record, known: list[float], texts: list[str]) -> tuple[list[str], int]:
    """Shown numbers that no known one rounds to, and how many were looked at."""
    bare = {text for text in texts if any(c.isdigit() for c in text)}
    lost, seen = [], 0
    for text in Visible(page).seen:
        if text.strip() in bare or text == "SHA-256":
            continue
        for name in sorted(bare, key=len, reverse=True):
            text = text.replace(name, " ") if not re.fullmatch(r"[\d.]+", name) else text
        for match in NUMBER.finditer(text):
            seen += 1
            decimals, e = match["decimals"] or "", match["e"] or ""
            shown = float(f"{match['whole'].replace(',', '')}.{decimals or 0}{e}")
            step = 0.5 * 10.0 ** -len(decimals) * float(f"1{e}") + 1e-9
            signs = (1.0, -1.0) if match["sign"] in ("", "-") else (-1.0,) if match["sign"] == "−" else (1.0,)
            scales = SCALES.get(match["unit"] or "", [1.0])
            if not match["unit"]:
                scales = [1.0, 100.0]  # an interval's first number, as in 85.3 to 87.7 %
            if not any(abs(sign * v * s - shown) <= step * 1.001 for v in known for s in scales for sign in signs):
                lost.append(f"{match[0]} in {text.strip()[:60]}")
    return lost, seen


# What our own sentences say: 95 % intervals, section numbers, p below 0.0001, 15 bins, "1 − similarity", 0 as exact.
PROSE = [0.95, 0.0001, 1.0, 0.0, 15.0, *map(float, range(1, 8))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Record, list[float], list[str]]:
    folder = tmp_path_factory.mktemp("numbers")
    files_beside(folder)
    compare_beside(folder)
    paths = write_report(made_record(), folder)
    record = json.loads(paths[0].read_text("utf-8"))
    assert record["compare"] == "compare.json"
    known, texts = values(record)
    more, names = values(json.loads((folder / "compare.json").read_text("utf-8")))
    return paths[2].read_text("utf-8"), record, known + more + derived(record) + PROSE, texts + names


def test_every_number_on_the_page_is_known(page: tuple[str, Record, list[float], list[str]]) -> None:
    lost, seen = unexplained(*page)
    assert lost == []
    assert seen > 200


def test_an_invented_number_would_be_noticed(page: tuple[str, Record, list[float], list[str]]) -> None:
    html, record, known, texts = page
    for invented in ("86.27\u202f%", "−7.77", "1,984", "0.0377", "3.33\u202fms", "47.1\u202fMB"):
        lost, _ = unexplained(html.replace("</main>", f"<p>{invented}</p></main>"), record, known, texts)
        assert len(lost) == 1, invented
