"""The first section and what it computes: the verdict, power, dense beside slim, groups; calibration, confusions, places."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from records import Record, answers, files_beside, made_record, row
from safetensors.numpy import save_file
from scipy.stats import binom

from vitprune.exam import paired
from vitprune.report import write_report
from vitprune.report.document import document
from vitprune.report.page.blocks import Fold, Section, Table, Text
from vitprune.report.plots import plots
from vitprune.report.reading import places, predictions
from vitprune.report.reading.beside import Beside
from vitprune.report.sections.comparing.contenders import comparison_section
from vitprune.report.sections.verdict import sentence
from vitprune.report.sections.verdict.dense_slim import models_of
from vitprune.report.sections.verdict.groups import groups_blocks


@pytest.fixture(name="record")
def record_fixture() -> Record:
    return made_record()


# ---- what so many images can show


def power(loss: float, differing: float, n: int) -> float:
    """How often McNemar's exact test at 5 % shows a loss, by every number of images that only one model gets right."""
    share = (differing + loss) / 2 / differing
    total = 0.0
    for m in range(n + 1):
        if (weight := binom.pmf(m, n, differing)) < 1e-9:
            continue
        for lost in range(m + 1):
            p = min(1.0, 2 * binom.cdf(min(lost, m - lost), m, 0.5))
            total += weight * binom.pmf(lost, m, share) * (p < 0.05)
    return total


def test_the_loss_that_so_many_images_show() -> None:
    """At the loss that is told, the exact test finds it in about four cases of five; at half of it seldom."""
    n, differing = 300, 30
    loss = paired.detectable(differing, n)
    assert 0.68 < power(loss, differing / n, n) < 0.85  # the exact test is a little stricter than the formula
    assert power(loss / 2, differing / n, n) < 0.4


@pytest.mark.parametrize(("differing", "n"), [(0, 1), (0, 500), (5, 5), (44, 2000), (81, 1983), (1, 100000)])
def test_the_formula_of_power_by_hand(differing: int, n: int) -> None:
    loss = paired.detectable(differing, n)
    share = max(differing / n, loss)
    need = 1.959963984540054 * math.sqrt(share) + 0.8416212335729143 * math.sqrt(max(0.0, share - loss**2))
    assert math.sqrt(n) * loss == pytest.approx(need, rel=1e-6) or loss == 1.0
    assert (0 < loss <= 1 and paired.detectable(differing, 4 * n) < loss) or loss == 1.0


def test_the_paired_interval_is_the_bound_from_both_sides() -> None:
    for lost, gained, n in ((0, 0, 9), (30, 14, 2000), (14, 30, 2000), (3, 0, 3)):
        low, high = paired.interval(lost, gained, n)
        assert low <= (lost - gained) / n <= high and low < high
        assert (-high, -low) == pytest.approx(paired.interval(gained, lost, n))
        assert high == paired.upper(lost, gained, n, 0.975)


# ---- the verdict


def lead(record: Record) -> tuple[str, str]:
    found = [block.text for block in sentence.verdict(record, record["result"]) if isinstance(block, Text)]
    return found[0], found[1] if len(found) > 1 else ""


def test_the_verdict_says_what_was_lost_whether_random_did_as_well_and_whether_images_tell(record: Record) -> None:
    said, detail = lead(record)
    assert said == (
        "0.86 points of top-1 lost; random units with the same repair did as well; these images cannot tell the two "
        "models apart."
    )
    low, high = (f"{-100 * x:.2f}".replace("-", "−") for x in paired.interval(46, 29, 1983)[::-1])
    assert f"{low} to {high.removeprefix('−')} points" in detail and float(high.removeprefix("−")) == 0.0
    assert "86.33" in detail and "p 0.61" in detail and "p 0.064" in detail and "differ on 75" in detail
    assert f"{100 * paired.detectable(75, 1983):.2f} points or more in four cases of five" in detail


