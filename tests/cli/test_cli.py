"""The command line: every mistake is one line and exit code 2, JSON is alone on standard output, each verb does its part."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small import (
    image_folder,
    leftovers,
    model_folder,
    picture,
    recipe_dict,
    tiny_args,
    tiny_model,
    write_recipe,
)

import vitprune
from vitprune.cli import app
from vitprune.recipe import parse, recipe
from vitprune.report import write_report
from vitprune.runs.record import record

PROGRESS = re.compile(
    r"[^:]+: (\d+/\d+ in [\d.]+ s|unchanged, skipped|done in [\d.]+ s|\d+/\d+, .*ETA.*)"
    r"|.*; a few batches are timed|cost: (about|nothing) .*|note: the load is .*"
)
Call = Callable[..., "Answer"]


class Answer:
    """What a command answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def said(self) -> list[str]:
        """Standard error without the progress lines."""
        return [line for line in self.err.splitlines() if not PROGRESS.fullmatch(line)]


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process."""

    def run(*args: str | Path) -> Answer:
        capfd.readouterr()
        monkeypatch.setattr("vitprune.core.progress.reporter.FIRST", 600.0)  # on a busy machine a mistake is late
        monkeypatch.setattr(sys, "argv", ["vitprune", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            app.main()
        return Answer(int(caught.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    return recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `tiny` and `other`, under one folder. Tests copy it."""
    base = tmp_path_factory.mktemp("finished")
    content = recipe_dict(model_folder(base / "model"), image_folder(base / "images"), base / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "write_report", write_report)
        for name, keep in (("tiny", 0.5), ("other", 0.25)):
            vitprune.run(recipe.Recipe.model_validate(content | {"name": name, "keep": keep, "baselines": []}))
    return base / "out"


