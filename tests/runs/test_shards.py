"""Shards: the same bits whoever computes them, however often the work is stopped, and whatever memory there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small import image_folder, leftovers, model_folder, recipe_dict, write_recipe

from vitprune.core import progress
from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.settings import Attribution
from vitprune.recipe import recipe
from vitprune.runs import pipeline, worker
from vitprune.runs.engine import parts
from vitprune.runs.engine import processes as parallel
from vitprune.runs.engine.parts import Manifest
from vitprune.runs.state.context import Context


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 30), tmp_path / "out")
    return content | {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 24}}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a batch, four a shard: 72 images are eighteen shards."""
    monkeypatch.setattr(parts, "SHARD", 4)
    monkeypatch.setattr(Context, "images_per_batch", lambda *_: 2)


def run(content: dict[str, Any], **options: Any) -> dict[str, Any]:
    return pipeline.run(recipe.Recipe.model_validate(content), "discover", device="cpu", **options)


def results(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.glob("tiny/stages/discover/*.safetensors")}


# ---- killed

KILLED = """
import dataclasses, os, random, signal, sys, time
from vitprune.criteria.catalog import CRITERIA
from vitprune.recipe import parse
from vitprune.runs import pipeline
from vitprune.runs.engine import parts
from vitprune.runs.state.context import Context
import torch
torch.set_num_threads(1)
parts.SHARD, Context.images_per_batch = 4, lambda *_: 2
row = CRITERIA["jas"]
def score(*args, **options):
    time.sleep(0.1)
    return row.score(*args, **options)
CRITERIA["jas"] = dataclasses.replace(row, score=score)
made, chance, kills = parse.load(sys.argv[1]), random.Random(int(sys.argv[2])), 0
for turn in range(200):
    child = os.fork()  # nothing has been computed here yet: no thread to lose
    if not child:
        pipeline.run(made, "discover", device="cpu")
        os._exit(0)
    time.sleep(chance.uniform(0.02, 0.4))
    if kills < int(sys.argv[3]):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
    if os.WIFEXITED(status):
        print(kills, os.WEXITSTATUS(status))
        break
"""


def test_twenty_kills_at_random_leave_no_trace(setting: dict[str, Any], tmp_path: Path, small_shards: None) -> None:
    path = write_recipe(tmp_path / "r.yaml", setting)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), "5", "20"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    kills, code = map(int, done.stdout.split())
    assert (kills, code) == (20, 0), done.stderr
    run(setting | {"out": str(tmp_path / "whole")})
    assert results(tmp_path / "out") == results(tmp_path / "whole") != {}
    assert leftovers(tmp_path / "out") == []


# ---- several processes


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("criterion", ["fisher-obs", "jas"])
def test_workers_leave_no_trace(
    setting: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], criterion: str
) -> None:
    """The default's baseline is shared work too, though the criterion itself is one process's."""
    setting |= {"criterion": setting["criterion"] | {"name": criterion}}
    run(setting | {"out": str(tmp_path / "alone")})
    run(setting, workers=3)
    found, alone = results(tmp_path / "out"), results(tmp_path / "alone")
    assert found.keys() == alone.keys() and len(found) == 2
    for name in found:
        assert found[name] == alone[name], name
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("small_shards")
def test_a_helper_makes_its_own_shards_and_no_others(setting: dict[str, Any], tmp_path: Path) -> None:
    made = recipe.Recipe.model_validate(setting)
    run(setting)
    before = results(tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("jas*/t3/*.safetensors"))
    assert len(files) == 18
    for path in files:
        path.unlink()
    worker.serve(Context.join(made, "cpu", progress.Reporter(quiet=True)), 1, 3)
    assert sorted((tmp_path / "out").rglob("jas*/t3/*.safetensors")) == files[1::3]
    for path in (tmp_path / "out").glob("tiny/stages/discover/jas-*.safetensors"):
        path.unlink()
    run(setting)
    assert results(tmp_path / "out") == before