def test_random_units_that_lost_more_are_told_so(record: Record) -> None:
    random = next(r for r in record["rows"] if r["criterion"] == "random" and r["recovery"] == "affine")
    random |= {"top1": 0.8012, "mcnemar_p": 0.0001}
    assert "random units with the same repair lost 6.37 points more" in lead(record)[0]
    random["allocation"] = "of another kind"
    said, detail = lead(record)
    assert "random units with the same repair, in other widths per block, lost 6.37 points more" in said
    assert "in other widths per block: 80.12" in detail
    record["rows"].remove(random)
    assert "random units with the same repair were not examined" in lead(record)[0]
    record["result"]["criterion"] = "random"
    assert "the units were chosen at random" in lead(record)[0]


def test_an_old_record_and_an_oracle_have_no_more_of_a_verdict_than_they_can(record: Record) -> None:
    for made in record["rows"]:
        for key in ("mcnemar_p", "only_right", "dense_p", "dense_only_right"):
            made.pop(key, None)
    assert lead(record)[0] == "0.86 points of top-1 lost; random units with the same repair lost 0.16 points more."
    record["result"]["protocol"] = "oracle"
    assert sentence.verdict(record, record["result"]) == []


def test_the_verdict_is_the_first_thing_said(record: Record, tmp_path: Path) -> None:
    files_beside(tmp_path)
    page = write_report(record, tmp_path)[2].read_text("utf-8")
    main = page[page.index("<main") :]
    assert re.search(r"<p[^>]*>(.*?)</p>", main, re.S)[1].startswith("0.86 points of top-1 lost")  # type: ignore[index]
    assert main.index('class="lead"') < main.index('class="numbers"') < main.index('class="bar"')


# ---- dense beside slim


def test_dense_stands_beside_every_file(record: Record) -> None:
    found = {model.name: model for model in models_of(record, record["result"])}
    assert list(found) == ["dense", "slim fp32", "slim int8"]
    assert (found["dense"].ms, found["slim fp32"].ms, found["slim int8"].ms) == (1.21, 0.75, 0.44)
    assert (found["dense"].size, found["slim int8"].size) == (2735274, 421007)
    assert (found["slim fp32"].top1, found["slim int8"].top1) == (0.8649, 0.8588)


def test_files_of_the_other_budgets_and_groups_are_not_the_exported_models(record: Record) -> None:
    record["result"]["budget"] = {"macs": 0.5}
    record["frontier"] = [{"budget": {"macs": 0.5}, "folder": "macs-0.5", "top1": 0.8}]
    assert [model.size for model in models_of(record, record["result"])] == [2735274, None]
    record["export"]["files"][1]["path"] = "macs-0.5/model.int8.onnx"
    assert [model.size for model in models_of(record, record["result"])] == [2735274, None, 421007]


# ---- groups


def specialist(group: str, model: str, head: str, top1: float) -> Record:
    made: Record = {"group": group, "classes": ["shirt"], "model": model, "head": head, "top1": top1, "n": 990}
    made |= {"top1_all_classes": top1 / 2, "n_other": 993}
    return made | {
        f"{name}_{score}": 0.9 - top1 / 9 for name in ("auroc", "fpr95") for score in ("max_softmax", "energy")
    }


def test_all_groups_stand_in_one_table_with_generic_and_strangers(record: Record) -> None:
    record["results"] = {g: row("jas", 0.8, group=g, head="masked") for g in ("tops", "shoes")}
    record["results"]["shoes"]["top1_change_points"] = 0.4
    record["specialists"] = [
        specialist(group, model, head, 0.7 + k / 100)
        for k, (group, model, head) in enumerate(
            itertools.product(("tops", "shoes"), ("dense", "generic", "specialist"), ("all", "masked"))
        )
    ]
    blocks = groups_blocks(record)
    assert isinstance(blocks[0], Text) and "in tops (the worst) to +0.40 in shoes" in blocks[0].text
    assert isinstance(blocks[1], Table) and [r.cells[0].text for r in blocks[1].rows] == ["tops", "shoes"]
    assert [cell.sort for cell in blocks[1].rows[0].cells[1:4]] == pytest.approx([0.71, 0.73, 0.75])
    assert blocks[1].rows[0].cells[7].sort == pytest.approx(0.9 - 0.75 / 9)
    fold = next(block for block in blocks if isinstance(block, Fold))
    assert [len(t.rows) for t in fold.blocks if isinstance(t, Table)] == [2, 12]
    first = document(record, Beside(None)).sections[0].blocks
    assert first[:2] == tuple(blocks[:2])