def subprocess_call(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitprune.cli.app", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, **options)


# ---- mistakes


def unknown_key(s: dict[str, Any], _: Path) -> None:
    s["kepe"] = 0.5


def keep_out_of_range(s: dict[str, Any], _: Path) -> None:
    s["keep"] = 1.5


def keep_above_the_width(s: dict[str, Any], _: Path) -> None:
    s["keep"] = "65 units"


def no_such_class(s: dict[str, Any], _: Path) -> None:
    s["classes"] = ["unicorn"]


def a_class_with_a_line_break(s: dict[str, Any], _: Path) -> None:
    s["classes"] = ["uni\ncorn\x1b[31m"]


def empty_class_folder(_: dict[str, Any], base: Path) -> None:
    shutil.rmtree(base / "images" / "cross")
    (base / "images" / "cross").mkdir()


def one_image(_: dict[str, Any], base: Path) -> None:
    for i in range(1, 10):
        (base / "images" / "cross" / f"{i:02d}.png").unlink()


def corrupt_image(_: dict[str, Any], base: Path) -> None:
    (base / "images" / "cross" / "04.png").write_bytes(b"no image")


def corrupt_image_with_a_line_break(_: dict[str, Any], base: Path) -> None:
    (base / "images" / "cross" / "a\nb.png").write_bytes(b"no image")


def no_images(s: dict[str, Any], _: Path) -> None:
    s["data"] = {"path": "nowhere"}


def unknown_folder(_: dict[str, Any], base: Path) -> None:
    (base / "images" / "cross").rename(base / "images" / "star")


def model_missing(s: dict[str, Any], _: Path) -> None:
    s["model"] = {"name": "local-dir:nowhere"}


def model_truncated(_: dict[str, Any], base: Path) -> None:
    path = base / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def model_of_other_shape(_: dict[str, Any], base: Path) -> None:
    save_file(tiny_model(outputs=4).state_dict(), base / "model" / "model.safetensors")


def checkpoint_does_not_fit(s: dict[str, Any], base: Path) -> None:
    save_file(tiny_model(embed_dim=32).state_dict(), base / "w.safetensors")
    args = tiny_args() | {"num_classes": 3}
    s["model"] = {"name": "vit_tiny_patch16_224", "args": args, "checkpoint": str(base / "w.safetensors")}


def model_of_another_family(s: dict[str, Any], _: Path) -> None:
    s["model"] = {"name": "resnet18"}


def too_many_units(s: dict[str, Any], _: Path) -> None:
    s["criterion"] = {"t": 65}


def out_is_a_file(s: dict[str, Any], base: Path) -> None:
    (base / "out").write_text("mine")


def run_folder_is_a_file(s: dict[str, Any], base: Path) -> None:
    (base / "out").mkdir()
    (base / "out" / "tiny").write_text("mine")


def out_is_below_a_file(s: dict[str, Any], base: Path) -> None:
    (base / "file").write_text("mine")
    s["out"] = str(base / "file" / "below")


MISTAKES: dict[Callable[[dict[str, Any], Path], None], str] = {
    unknown_key: "unknown key `kepe`; did you mean `keep`?",
    keep_out_of_range: "`keep`",
    keep_above_the_width: "keep: 65",
    no_such_class: "`unicorn` is not a class",
    a_class_with_a_line_break: "is not a class",
    empty_class_folder: "holds no images",
    one_image: "class `cross`: 1 usable",
    corrupt_image: "cross/04.png",
    corrupt_image_with_a_line_break: "b.png",
    no_images: "no such folder",
    unknown_folder: "`star`",
    model_missing: "no such model folder",
    model_truncated: "model.safetensors",
    model_of_other_shape: "model.safetensors",
    checkpoint_does_not_fit: "w.safetensors: its set of weights does not fit",
    model_of_another_family: "not supported",
    too_many_units: "a block has 64",
    out_is_a_file: "a file stands where a folder is needed",
    run_folder_is_a_file: "a file stands where a folder is needed",
    out_is_below_a_file: "a file stands where a folder is needed",
}
LATE = {
    one_image,
    corrupt_image,
    corrupt_image_with_a_line_break,
    keep_above_the_width,
    too_many_units,
}  # images are read first


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verb", ["run"])
def test_a_mistake_is_one_line(
    call: Call, setting: dict[str, Any], tmp_path: Path, mistake: Callable[[dict[str, Any], Path], None], verb: str
) -> None:
    mistake(setting, tmp_path)
    got = call(verb, write_recipe(tmp_path / "r.yaml", setting))
    assert got.code == 2, got.err
    assert len(got.said) == 1 and got.said[0].startswith("vitprune: "), got.err
    assert MISTAKES[mistake] in got.said[0]
    assert "\x1b" not in got.err
    assert mistake in LATE or got.err.splitlines() == got.said
    assert got.out == ""
    assert leftovers(tmp_path) == []
    if (tmp_path / "out").is_dir() and mistake is not run_folder_is_a_file:
        written = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
        allowed = {"recipe.yaml", ".lock", ".vitprune"} | (
            {"split.json", "stage.json"} if mistake in LATE | {too_many_units} else set()
        )
        parts = {
            n for n in written if re.fullmatch(r"\d{6}\.safetensors", n)
        }  # what was worked out stays for the next try
        assert {n for n in written if not n.startswith(("jas-", "activation-", "t3-"))} - parts - {
            "all.moments.safetensors"
        } <= allowed
    for name in ("out", "out/tiny", "file"):
        if (tmp_path / name).is_file():
            assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["none.yaml", "dmeo", "none/at/all.yaml"])
def test_a_missing_recipe(call: Call, name: str) -> None:
    got = call("run", name)
    assert (got.code, got.out) == (2, "") and len(got.err.splitlines()) == 1
    assert f"vitprune: {name}: no such recipe" in got.err and "demo" in got.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "warp", "cpu:x", "meta", "xpu"])
