"""The page of a vision-language model: what it says, that it escapes, that nothing in a record can break it; whole steps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browser import CHROMIUM, Browser
from page_checks import ACCESS, LAYOUT
from typer.testing import CliRunner
from vlms import folder, pairs

from vitprune.api.vlm import ahead, record, steps, verbs
from vitprune.api.vlm import road as roads
from vitprune.cli.app import app
from vitprune.core import files
from vitprune.core.errors import UserError
from vitprune.core.ledger import Ledger
from vitprune.core.progress import Reporter
from vitprune.report.document import document
from vitprune.report.page.html import html
from vitprune.report.page.markdown import markdown
from vitprune.report.reading.beside import Beside

CLI = CliRunner()
EVIL = "<script>alert(1)</script> & [x](http://evil.example) \u202e"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, 40 pairs, and a finished run of them."""
    made = tmp_path_factory.mktemp("page")
    folder(made / "model")
    pairs(made / "data", 40)
    done = CLI.invoke(app, ["run", str(written(made))])
    assert done.exit_code == 0, done.output
    return made


def written(place: Path, **changed: Any) -> Path:
    content = {
        "name": "run", "model": {"name": "transformers:model"}, "data": {"pairs": "data/pairs.jsonl"}, "keep": 0.5,
        "see": {"types": {"rule": "counts"}, "units": {"per_type": 2}}, "out": str(place / "out"),
    }  # fmt: skip
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (content | changed).items() if v is not None}))
    return path


def test_the_page_says_what_the_record_does(place: Path) -> None:
    run = place / "out" / "run"
    found, page, text = (
        json.loads((run / "report.json").read_text()),
        *((run / f"report.{e}").read_text() for e in ("html", "md")),
    )
    for shown in (page, text):
        plain = re.sub(r"[\\\u202f]", "", shown)
        for row in found["exam"]:
            for way in ("right", "shuffled", "none", "alone", "reliance"):
                assert f"{row['nll'][way]:.3f}".replace("-", "−") in plain
        assert "Vision block 2: no logit depends on" in plain and "drop_dead: true" in plain
        for unit in found["units"]["units"]:
            assert unit["unit"] in plain
        assert "from_pretrained" in shown and "vitprune run" in shown and "Halves agree" in plain
        assert str(place) not in shown and str(Path.home()) + "/" not in shown
    assert "random units at the same widths under the same repair" in page
    assert page.count('class="plot"') == 2 and page.count("data:image/png") == sum(
        bool(u["picture"]) for u in found["units"]["units"]
    )
    assert not re.search(r'(src|href)="(?!data:|#)', page) and found["usage"] in page.replace("&#39;", "'")
    loaded: dict[str, Any] = {}
    exec(
        found["usage"].replace("'model'", repr(str(run / "model"))).replace("'run/model'", repr(str(run / "model"))),
        loaded,
    )
    assert sum(p.numel() for p in loaded["model"].parameters()) == found["exam"][1]["parameters"]


def test_report_writes_the_page_again(place: Path) -> None:
    run = place / "out" / "run"
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    done = CLI.invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and (run / "report.html").read_text() == before


def spoiled(value: Any, place: int, junk: Any) -> tuple[Any, int]:
    """The value with its `place`-th part replaced by junk, and how many parts were passed by."""
    if place == 0:
        return junk, 1
    seen = 1
    if isinstance(value, dict | list):
        every = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        made: list[Any] = []
        for key, part in every:
            new, passed = spoiled(part, place - seen, junk)
            seen += passed
            made.append((key, new))
        return (dict(made) if isinstance(value, dict) else [part for _, part in made]), seen
    return value, seen