def test_a_helper_stops_when_nobody_waits_for_it(setting: dict[str, Any], tmp_path: Path) -> None:
    made = recipe.Recipe.model_validate(setting)
    worker.serve(Context.join(made, "cpu", progress.Reporter(quiet=True)), 1, 2, gone=lambda: True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_shards")
def test_the_first_process_goes_on_without_helpers_that_died(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel.sys, "executable", "/bin/false")
    run(setting, workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "SHARD", 4)
    monkeypatch.setattr(Context, "images_per_batch", lambda *_: 2)
    run(setting | {"out": str(tmp_path / "alone")})
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_torchrun_is_read_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert parallel.from_torchrun() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parallel.from_torchrun() == (2, 4)
    assert parallel.device_of_rank("cpu", 2) == "cpu"


def test_torchrun_shares_the_work(setting: dict[str, Any], tmp_path: Path) -> None:
    """Two processes as torchrun starts them: the second makes shards and ends without a word."""
    path = write_recipe(tmp_path / "r.yaml", setting)
    command = [sys.executable, "-W", "ignore", "-m", "vitprune", "discover", str(path), "--device", "cpu"]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [p.communicate(timeout=200) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    assert said[1] == ("", "")
    run(setting | {"out": str(tmp_path / "alone")})
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_one_that_never_comes_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PATIENCE", 0.3)
    manifest = Manifest(tmp_path, np.arange(40), 2, 4, (1,))
    team = parallel.Team(0, 2, alive=lambda: True)
    started = time.monotonic()
    for start in team.order(manifest):
        team.wait(manifest, start)
    assert 0.2 < time.monotonic() - started < 2


@pytest.mark.usefixtures("small_shards")
def test_auto_with_workers_and_under_torchrun(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is one process's work, the discovery after it everybody's."""
    auto = setting | {"criterion": setting["criterion"] | {"name": "auto", "among": ["jas", "variance"]}}
    alone = run(auto | {"out": str(tmp_path / "alone")})
    assert run(auto, workers=2)["choice"] == alone["choice"]
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    helper = Context.join(recipe.Recipe.model_validate(auto), "cpu", progress.Reporter(quiet=True))
    worker.serve(helper, 1, 2)
    assert helper.recipe.criterion.name == alone["choice"]["chosen"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun"):
        parallel.one_process("compare")


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(setting: dict[str, Any], workers: int) -> None:
    with pytest.raises(UserError, match="--workers"):
        run(setting, workers=workers)


# ---- the manifest


def scoring(calls: list[int] | None = None) -> parts.Score:
    def score(index: np.ndarray) -> tuple[dict[int, list[torch.Tensor]], torch.Tensor]:
        if calls is not None:
            calls.append(len(index))
        table = torch.arange(len(index))[:, None] * 0.0 + torch.tensor(index)[:, None] * torch.linspace(-1, 1, 6)
        return {2: [table, -table]}, torch.tensor(index % 3)

    return score


def test_the_batch_size_of_the_first_run_is_kept(tmp_path: Path) -> None:
    index = np.arange(10)
    first = Manifest.open(tmp_path / "d", index, [2], {"a": 1}, lambda: 4)
    again = Manifest.open(tmp_path / "d", index, [2], {"a": 1}, lambda: 7)
    assert first.batch == again.batch == 4
    assert Manifest.open(tmp_path / "d", index, [2], {"a": 2}, lambda: 7).batch == 7  # another job
    assert Manifest.open(tmp_path / "d", index[:-1], [2], {"a": 2}, lambda: 3).batch == 3  # other images


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"job": 1, "batch": 2}', "null"])
def test_a_damaged_manifest_is_written_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert Manifest.open(tmp_path, np.arange(3), [1], {}, lambda: 5).batch == 5
    assert json.loads((tmp_path / "manifest.json").read_text())["batch"] == 5


@pytest.mark.parametrize("wrong", [{"batch": b} for b in (0, -2, "4", None, 1 << 40)] + [{"step": 7}, {"step": "5"}])
def test_a_batch_size_that_cannot_be_is_not_taken(tmp_path: Path, wrong: dict[str, Any]) -> None:
    Manifest.open(tmp_path, np.arange(3), [1], {}, lambda: 5)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(content | wrong))
    assert Manifest.open(tmp_path, np.arange(3), [1], {}, lambda: 6).batch == 6


def test_shards_are_whole_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parts, "SHARD", 8)
    for batch, step in ((1, 8), (3, 9), (8, 8), (20, 20)):
        assert Manifest.open(tmp_path / str(batch), np.arange(50), [1], {}, lambda batch=batch: batch).step == step


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), "cpu"])
def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | str
) -> None:
    monkeypatch.setattr(parts, "SHARD", 6)
    calls: list[int] = []
    inner = scoring(calls)

    def tight(index: np.ndarray) -> Any:
        if len(index) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") if error == "cpu" else error  # type: ignore[misc]
        return inner(index)

    index = np.array([5, 3, 8, 1, 0, 7, 2])
    wide, narrow = (Manifest(tmp_path / n, index, 6, 6, (2,)) for n in ("wide", "narrow"))
    for start in wide.starts:
        wide.ensure(start, scoring(), lambda t: t)
        narrow.ensure(start, tight, lambda t: t)
    assert max(calls) == 2
    for one, other in zip(wide.shards(2), narrow.shards(2), strict=True):
        assert np.array_equal(one.paths.image, other.paths.image) and np.array_equal(one.paths.units, other.paths.units)
        assert all(np.array_equal(a, b) for a, b in zip(one.counts, other.counts, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(one.sums, other.sums, strict=True))
    assert [s.notes["batch"] for s in wide.shards(2)] == ["6", "6"]
    assert [s.notes["batch"] for s in narrow.shards(2)] == ["2", "6"]  # 6 → 3 → 2; the last has one image


def test_a_single_image_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    def never(index: np.ndarray) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="not enough memory for a single image"):
        Manifest(tmp_path, np.arange(5), 4, 4, (2,)).ensure(0, never, lambda t: t)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(index: np.ndarray) -> Any:
        calls.append(len(index))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Manifest(tmp_path, np.arange(5), 4, 4, (2,)).ensure(0, broken, lambda t: t)
    assert calls == [4]


@pytest.mark.usefixtures("small_shards")
def test_halved_batches_are_recorded_and_change_nothing(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "images_per_batch", lambda *_: 4)
    whole = run(setting | {"out": str(tmp_path / "whole")})
    row = CRITERIA["jas"]

    def tight(model: Any, sites: Any, images: Any, labels: Any, **options: Any) -> Any:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return row.score(model, sites, images, labels, **options)

    import dataclasses

    monkeypatch.setitem(CRITERIA, "jas", dataclasses.replace(row, score=tight))
    made = run(setting)
    of = {name: next(d for d in r["discoveries"] if d["settings"]["criterion"] == "jas") for name, r in
          (("whole", whole), ("made", made))}  # fmt: skip
    assert (of["whole"]["batch"], of["whole"]["smallest_batch"]) == (4, 4)
    assert (of["made"]["batch"], of["made"]["smallest_batch"]) == (4, 2)
    assert results(tmp_path / "out") == results(tmp_path / "whole") != {}


# ---- what is computed again and what is not


@pytest.mark.usefixtures("small_shards")
def test_another_baseline_does_not_cost_the_first_discovery(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(setting | {"baselines": ["random"]})
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("jas*/t3/*.safetensors")}
    assert len(times) == 18
    made = run(setting | {"baselines": ["activation", "joint-gates"]})
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert sorted(d["settings"]["criterion"] for d in made["discoveries"]) == ["activation", "jas", "joint-gates"]
    run(setting | {"baselines": []})
    assert [p.name.partition("-")[0] for p in (tmp_path / "out" / "tiny/stages/discover/parts").iterdir()] == ["jas"]


def test_discoveries_say_what_they_are(setting: dict[str, Any]) -> None:
    made = run(setting | {"baselines": ["joint-gates"]})
    by = {d["settings"]["criterion"]: d for d in made["discoveries"]}
    assert by["jas"]["images"] == by["joint-gates"]["images"] == 72
    assert by["jas"]["settings"]["quadrature"] == "gauss-legendre" and by["jas"]["settings"]["nodes"] == 2
    gap = by["jas"]["completeness"]
    assert gap["images"] == 16 and 0 <= gap["mean_abs_gap"] <= gap["max_abs_gap"] < 0.1
    assert by["joint-gates"]["completeness"] is None


def test_the_columns_of_a_long_run_are_not_held_together(setting: dict[str, Any], tmp_path: Path) -> None:
    """The result holds class rows, the paths stay in their shards: nothing grows with the number of images."""
    run(setting)
    for path in (tmp_path / "out").glob("tiny/stages/discover/*.safetensors"):
        content = load_file(path)
        assert content["image"].shape == (0,) and content["units"].shape[0] == 0
        assert content["sums.0"].shape == (3, 64) and content["images"].tolist() == [24, 24, 24]


def test_free_memory_decides_the_passes_and_never_the_parts(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitprune.core import memory

    context = Context.join(recipe.Recipe.model_validate(setting), "cpu", progress.Reporter(quiet=True))
    rooms, sizes = [], []
    for free in (1 << 40, 3_000_000, 0):
        monkeypatch.setattr(memory, "free", lambda _, free=free: free)
        rooms.append(context.room(2))
        sizes.append((context.images_per_batch(2), context.batch, context.repair_batch))
    assert rooms[0] > 40 > rooms[1] > rooms[2] == 1
    assert sizes == [(40, 80, 64)] * 3
    alone = context.images_per_batch(1)
    assert alone >= 1 and Attribution().nodes == 5