# ---- comparison


def table_of(section: Section) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table))


def test_the_exported_row_is_first_and_what_is_at_chance_is_folded(record: Record) -> None:
    section = comparison_section(record, Beside(None))
    honest = table_of(section)
    assert [(r.cells[0].text, r.tag) for r in honest.rows[:2]] == [("jas", "exported"), ("dense", "")]
    assert "noise" not in [r.cells[0].text for r in honest.rows]
    folded = next(block for block in section.blocks if isinstance(block, Fold))
    assert folded.summary.startswith("1 more row, no better than") and isinstance(folded.blocks[0], Table)
    assert [r.cells[0].text for r in folded.blocks[0].rows] == ["noise"]
    record["result"] = next(r for r in record["rows"] if r["criterion"] == "noise")
    assert table_of(comparison_section(record, Beside(None))).rows[0].cells[0].text == "noise"


def test_change_and_p_are_both_against_dense(record: Record) -> None:
    record["rows"][3] |= {"dense_p": 0.0023, "mcnemar_p": 0.5432}
    honest = table_of(comparison_section(record, Beside(None)))
    at = honest.columns.index(">p")
    assert honest.columns[at - 1] == ">Change, points" and honest.columns[at + 1] == ">p exported"
    taylor = next(r for r in honest.rows if r.cells[0].text == "taylor")
    assert [cell.text for cell in taylor.cells[at : at + 2]] == ["0.0023", "0.54"]


# ---- answers


def test_calibration_by_hand() -> None:
    generator = np.random.default_rng(0)
    sure = generator.random(400).astype(np.float32)
    right = generator.random(400) < 0.7
    found = predictions.reliability(sure, right)
    ece = by_chance = 0.0
    for k in range(predictions.BINS):
        inside = [i for i in range(400) if min(int(float(sure[i]) * 15), 14) == k]
        if inside:
            c, a = (sum(float(x[i]) for i in inside) / len(inside) for x in (sure, right))
            ece += len(inside) / 400 * abs(c - a)
            by_chance += len(inside) / 400 * math.sqrt(2 / math.pi * c * (1 - c) / len(inside))
    assert (found.ece, found.chance) == pytest.approx((ece, by_chance), abs=1e-9)
    assert found.images.sum() == 400
    certain = predictions.reliability(np.ones(9, np.float32), np.ones(9, bool))
    assert (certain.ece, certain.chance) == (0.0, 0.0)


def test_a_calibrated_models_error_is_that_of_chance() -> None:
    generator, errors = np.random.default_rng(1), []
    sure = generator.random(500)
    for _ in range(200):
        errors.append(predictions.reliability(sure, generator.random(500) < sure).ece)
    assert np.mean(errors) == pytest.approx(predictions.reliability(sure, sure > 2).chance, rel=0.05)


def test_flips_and_the_whole_matrix_are_counted_one_by_one(record: Record, tmp_path: Path) -> None:
    files_beside(tmp_path)
    found, columns = predictions.read(record, "", Beside(tmp_path)), answers()
    assert found is not None
    hits = [columns[name] == columns["label"] for name in ("dense", "slim")]
    assert found.flips() == (
        int((hits[0] & ~hits[1]).sum()), int((~hits[0] & hits[1]).sum()), int((hits[0] & hits[1]).sum()),
        int((~hits[0] & ~hits[1]).sum()),
    )  # fmt: skip
    assert found.flips()[:2] == (46, 29)
    whole = found.confusion()
    assert whole is not None
    outputs, dense, slim = whole
    assert [found.name(o) for o in outputs] == ["shirt", "boot", "bag"] and found.name(7) == "output 7"
    for (i, a), (j, b) in itertools.product(enumerate(outputs), repeat=2):
        for name, counts in (("dense", dense), ("slim", slim)):
            assert counts[i, j] == sum((columns["label"] == a) & (columns[name] == b))


