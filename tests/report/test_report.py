"""The report's promises: it never crashes, escapes everything, invents no number and is the same bytes every time."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from records import Page, Record, files_beside, made_record, row

from vitprune.report import compare_reports, write_report
from vitprune.report.document import document
from vitprune.report.page.markdown import markdown
from vitprune.report.reading.beside import Beside

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`tick` ```fence",
    "${x}$ & \"q\" 'r'",
    "[l](javascript:x) ![i](x) @user",
]
HOSTILE += ["line\nbreak --> <!--", "\u202eevil\x00\udc80", "</svg></style></title><img src=x onerror=y>"]


@pytest.fixture(name="record")
def record_fixture() -> Record:
    return made_record()


def written(record: Record, folder: Path) -> tuple[str, str, Any]:
    """HTML, Markdown and parsed JSON of a report, read back."""
    files_beside(folder)
    paths = write_report(record, folder)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == ["report-data", "report.html", "report.json", "report.md"]
    return paths[2].read_text("utf-8"), paths[1].read_text("utf-8"), json.loads(paths[0].read_text("utf-8"))


def honest_table(page: Page) -> list[list[str]]:
    return next(rows for caption, rows in page.tables.items() if caption.startswith("Honest rows"))


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def test_discoveries_say_how_they_integrated(record: Record, tmp_path: Path) -> None:
    html, _, _ = written(record, tmp_path)
    rows = Page(html).tables["Scores of the probe split"]
    assert rows[1] == [
        "jas (joint-ig)",
        "50",
        "left, 7 nodes",
        "all",
        "400",
        "200\u202fms",
        "16 (down to 4)",
        "3.1e-04",
    ]


def test_complete_record_answers_every_question(record: Record, tmp_path: Path) -> None:
    html, text, parsed = written(record, tmp_path)
    assert parsed == record
    questions = ["What did I get", "Can I trust it", "How does it compare", "Where did it hurt", "What was kept"]
    questions += ["How do I deploy it", "How do I reproduce it"]
    headings = re.findall(r"^## \d\. (.*)\?$", text, flags=re.MULTILINE)
    assert headings == questions
    assert all(question in html for question in questions)
    assert "Not in the record" not in html
    assert "not complete" not in html
    assert "86.5\u202f%" in html
    assert "−0.86" in html
    assert "0.62×" in html
    assert "45\u202f% / 40\u202f%" in html
    assert "not a deployable accuracy" in html
    assert "not a deployable accuracy" in text
    assert html.count("<svg") == 9
    assert html.count("<img") == 2


def test_oracle_rows_stay_out_of_the_honest_table(record: Record, tmp_path: Path) -> None:
    html, _, _ = written(record, tmp_path)
    page = Page(html)
    tops = [line[2] for line in honest_table(page)[1:]]
    assert "91.01\u202f%" not in tops
    assert len(tops) == 6
    oracle = next(rows for caption, rows in page.tables.items() if caption.startswith("Oracle-routed"))
    assert [line[2] for line in oracle[1:]] == ["1", "5", "50"]


def test_an_oracle_headline_is_called_one(record: Record, tmp_path: Path) -> None:
    record["result"]["protocol"] = "oracle"
    html, _, _ = written(record, tmp_path)
    assert "This headline is oracle-routed" in html
    assert "Oracle-routed figures stand in the table and plot headed “Oracle-routed” and in the headline" in html


def test_every_number_of_the_honest_table_is_in_the_record(record: Record, tmp_path: Path) -> None:
    html, _, _ = written(record, tmp_path)
    known = numbers_in(record["rows"])
    scale = {"%": (100.0,), "k": (1e-3,), "M": (1e-6,), "": (1.0, 100.0)}
    seen = 0
    for line in honest_table(Page(html))[1:]:
        if line[0] == "random":
            continue
        for digits, decimals, unit in re.findall(r"([−+]?[\d,]+(?:\.(\d+))?)[\u202f]?(%|k|M)?", " ".join(line[2:])):
            shown = float(digits.replace("−", "-").replace(",", ""))
            error = 0.5 * 10.0 ** -len(decimals) + 1e-9
            assert any(abs(value * factor - shown) <= error for value in known for factor in scale[unit]), (
                line,
                digits,
            )
            seen += 1
    assert seen > 30


def test_random_draws_become_mean_and_deviation(record: Record, tmp_path: Path) -> None:
    html, _, parsed = written(record, tmp_path)
    line = next(line for line in honest_table(Page(html)) if line[:2] == ["random", "none"])
    assert line[2] == "56.00 ± 3.61\u202f%"
    assert line[3] == "3 seeds"
    assert sum(row["criterion"] == "random" for row in parsed["rows"]) == 4


@pytest.mark.parametrize(
    "partial",
    [
        {},
        {"name": "half", "complete": False, "missing": ["evaluate", "export"]},
        {"name": None, "complete": "yes", "rows": [1, {}, None], "result": [], "model": "x", "split": 3, "checks": {}},
        {"rows": [{"criterion": "dense", "protocol": "honest", "top1": None}], "result": {"top1": "high"}},
        {"paths": {"frequency": {"a": [[], ["x"]]}}, "class_similarity": {"classes": ["a"], "matrix": [[1, 2]]}},
        {"class_similarity": {"classes": ["a"], "matrix": [[None]]}, "per_class": [{}], "latency": [{}], "files": [{}]},
        {"model": {"widths_slim": [1], "params_dense": 0}, "stages": [{}], "results": {"g": None}, "missing": "all"},
    ],
)
def test_partial_records_say_what_is_missing(partial: Record, tmp_path: Path) -> None:
    html, text, _ = written(partial, tmp_path)
    assert "This run is not complete" in html
    assert "Not in the record" in html
    assert "Not in the record" in text
    for name in ("evaluate", "export") if partial.get("name") == "half" else ():
        assert name in html


def test_every_key_may_be_absent(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitprune.report.page.svg.render", lambda *_: "<svg></svg>")  # drawn elsewhere, and slow
    for key in record:
        html, _, _ = written({name: value for name, value in record.items() if name != key}, tmp_path / key)
        assert html.endswith("</html>\n")
    for key in record["result"]:
        broken = copy.deepcopy(record)
        for line in (broken["result"], *broken["rows"]):
            line.pop(key, None)
        written(broken, tmp_path / f"result-{key}")


@pytest.mark.parametrize(
    "junk", [None, "x", -3, 1e300, 10**400, [], {}, [{}], [None], {"a": [1]}, True], ids=lambda junk: repr(junk)[:12]
)
def test_every_value_may_be_wrong(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: Any) -> None:
    for plot in ("accuracy_dots", "accuracy_curves", "class_changes", "widths"):
        monkeypatch.setattr(f"vitprune.report.plots.plots.{plot}", lambda *_: "<svg></svg>")
    for plot in ("violins", "curves", "heat_map"):
        monkeypatch.setattr(f"vitprune.report.plots.unit_plots.{plot}", lambda *_: "<svg></svg>")
    for plot in ("confusion", "reliability"):
        monkeypatch.setattr(f"vitprune.report.plots.matrices.{plot}", lambda *_: "<svg></svg>")
    files_beside(tmp_path)
    beside = Beside(tmp_path)
    for key, value in record.items():
        assert markdown(document({**record, key: junk}, beside))
        for inner in value if isinstance(value, dict) else ():
            assert markdown(document({**record, key: {**value, inner: junk}}, beside))
        if value and isinstance(value, list) and isinstance(value[0], dict):
            for inner in value[0]:
                broken = [item | {inner: junk} for item in value]
                assert markdown(document({**record, key: broken}, beside))


def test_not_a_number_is_null_and_never_drawn(record: Record, tmp_path: Path) -> None:
    nan = float("nan")
    record["rows"][1] |= {"top1": nan, "top1_ci95": [nan, nan]}
    record["per_class"][0]["change_points"] = nan
    record["class_similarity"]["matrix"][0][1] = float("inf")
    html, text, parsed = written(record, tmp_path)
    assert parsed["rows"][1]["top1"] is None
    assert "nan" not in html.lower().replace("nano", "")
    assert "nan" not in text.lower()


def test_hostile_names_stay_text(record: Record, tmp_path: Path) -> None:
    name = "".join(HOSTILE)
    record |= {"name": name, "command": name, "recipe_yaml": name, "notes": HOSTILE, "missing": HOSTILE}
    record["classes"] = record["target_classes"] = HOSTILE
    record["per_class"] = [{**record["per_class"][0], "class": text} for text in HOSTILE]
    record["paths"] |= {"shown": HOSTILE[:2], "most_frequent": {text: [1, 2] for text in HOSTILE}}
    record["worst"][""][0] |= {"class": name, "image": name, "slim_class": name}
    record["confusions"][""] = [{"class": text, "taken_for": text, "dense": 1, "slim": 2} for text in HOSTILE]
    size = range(len(HOSTILE))
    record["class_similarity"] = {"classes": HOSTILE, "matrix": [[0.5 for _ in size] for _ in size]}
    record["rows"] += [row(text, 0.7, group=text, recovery=text) for text in HOSTILE]
    record["results"] = {text: row(text, 0.7) for text in HOSTILE}
    record["files"] += [{"path": f"{text}.onnx", "what": text} for text in HOSTILE]
    html, text, _ = written(record, tmp_path)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in page.tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\u202e" not in html + text
    assert "\x00" not in html + text
    assert any("<script>alert(1)</script>" in text for text in page.text)
    assert_markdown_is_tame(text)


def assert_markdown_is_tame(text: str) -> None:
    """GitHub's dialect of it makes no element of a name, and every table row keeps its columns."""
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    tags = {tag for tag, _ in Page(rendered.replace("<table>", '<table aria-label="t">')).tags}
    assert not tags & {"script", "img", "a", "style"}
    for table in re.findall(r"<table>.*?</table>", rendered, flags=re.DOTALL):
        assert (
            len({len(re.findall(r"<t[hd][ >]", line)) for line in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}) == 1
        )
    assert not re.search(r"^\|.*[^|\n]$", text, flags=re.MULTILINE)