def test_an_unavailable_device(call: Call, setting: dict[str, Any], tmp_path: Path, device: str) -> None:
    got = call("run", write_recipe(tmp_path / "r.yaml", setting), "--device", device)
    assert (got.code, got.out) == (2, "") and len(got.err.splitlines()) == 1
    assert f"--device {device}" in got.err
    assert not (tmp_path / "out").exists()


def test_out_on_the_command_line(call: Call, setting: dict[str, Any], tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", setting)
    (tmp_path / "file").write_text("mine")
    got = call("discover", path, "--out", tmp_path / "file")
    assert got.code == 2 and len(got.err.splitlines()) == 1 and str(tmp_path / "file") in got.err
    assert (tmp_path / "file").read_text() == "mine"
    assert call("discover", path, "--out", tmp_path / "else").code == 0
    assert (tmp_path / "else" / "tiny" / "recipe.yaml").is_file() and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(call: Call, setting: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    got = call("run", write_recipe(tmp_path / "r.yaml", setting))
    assert got.code == 2 and "may not be written" in got.err and len(got.err.splitlines()) == 1


def test_our_own_failure_is_exit_code_1_and_one_line(
    call: Call, setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path / "r.yaml", setting)

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("vitprune.runs.pipeline.run", broken)
    got = call("run", path)
    assert got.code == 1 and got.err.splitlines() == [
        "vitprune: internal error, ZeroDivisionError: two lines (add --debug before the verb for the trace)"
    ]
    assert "Traceback" in call("--debug", "run", path).err


def test_debug_shows_the_trace_of_a_mistake(call: Call) -> None:
    got = call("--debug", "run", "none.yaml")
    assert got.code == 2 and "Traceback" in got.err and got.err.splitlines()[-1].startswith("vitprune: none.yaml")


# ---- verbs and their output


def test_json_is_alone_on_standard_output(setting: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own, ONNX included: nothing else prints there."""
    setting |= {"export": {"onnx": True, "latency_batches": []}, "baselines": []}
    got = subprocess_call("run", write_recipe(tmp_path / "r.yaml", setting), "--json", cwd=tmp_path)
    assert got.returncode == 0, got.stderr

    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    made = json.loads(got.stdout, parse_constant=no_constant)
    assert made["complete"] and made["result"]["criterion"] == "jas"
    assert Path(made["folder"]) == tmp_path / "out" / "tiny" and Path(made["report"]).is_file()
    assert "discover: done" in got.stderr and "Traceback" not in got.stderr and "Warning" not in got.stderr
    assert got.stderr.splitlines().count(f"export: {tmp_path / 'out' / 'tiny' / 'model.onnx'}") == 1
    assert "export, latency: 1/1 in " in got.stderr
    assert (tmp_path / "out" / "tiny" / "model.onnx").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"r.yaml", "model", "images", "out"}


@pytest.mark.parametrize("verb", ["discover", "prune", "evaluate", "export"])
def test_json_of_every_verb(call: Call, setting: dict[str, Any], tmp_path: Path, verb: str) -> None:
    got = call(verb, write_recipe(tmp_path / "r.yaml", setting), "--json")
    made = json.loads(got.out)
    assert got.code == 0 and verb in [s["name"] for s in made["stages"]]
    assert ("rows" in made) == (verb == "evaluate")
    assert not (tmp_path / "out" / "tiny" / "report.json").exists()


def test_a_run_prints_a_table_and_ends_with_the_report(call: Call, setting: dict[str, Any], tmp_path: Path) -> None:
    got = call("run", write_recipe(tmp_path / "r.yaml", setting))
    assert got.code == 0
    assert got.out.splitlines()[-1] == f"Report: {tmp_path / 'out' / 'tiny' / 'report.html'}"
    assert all(name in got.out for name in ("dense", "jas", "activation", "random", "top-1"))
    again = call("run", tmp_path / "r.yaml")
    assert again.err.count("unchanged, skipped") == 6 and again.out == got.out
    forced = call("run", tmp_path / "r.yaml", "--force")
    assert "skipped" not in forced.err


def test_version(call: Call) -> None:
    got = call("--version")
    assert (got.code, got.out) == (0, f"vitprune {vitprune.__version__}\n")


def test_the_installed_command() -> None:
    found = Path(sys.executable).parent / "vitprune"
    if not found.is_file():
        pytest.skip("not installed as a command here")
    got = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60)
    assert (got.returncode, got.stdout) == (0, f"vitprune {vitprune.__version__}\n")


def test_doctor(call: Call) -> None:
    got = call("doctor")
    assert f"torch {torch.__version__.split('+')[0]}" in got.out and "CPU" in got.out and "devices: cpu" in got.out
    made = json.loads(call("doctor", "--json").out)
    assert made.keys() >= {"python", "versions", "devices", "providers", "problems"}
    assert got.code == (1 if made["problems"] else 0)


def test_doctor_names_the_clash_and_its_cure(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitprune.cli.around.doctor._versions", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    got = call("doctor")
    assert got.code == 1 and "PROBLEM: onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall" in got.out


def test_recipe_check(call: Call, setting: dict[str, Any], tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", setting)
    assert call("recipe", "check", path).out == f"ok: {path}: model of 3 outputs, all classes, jas, keep 50 %\n"
    got = call("recipe", "check", path, "--show")
    assert got.code == 0 and parse.parse(got.out) == parse.load(path)
    assert yaml.safe_load(got.out)["random_draws"] == 1
    assert json.loads(call("recipe", "check", "demo", "--json").out)["name"] == "demo"
    path.write_text("name: a\nkepe: 1\n")
    bad = call("recipe", "check", path)
    assert (bad.code, bad.out) == (2, "") and bad.err.count("\n") == 1
    assert f"{path}, line 2: unknown key `kepe`; did you mean `keep`?" in bad.err


def test_recipe_schema(call: Call) -> None:
    made = json.loads(call("recipe", "schema").out)
    assert made["properties"].keys() == recipe.Recipe.model_fields.keys()


def test_recipe_new_is_a_recipe(call: Call, tmp_path: Path) -> None:
    """All that is wrong with it is that its images are not there."""
    (tmp_path / "new.yaml").write_text(call("recipe", "new").out)
    got = call("recipe", "check", tmp_path / "new.yaml")
    assert got.code == 2 and "data.path path/to/images: no such folder; looked for " in got.err
    (tmp_path / "path" / "to" / "images" / "tench").mkdir(parents=True)
    picture(0, 1).save(tmp_path / "path" / "to" / "images" / "tench" / "1.png")
    assert call("recipe", "check", tmp_path / "new.yaml").code == 0


def test_a_bundled_recipe_by_name_in_an_empty_folder(tmp_path: Path) -> None:
    got = subprocess_call("recipe", "check", "demo", "--show", cwd=tmp_path)
    assert got.returncode == 0 and yaml.safe_load(got.stdout)["name"] == "demo"
    assert got.stderr == "" and list(tmp_path.iterdir()) == []
    missing = subprocess_call("recipe", "check", "imagenet-vit-b32", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "") and str(
        tmp_path / "data" / "imagenet" / "val"
    ) in missing.stderr


# ---- report


def test_report_writes_the_pages_again(call: Call, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "tiny", tmp_path / "tiny")
    page, text = ((tmp_path / "tiny" / name).read_bytes() for name in ("report.html", "report.md"))
    (tmp_path / "tiny" / "report.html").unlink()
    (tmp_path / "tiny" / "report.md").write_text("stale")
    got = call("report", tmp_path / "tiny")
    assert got.code == 0 and got.err == ""
    assert got.out.splitlines() == [str(tmp_path / "tiny" / n) for n in ("report.json", "report.md", "report.html")]
    assert (tmp_path / "tiny" / "report.html").read_bytes() == page
    assert (tmp_path / "tiny" / "report.md").read_bytes() == text


def test_report_compares_runs(call: Call, finished: Path, tmp_path: Path) -> None:
    got = call("report", finished / "tiny", finished / "other", "--out", tmp_path / "both")
    assert got.code == 0
    written = [Path(line) for line in got.out.splitlines()]
    assert [p.name for p in written] == ["comparison.md", "comparison.html"] and all(p.is_file() for p in written)
    text = written[0].read_text()
    assert "tiny" in text and "other" in text and "0.25" in text
    for again in (finished / "tiny", finished / "other" / ".." / "tiny"):
        got = call("report", finished / "tiny", finished / "other", again, "--out", tmp_path / "thrice")
        assert got.code == 2 and "is given twice" in got.err and len(got.err.splitlines()) == 1
        assert not (tmp_path / "thrice").exists()


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "3", '"text"', "{}", '{"rows": 3}', '{"rows": [{"top1": "x"}]}']
)
def test_report_of_what_is_none(call: Call, tmp_path: Path, content: str | None) -> None:
    """A page that says what is missing, or one line; never a trace."""
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    got = call("report", tmp_path)
    assert got.code in (0, 2), got.err
    assert got.code == 0 or (len(got.err.splitlines()) == 1 and str(tmp_path) in got.err)
    assert content not in (None, "", "{", "[]", "3", '"text"') or got.code == 2


def test_report_into_a_file(call: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    got = call("report", finished / "tiny", finished / "other", "--out", tmp_path / "file")
    assert got.code == 2 and len(got.err.splitlines()) == 1, got.err
    assert (tmp_path / "file").read_text() == "mine"


def test_report_of_a_run_folder_that_does_not_exist(call: Call, tmp_path: Path) -> None:
    got = call("report", tmp_path / "none")
    assert got.code == 2 and "vitprune run RECIPE" in got.err


# ---- a timm name with local weights, all the way through the command


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_name_with_a_local_checkpoint(call: Call, tmp_path: Path, channels: int) -> None:
    save_file(tiny_model(channels).state_dict(), tmp_path / "w.safetensors")
    images = image_folder(tmp_path / "images")
    picture(0, 1, "RGB").save(images / "cross" / "00.png")
    content = recipe_dict("vit_tiny_patch16_224", images, tmp_path / "out", baselines=[])
    content["model"] |= {
        "args": tiny_args(channels) | {"num_classes": 3},
        "checkpoint": str(tmp_path / "w.safetensors"),
    }
    got = call("prune", write_recipe(tmp_path / "r.yaml", content))
    assert got.code == 0, got.err
    again = call("prune", tmp_path / "r.yaml")
    assert again.err.count("skipped") == 4
    slim = vitprune.load(tmp_path / "out" / "tiny")
    assert slim(torch.zeros(2, channels, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("frob",), "vitprune: No such command 'frob'; `vitprune --help` says what may be given"),
        (("predict", "a", "b", "--top", "0"), "`vitprune predict --help` says"),
        (("run", "--max-loss", "abc"), "`vitprune run --help` says"),
        (("run", "--budgets", "macs=1"), "`vitprune run --help` says"),
        (("check",), "`vitprune check --help` says"),
        (("completion", "tcsh"), "`vitprune completion --help` says"),
        (("recipe", "new", "--file"), "`vitprune recipe new --help` says"),
        (("run", "demo", "--out"), "`vitprune run --help` says"),
    ],
)
def test_wrong_words_are_one_line(call: Call, words: tuple[str, ...], said: str) -> None:
    answer = call(*words)
    assert answer.code == 2 and answer.out == "" and len(answer.err.splitlines()) == 1 and said in answer.err


def test_no_words_are_the_help(call: Call) -> None:
    answer = call()
    assert answer.code == 2 and "Commands" in answer.out + answer.err
