"""A run without a recipe: the flags are a recipe, and the file that `recipe new` writes of them is the same one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small import image_folder, model_folder

from vitprune.cli import app
from vitprune.cli.given import flags
from vitprune.cli.given.groups import Flags
from vitprune.core.errors import UserError
from vitprune.recipe import parse
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline

BUNDLED = ("--model", "bundled", "--data", "bundled")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("vitprune.core.progress.reporter.FIRST", 600.0)
        monkeypatch.setattr(sys, "argv", ["vitprune", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            app.main()
        return int(caught.value.code or 0), *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.mark.parametrize(
    ("more", "budget"),
    [
        ((), {"macs": 0.5}),  # the tool's default
        (("--budget", "macs=0.25"), {"macs": 0.25}),
        (("--budget", "params=30%"), {"params": 0.3}),
        (("--budget", "latency=0.4"), {"latency": 0.4}),
        (("--budget", "size_mb=1.5"), {"size_mb": 1.5}),
        (("--budget", "loss_points=2"), {"loss_points": 2.0}),
        (("--max-loss", "1"), {"loss_points": 1.0}),
        (("--budget", "macs=0.5", "--budget", "macs=0.25"), {"macs": [0.5, 0.25]}),
    ],
)
def test_the_flags_and_the_written_file_are_one_recipe(call, monkeypatch, tmp_path, more, budget) -> None:  # type: ignore[no-untyped-def]
    """What reaches the pipeline without a file is what reaches it by the file: recipe, folder and fingerprint."""
    ran: list[Recipe] = []

    def noted(recipe: Recipe, *_: object, **__: object) -> dict[str, object]:
        ran.append(recipe)
        raise UserError("far enough")

    monkeypatch.setattr(pipeline, "run", noted)
    asked = (*BUNDLED, *more, "--name", "mine", "--out", tmp_path / "out")
    code, _, err = call("recipe", "new", *asked, "--file", tmp_path / "r.yaml")
    assert code == 0, err
    assert (tmp_path / "r.yaml").read_text().startswith("# Made by: vitprune recipe new --model bundled --data bundled")
    call("run", *asked)
    call("run", tmp_path / "r.yaml")
    bare, read = ran
    assert bare == read and bare.fingerprint() == read.fingerprint() and bare.written() == read.written()
    assert (bare.out, bare.name) == (tmp_path / "out", "mine")
    assert bare.whole is not None and bare.whole.written == budget


def test_a_file_that_is_there_stays(call, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "r.yaml").write_text("mine")
    code, _, err = call("recipe", "new", *BUNDLED, "--file", tmp_path / "r.yaml")
    assert code == 2 and err.count("\n") == 1 and "is there already" in err
    assert (tmp_path / "r.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "give a recipe, or --model and --data"),
        (("--model", "bundled"), "--model: goes with --data"),
        (("--data", "bundled"), "--data: goes with --model"),
        (("--budget", "macs=0.5"), "--budget: goes with --model"),
        (
            ("demo", "--budget", "macs=0.5"),
            "--budget: goes with --model and --data in the place of a recipe; demo says",
        ),
        ((*BUNDLED, "--budget", "mac=0.5"), "--budget mac=0.5: did you mean macs=…?"),
        ((*BUNDLED, "--budget", "macs"), "--budget macs: WORD=AMOUNT, of macs, params, latency, size_mb, loss_points"),
        ((*BUNDLED, "--budget", "macs=half"), "--budget macs=half: the amount is no number"),
        ((*BUNDLED, "--budget", "macs=2"), "--budget macs=2: is the share that is left"),
        ((*BUNDLED, "--budget", "macs=nan"), "--budget macs=nan: is the share that is left"),
        ((*BUNDLED, "--budget", "macs=0.5", "--budget", "params=0.5"), "--budget: macs and params are two budgets"),
        ((*BUNDLED, "--budget", "macs=0.5", "--max-loss", "1"), "give --budget or --max-loss, not both"),
        ((*BUNDLED, "--max-loss", "-1"), "--max-loss: Input should be greater than or equal to 0"),
        ((*BUNDLED, "--name", "a/b"), "--name: letters, digits"),
        (("--model", "none/at/all", "--data", "bundled"), "--model none/at/all: no such folder"),
        (("--model", "w.safetensors", "--data", "bundled"), "give --model NAME --checkpoint w.safetensors"),
        (("--model", "bundled", "--data", "none/at/all"), "data.path none/at/all: no such folder"),
    ],
)
def test_a_mistake_is_one_line(call, args, said) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("run", *args)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("vitprune: ") and said in err


def test_what_a_model_and_images_are(tmp_path: Path) -> None:
    model, images = model_folder(tmp_path / "model"), image_folder(tmp_path / "my images (2)")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps({"model_type": "vit"}))

    def made(model: str, data: str, checkpoint: Path | None = None) -> dict[str, object]:
        return flags.content(Flags(model=model, data=data, checkpoint=checkpoint), None)

    assert made(str(model), str(images)) == {
        "version": 1, "name": "my-images-2", "model": {"name": f"local-dir:{model}"}, "data": {"path": str(images)},
    }  # fmt: skip
    assert made(str(hub), "torch/cifar10") == {
        "version": 1, "name": "cifar10", "model": {"name": f"transformers:{hub}"}, "data": {"dataset": "torch/cifar10"},
    }  # fmt: skip
    assert made("hf-hub:a/b", "x.tar")["model"] == {"name": "hf-hub:a/b", "pretrained": True}
    assert made("vit_base_patch16_224", "x.tar")["model"] == {"name": "vit_base_patch16_224", "pretrained": True}
    checkpoint = made("vit_base_patch16_224", "x.tar", Path("w.npz"))["model"]
    assert checkpoint == {"name": "vit_base_patch16_224", "checkpoint": "w.npz"}
    assert parse.parse(flags.text(Flags(model=str(model), data=str(images)), None, "x")).name == "my-images-2"


def test_a_run_of_flags_and_then_of_the_file(call, tmp_path: Path, quick: None) -> None:  # type: ignore[no-untyped-def]
    """The second finds every stage done."""
    asked = ("--model", model_folder(tmp_path / "model"), "--data", image_folder(tmp_path / "images"))
    asked += ("--budget", "macs=0.6", "--out", tmp_path / "out")
    code, _, err = call("discover", *asked)
    assert code == 0, err
    call("recipe", "new", *asked, "--file", tmp_path / "r.yaml")
    code, _, err = call("discover", tmp_path / "r.yaml")
    assert code == 0 and err.count("unchanged, skipped") == 2, err
    code, made, err = call("plan", *asked, "--json", "--cost")
    assert code == 0 and json.loads(made)["cost"]["stages"]["discover"]["done"], err


def test_quiet_and_a_log(call, tmp_path: Path, quick: None) -> None:  # type: ignore[no-untyped-def]
    """Standard error is empty, the log tells the stages and the error; a log inside the run's folder is refused."""
    asked = ("--model", model_folder(tmp_path / "model"), "--data", image_folder(tmp_path / "images"))
    asked += ("--budget", "macs=0.6", "--out", tmp_path / "out", "--quiet", "--log")
    code, out, err = call("discover", *asked, tmp_path / "run.log")
    assert (code, err) == (0, "") and out.splitlines()[-1].startswith("Results: ")
    assert "split: done in " in (tmp_path / "run.log").read_text()
    code, _, err = call("discover", *asked, tmp_path / "run.log", "--device", "warp")
    assert code == 2 and err.count("\n") == 1
    code, _, err = call("discover", *asked, tmp_path / "out" / "images" / "run.log")
    assert code == 2 and "lies in the folder of the run" in err


@pytest.mark.parametrize("amount", ["25", "0", "-1", "nan", "300%"])
def test_a_share_that_is_none_says_what_one_is(amount: str) -> None:
    with pytest.raises(UserError, match=r"is the share that is left, .* as macs=0\.25 or macs=25%"):
        flags.recipe(Flags(model="bundled", data="bundled", budget=[f"macs={amount}"]), None)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UserError, match="--name: letters, digits"):
        flags.recipe(Flags(model="bundled", data="bundled", name=""), None)