def test_same_record_same_bytes(record: Record, tmp_path: Path) -> None:
    assert written(record, tmp_path / "a") == written(copy.deepcopy(record), tmp_path / "b")


def test_page_is_self_contained_and_accessible(record: Record, tmp_path: Path) -> None:
    html, _, _ = written(record, tmp_path)
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    page = Page(html)
    for tag, attributes in page.tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert tag != "img" or attributes["alt"]
        assert tag not in ("link", "iframe", "object")
        assert (attributes.get("href") or "#").startswith("#")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    references |= {name for found in re.findall(r'labelledby="([^"]+)"', html) for name in found.split()}
    assert references <= set(ids)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert '<html lang="en">' in html
    assert 'class="skip"' in html
    assert "prefers-color-scheme" in html


def test_a_thousand_classes_still_fit_a_pull_request(record: Record, tmp_path: Path) -> None:
    record["per_class"] = [
        {"class": f"class {index}", "n": 50, "dense_top1": 0.8, "slim_top1": 0.7, "change_points": -index / 100}
        for index in range(1000)
    ]
    html, text, _ = written(record, tmp_path)
    assert "All 1,000 classes" in html
    assert "900 more rows" in text
    assert len(text) < 65536


def test_a_failed_check_leads_the_page(record: Record, tmp_path: Path) -> None:
    record["checks"].append({"name": "ONNX agrees", "passed": False, "value": 3, "limit": 1})
    html, text, _ = written(record, tmp_path)
    assert html.index("Failed: ONNX agrees") < html.index('id="result"')
    assert "✗ failed" in html
    assert "1 of 2 checks failed" in text