@pytest.mark.sample(1)
@pytest.mark.parametrize("part", range(16))
def test_no_record_breaks_the_page(part: int, place: Path) -> None:
    """Any part of a record may be anything; text stays text."""
    beside = Beside(place / "out" / "run")
    found = json.loads((place / "out" / "run" / "report.json").read_text())
    found |= {"stages": [], "versions": {}, "machine": {}, "recipe_yaml": ""}
    found["exam"] = [row | {"each": []} for row in found["exam"]]
    found["types"]["rules"] = {"counts": found["types"]["rules"]["counts"]}
    count = spoiled(found, 10**9, None)[1]
    for n in range(1 + part * count // 64, count, max(1, count // 4)):
        for junk in (EVIL, None, {"x": [EVIL, -1e300]}):
            made = spoiled(found, n, junk)[0]
            if isinstance(made, dict) and made.get("kind") == "vision-language":
                sections = document(made, beside)
                text = re.sub(
                    r"```.*?```", "", markdown(sections), flags=re.DOTALL
                )  # what stands there is shown as it is
                assert "<script>" not in text and "](http" not in text and "\u202e" not in text
    page = html(document(found | {"said": EVIL, "model": EVIL, "name": EVIL, "usage": EVIL, "command": EVIL}, beside))
    assert page.count("<script>") == 1 and "alert(1)&lt;/script&gt;" in page  # the page's own
    assert len(html(document({"kind": "vision-language"}, beside))) > 1000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_at_any_width(place: Path, tmp_path: Path) -> None:
    page = place / "out" / "run" / "report.html"
    with Browser(tmp_path / "profile") as browser:
        for width in (1400, 390):
            for dark in (False, True):
                browser.open(page, width, dark)
                assert browser.run(LAYOUT) == [] and browser.run(ACCESS) == [] and browser.complaints() == []


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are examined from now on, by name."""
    found: list[str] = []
    before = roads.Road._row

    def row(self: Any, name: str, model: Any) -> Any:
        found.append(name)
        return before(self, name, model)

    monkeypatch.setattr(roads.Road, "_row", row)
    return found


@pytest.mark.slow
def test_a_step_is_whole_or_done_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, done = place / "out" / "run" / "model", counted(monkeypatch)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()  # alone
    assert CLI.invoke(app, ["run", str(written(place))]).exit_code == 0
    assert done == ["fisher-obs"] and (model / "model.safetensors").read_bytes() == weights
    (model / "model.safetensors").write_bytes(weights[:100])
    (place / "out" / "run" / "see" / "units" / "x").parent.mkdir(exist_ok=True)
    assert CLI.invoke(app, ["run", str(written(place))]).exit_code == 0
    assert done == ["fisher-obs"] * 2 and (model / "model.safetensors").read_bytes() == weights
    (model / "model-00001-of-00009.safetensors").write_bytes(b"mine")  # nobody's who is known here
    assert CLI.invoke(app, ["run", str(written(place, recovery="none", controls=0))]).exit_code == 0
    assert len(done) == 3 and (model / "model-00001-of-00009.safetensors").read_bytes() == b"mine"
    (model / "model-00001-of-00009.safetensors").unlink()
    assert CLI.invoke(app, ["run", str(written(place, keep=None))]).exit_code == 0
    assert len(done) == 3 and not model.exists()  # nothing is removed, so there is no smaller model
    page = (place / "out" / "run" / "report.html").read_text()
    assert "Nothing was removed" in page and "give `keep`" in page
    assert CLI.invoke(app, ["run", str(written(place))]).exit_code == 0
    assert (model / "model.safetensors").read_bytes() == weights


def test_what_it_will_take_is_said_before_it_is_spent(place: Path) -> None:
    path = written(place, name="ahead")
    plan = CLI.invoke(app, ["plan", str(path), "--json"])
    assert plan.exit_code == 0, plan.output
    found = json.loads(plan.stdout)
    assert (
        list(found["steps"]) == ["types", "units", "exam-dense", "costs", "pruned", "control-0"]
        and found["seconds"] > 0
    )
    assert not (place / "out" / "ahead" / "steps").exists()  # nothing was done
    done = CLI.invoke(app, ["see", str(path)])
    said = done.stderr.splitlines()
    at = {
        word: next(i for i, line in enumerate(said) if line.startswith(word))
        for word in ("cost: about", "types", "units")
    }
    assert at["cost: about"] < at["types"] < at["units"]
    done = CLI.invoke(app, ["see", str(path)])
    assert "cost: every step is done" in done.stderr
    assert (
        ahead.line({"types": 30.0, "pruned": 400.0}) == "cost: about 7 min on this machine (pruned 7 min, types 30 s)"
    )


def test_the_verdict_knows_what_pairs_can_tell() -> None:
    def row(name: str, each: list[float]) -> dict[str, Any]:
        return {"model": name, "nll": {"right": sum(each) / len(each)}, "each": each}

    dense, noise = row("dense", [1.0] * 4), [0.0, 0.5, -0.5, 0.1]
    ours, other = row("fisher-obs", [1.0, 1.1, 0.9, 1.0]), row("random 0", [1.2, 1.3, 1.1, 1.21])
    assert "is ahead of random units" in record.verdict([dense, ours, other])
    assert "does not beat random units" in record.verdict([dense, other | {"model": "x"}, ours])
    alike = row("random 0", [x + y for x, y in zip(ours["each"], noise, strict=True)])
    assert "cannot be told by these pairs from random units" in record.verdict([dense, ours, alike])
    mean, reach = record.difference(ours, other) or (0.0, 0.0)
    assert mean == pytest.approx(-0.2025) and reach == pytest.approx(1.96 * 0.005 / 2)
    assert record.difference(ours, {"each": [1.0]}) is None


def test_pairs_of_one_image_are_one_in_the_verdict() -> None:
    """Writing every pair twice tells nothing new; against the cluster formula in float64, and the plain one."""
    draw = np.random.default_rng(0)
    one, other = ({"each": draw.normal(size=12).tolist()} for _ in range(2))
    d = np.array(one["each"]) - np.array(other["each"])
    plain = record.difference(one, other)
    assert (
        plain == pytest.approx((d.mean(), 1.96 * d.std(ddof=1) / 12**0.5)) == record.difference(one, other, range(12))
    )
    twice = record.difference({"each": one["each"] * 2}, {"each": other["each"] * 2}, [*range(12), *range(12)])
    assert twice == pytest.approx(plain)
    images = [0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 4]
    sums = [sum(d[i] - d.mean() for i in range(12) if images[i] == g) for g in range(5)]
    slow = 1.96 * (5 / 4 * sum(s * s for s in sums)) ** 0.5 / 12
    assert record.difference(one, other, images) == pytest.approx((d.mean(), slow))
    assert record.difference(one, other, [0] * 12) is None  # one image tells nothing


def test_the_command_has_the_place_that_was_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def road(*given: Any) -> Any:
        said.append(given[-1])
        raise UserError("enough")

    monkeypatch.setattr(verbs, "Road", road)
    monkeypatch.chdir(place)
    for out, words in (("else where", " --out 'else where'"), (None, "")):
        with pytest.raises(UserError, match="enough"):
            verbs.carry_out("run", written(place), out and Path(out), "cpu", False, False, Reporter(quiet=True))
        assert said.pop() == f"vitprune run run.yaml{words}"


def test_what_cannot_be_read_is_one_line(place: Path, tmp_path: Path) -> None:
    path = written(place, name="bad")
    for changed, said in (
        ({"see": {"names": {"by": "words", "url": "http://x/v1"}}}, "goes with `by: server`"),
        ({"see": {"simulator": {"images": 1}}}, "see.simulator.images"),
        ({"see": {"units": {"per_tipe": 1}}}, "did you mean per_type"),
    ):
        done = CLI.invoke(app, ["see", str(written(place, name="bad", **changed))])
        assert isinstance(done.exception, UserError) and said in str(done.exception), done.exception
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.Q4_1.gguf").write_bytes(b"GGUF")
    done = CLI.invoke(
        app, ["see", str(written(place, name="bad", model={"name": f"transformers:{tmp_path / 'gguf'}"}))]
    )
    assert isinstance(done.exception, UserError) and "\n" not in str(done.exception), done.exception
    assert path.is_file()


def test_somebody_is_told_what_goes_on_before_the_libraries_are_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("vitprune.api.vlm.verbs.carry_out", lambda *given: said.append(given[-1]._doing))
    assert CLI.invoke(app, ["see", str(written(place))]).exit_code == 0
    assert said == ["run.yaml: a vision-language model is opened, a few passes are timed"]


@pytest.mark.slow
def test_a_look_leaves_an_examined_page_and_makes_one_where_there_is_none(place: Path) -> None:
    path = written(place, name="look")
    assert CLI.invoke(app, ["see", str(path)]).exit_code == 0
    page = place / "out" / "look" / "report.html"
    assert "only types were asked for" in page.read_text() and "What are a few of them like?" in page.read_text()
    before = (place / "out" / "run" / "report.html").read_bytes()
    assert CLI.invoke(app, ["see", str(written(place))]).exit_code == 0
    assert (place / "out" / "run" / "report.html").read_bytes() == before


def _edited(path: Path) -> None:
    """Other content of the same size, later."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))


def test_a_step_is_done_again_where_a_file_is_gone_or_cut(tmp_path: Path) -> None:
    Ledger(tmp_path).create()
    made, done = steps.Steps(tmp_path, "inputs", False, Reporter(quiet=True)), []

    def make() -> Any:
        done.append(1)
        (tmp_path / "model").mkdir(exist_ok=True)
        Ledger(tmp_path / "model").create()
        for name in ("config.json", "model.safetensors"):
            files.write_text(tmp_path / "model" / name, name)
        return {"x": 1}

    weights = tmp_path / "model" / "model.safetensors"
    for change, expected in (
        (lambda: None, 1), (lambda: None, 1), (weights.unlink, 2), (lambda: weights.write_text("m"), 3), (lambda: None, 3),
        (lambda: _edited(weights), 4), (lambda: None, 4),
    ):  # fmt: skip
        change()
        assert made.once("pruned", {"keep": 1}, make, ["model"]) == {"x": 1} and len(done) == expected
    assert made.known("pruned", {"keep": 2}) is None  # asked for something else
    (tmp_path / "model" / "mine.txt").write_text("mine")
    steps.without(tmp_path / "model")
    assert [path.name for path in sorted((tmp_path / "model").iterdir())] == [".vitprune", "mine.txt"]
    (tmp_path / "model" / "mine.txt").unlink()
    steps.without(tmp_path / "model")
    assert not (tmp_path / "model").exists()