@pytest.mark.parametrize("change", [
    {"label": np.zeros((3, 3), np.int64)}, {"slim": np.zeros(3, np.float32)}, {"dense": np.zeros(2, np.int64)},
    {"label": np.zeros(0, np.int64)},
])  # fmt: skip
def test_answers_that_do_not_fit_together_are_not_read(record: Record, tmp_path: Path, change: Record) -> None:
    files_beside(tmp_path)
    save_file(answers() | change, tmp_path / "report-data" / "all.safetensors")
    assert predictions.read(record, "", Beside(tmp_path)) is None


def test_too_many_outputs_make_no_matrix() -> None:
    many = np.arange(predictions.MAX_OUTPUTS + 1)
    assert predictions.Predictions(many, {"dense": many, "slim": many}, {}, {}).confusion() is None


# ---- places


def test_no_absolute_path_is_on_the_page(record: Record, tmp_path: Path) -> None:
    path = "/home/someone/photos"
    windows = "C:\\Users\\someone\\photos"
    record |= {
        "command": f"vitprune run {path}/r.yaml",
        "recipe_yaml": f"data: {{path: {path}}}",
        "notes": [f"in {windows}"],
    }
    record |= {"usage": f"vitprune.load({path!r})", "classes": ["/m/01g317", "and/or"]}
    record["checks"][0]["detail"] = f"({path})"
    record["split"]["skipped"][0]["path"] = f"{path}/a.jpg"
    record["model"]["name"] = f"local-dir:{path}"
    record["worst"][""][0]["image"] = f"{path}/b.jpg"
    record["per_class"][0]["class"] = "/m/01g317"
    files_beside(tmp_path)
    for text in (path_text.read_text("utf-8") for path_text in write_report(copy.deepcopy(record), tmp_path)[1:]):
        assert "someone" not in text and "/home" not in text
        assert "01g317" in text
    assert places.told({"notes": ["1.8/s, a/b/c, https://x.org/a/b and ./a/b"]})["notes"] == [
        "1.8/s, a/b/c, https://x.org/a/b and ./a/b"
    ]


def test_the_lines_for_onnxruntime_are_python(record: Record) -> None:
    deploy = next(s for s in document(record, Beside(None)).sections if s.key == "deploy")
    codes = [block for block in deploy.blocks if block.kind == "code"]
    assert [getattr(code, "language", "") for code in codes] == ["sh", "python", "sh"]
    compile(getattr(codes[1], "text", ""), "usage", "exec")


def test_wide_tables_can_become_lists(record: Record, tmp_path: Path) -> None:
    """What the style sheet needs for it stands in the page, so that it needs no script: the class and every label."""
    files_beside(tmp_path)
    page = write_report(record, tmp_path)[2].read_text("utf-8")
    wide = 0
    for table in re.findall(r"<table.*?</table>", page, re.S):
        titles = re.findall(r"<th scope=\"col\".*?>(.*?)</th>", table)
        kind = re.match(r'<table(?: class="([a-z ]+)")? aria-label', table)
        assert kind is not None
        least = [(10, "many most"), (7, "many"), (4, "some")]
        assert kind[1] == next((name for n, name in least if len(titles) > n), None)
        for line in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]:
            labels = re.findall(r'data-label="(.*?)"', line)
            assert labels == (titles[1:] if kind[1] else [])
            wide += bool(labels)
    assert wide > 5 and all(f"table.{name} tbody tr" in page for name in ("some", "many"))


def test_labels_of_an_axis_do_not_run_into_each_other() -> None:
    """Of two measured values that are close one is named, the last always; all keep their ticks."""
    assert plots._apart([5.36, 5.93, 7.32, 16.6]) == {0, 2, 3}
    assert plots._apart([1.0, 2.0, 9.9, 10.0]) == {0, 1, 3}
    assert plots._apart([3.0]) == {0}
    points = [plots.Point("", f"m{n}", 0.9, x=x) for n, x in enumerate((5.36, 5.93, 7.32, 16.6))]
    svg = plots.accuracy_curves("trade", points, None, "chart", "ms")
    assert ">5.36<" in svg and ">5.93<" not in svg and ">7.32<" in svg and ">16.6<" in svg