def test_groups_have_their_table(record: Record, tmp_path: Path) -> None:
    record["results"] = {"footwear": row("jas", 0.9, group="footwear"), "tops": row("jas", 0.8, group="tops")}
    html, _, _ = written(record, tmp_path)
    assert [line[0] for line in Page(html).tables["Exported models, one per group"][1:]] == ["footwear", "tops"]


def test_values_json_cannot_hold_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"record\.hashes\.model is a bytes"):
        write_report({"hashes": {"model": b"x"}}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_comparison_of_two_runs(record: Record, tmp_path: Path) -> None:
    other = copy.deepcopy(record)
    other["recipe"] = {"seed": 1}
    other["result"]["top1"] = 0.8123
    paths = compare_reports([(Path("a/report.json"), record), (Path("b/report.json"), other)], tmp_path)
    assert [path.name for path in paths] == ["comparison.md", "comparison.html"]
    html = paths[1].read_text("utf-8")
    assert "86.49\u202f%" in html
    assert "81.23\u202f%" in html
    assert "the figures may be compared" in html
    assert [line[0] for line in Page(html).tables["Exported models"][1:]] == ["demo (1)", "demo (2)"]
    assert Page(html).tables["Recipe settings that differ"][1:] == [["seed", "0", "1"]]


def test_comparison_of_unlike_runs_warns(record: Record, tmp_path: Path) -> None:
    other = copy.deepcopy(record)
    other["hashes"]["split"] = "other"
    runs = [(Path("a"), record), (Path("b"), other), (Path("|<b>"), {"complete": False, "missing": 3})]
    html = compare_reports(runs, tmp_path)[1].read_text("utf-8")
    assert "Compare each run with its own dense model only" in html
    assert "hash of the split" in html
    assert "unnamed run is not complete" in html
    assert "<b>" not in html
    for few in ([], runs[:1]):
        assert compare_reports(few, tmp_path / str(len(few)))


def test_schema_describes_the_record(record: Record) -> None:
    import vitprune.report

    schema = json.loads((Path(vitprune.report.__file__).parent / "schema.json").read_text("utf-8"))
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(schema["required"]) <= set(record) <= set(schema["properties"])
    described = schema["$defs"]["row"]
    for line in record["rows"]:
        assert set(described["required"]) <= set(line) <= set(described["properties"])
    for key in ("split", "model", "paths", "class_similarity"):
        assert set(record[key]) <= set(schema["properties"][key]["properties"])


def test_no_torch_is_needed() -> None:
    code = "import sys, vitprune.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
