"""Several processes in one run's folder: shares of a discovery, and devices of several names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs.test_shards import results, run, small_shards  # noqa: F401
from small import image_folder, model_folder, recipe_dict, write_recipe

from vitprune.core.errors import UserError
from vitprune.recipe.recipe import Recipe
from vitprune.runs.engine import worker
from vitprune.runs.results import sharing
from vitprune.runs.state import elsewhere
from vitprune.runs.state.batching import Batching


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 30), tmp_path / "out")
    return content | {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 24}, "baselines": ["obs"]}


def parts(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("parts/**/*.safetensors")}


@pytest.mark.usefixtures("small_shards")
def test_shares_together_are_the_whole(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts by position, a sum's first by everybody; the run afterwards makes none of them again, and the same result."""
    monkeypatch.setattr(Batching, "batch", 4)
    made = Recipe.model_validate(setting)
    found = [sharing.discover(made, f"{i}/3", device="cpu") for i in range(3)]
    assert [one["made"] for one in found] == [6 + 6, 6 + 6, 6 + 5]  # of 18 shards, and of 17 parts after the first
    known = parts(tmp_path / "out")
    assert len(known) == 18 + 18 and not results(tmp_path / "out")
    again = sharing.discover(made, "1/3", device="cpu")
    assert (again["made"], again["found"]) == (0, 12)
    run(setting)
    assert {path: time for path, time in parts(tmp_path / "out").items() if path in known}.items() <= known.items()
    assert sharing.discover(made, "1/3", device="cpu")["found"] == 0  # done
    run(setting | {"out": str(tmp_path / "alone")})
    assert results(tmp_path / "out") == results(tmp_path / "alone") != {}


@pytest.mark.slow
def test_shares_work_at_the_same_time(setting: dict[str, Any], tmp_path: Path) -> None:
    """The first makes the split, the others wait for it. The time is one in which nobody waits for ever, on a machine where
    many others are at work; it says nothing of speed."""
    path = write_recipe(tmp_path / "r.yaml", setting | {"baselines": []})
    command = [sys.executable, "-W", "ignore", "-m", "vitprune", "discover", str(path), "--device", "cpu", "--shard"]
    started = [subprocess.Popen([*command, f"{i}/3"], stdout=subprocess.PIPE, text=True) for i in range(3)]
    said = [one.communicate(timeout=900)[0] for one in started]
    assert [one.returncode for one in started] == [0] * 3
    assert all(out.startswith(f"Share {i}/3: ") for i, out in enumerate(said))


def test_shares_hold_the_folder_together(setting: dict[str, Any], tmp_path: Path) -> None:
    made = Recipe.model_validate(setting | {"baselines": []})
    sharing.discover(made, "0/2", device="cpu")
    with sharing._held(made, "cpu", sharing.Reporter(quiet=True)):
        sharing.discover(made, "1/2", device="cpu")
        with pytest.raises(UserError, match="another run is working here"):
            run(setting)


@pytest.mark.parametrize(
    ("shard", "more", "line"),
    [
        ("3/3", {}, "--shard 3/3: write i/n"),
        ("x", {}, "--shard x: write i/n"),
        ("0/2", {"criterion": {"name": "auto"}}, "`criterion: auto` is found by a discovery of its own"),
    ],
)
def test_what_cannot_be_shared_is_one_line(setting: dict[str, Any], shard: str, more: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        sharing.discover(Recipe.model_validate(setting | more), shard, device="cpu")


# ---- devices


@pytest.mark.usefixtures("small_shards")
def test_two_devices_share_every_job(setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of devices of other names, as on two graphics cards: their parts are those of one job, to the same bits."""
    setting |= {"baselines": []}
    with monkeypatch.context() as two:
        two.setattr(worker, "shared", lambda _: ("cpu:0", "cpu:1"))
        run(setting, workers=2)
    known = parts(tmp_path / "out")
    run(setting | {"out": str(tmp_path / "alone")})
    there = parts(tmp_path / "alone")
    assert results(tmp_path / "out") == results(tmp_path / "alone") != {}
    names = [
        {path.relative_to(root) for path in of} for root, of in ((tmp_path / "out", known), (tmp_path / "alone", there))
    ]
    assert names[0] == names[1] and names[0]


def test_every_worker_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, value in (("_rank", 0), ("_names", ())):
        monkeypatch.setattr(worker, name, value)
    for names, devices in ((("cpu:0", "cpu:1"), ["cpu:0", "cpu:1", "cpu:0"]), ((), ["cpu"] * 3)):
        found = []
        for rank in range(3):
            worker.begin(torch.get_num_threads(), names, rank)
            found.append(worker.own_device("cpu"))
        assert found == devices
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert worker.shared(torch.device("cuda")) == ("cuda:0", "cuda:1", "cuda:2")
    assert worker.shared(torch.device("cuda:1")) == ("cuda:1",)
    assert worker.shared(torch.device("cpu")) == ("cpu",)


# ---- elsewhere


def test_what_another_machine_does_not_see_is_one_line(setting: dict[str, Any], tmp_path: Path) -> None:
    made = Recipe.model_validate(setting)
    with pytest.raises(
        UserError, match=r"the run's folder is not there on the machine .*choose an --out on a shared disk"
    ):
        elsewhere.require(made, tmp_path / "out" / "tiny")
    run(setting)
    elsewhere.require(made, tmp_path / "out" / "tiny")
    (tmp_path / "i").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"^on the machine .*: "):
        elsewhere.require(made, tmp_path / "out" / "tiny")
