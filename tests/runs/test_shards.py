"""Shards: the same bits whoever computes them, however often the work is stopped, and whatever memory there is."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from small import image_folder, leftovers, model_folder, recipe_dict, write_recipe

from vitprune.core import progress
from vitprune.core.errors import UserError
from vitprune.criteria.attribution.settings import Jas
from vitprune.criteria.catalog import CRITERIA
from vitprune.paper import tables
from vitprune.recipe import recipe
from vitprune.runs import compare, pipeline
from vitprune.runs.engine.base import Columns
from vitprune.runs.stages import image_scores
from vitprune.runs.stages.image_scores import of_t, shard
from vitprune.runs.state.batching import Batching
from vitprune.runs.state.run import Run


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 30), tmp_path / "out")
    return content | {"criterion": {"name": "jas", "t": 3, "nodes": 2, "probe_per_class": 24}}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a batch, four a shard: 72 images are eighteen shards."""
    monkeypatch.setattr(image_scores, "SHARD", 4)
    monkeypatch.setattr(Batching, "images_per_batch", lambda *_: 2)


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
from vitprune.runs.stages import image_scores
from vitprune.runs.state.batching import Batching
import torch
torch.set_num_threads(1)
image_scores.SHARD, Batching.images_per_batch = 4, lambda *_: 2
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


@pytest.mark.parametrize("criterion", ["fisher-obs", "jas"])
@pytest.mark.sample(1)
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
@pytest.mark.slow
def test_workers_make_what_is_missing_and_nothing_else(setting: dict[str, Any], tmp_path: Path) -> None:
    run(setting)
    before = results(tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("parts/jas*/*.safetensors"))
    assert len(files) == 18
    known = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    for path in files[1::3]:
        path.unlink()
    for path in (tmp_path / "out").glob("tiny/stages/discover/jas-*.safetensors"):
        path.unlink()
    run(setting, workers=2)
    assert results(tmp_path / "out") == before
    assert {path: path.read_bytes() for path in files} == {path: was for path, (was, _) in known.items()}
    assert [path for path in files if path.stat().st_mtime_ns != known[path][1]] == files[1::3]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.slow
def test_the_run_goes_on_when_a_worker_is_killed(
    setting: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            time.sleep(0.02)
            if list((tmp_path / "out").rglob("parts/*/*.safetensors")):
                workers = [c for c in psutil.Process().children() if "popen_loky" in " ".join(c.cmdline())]
                for process in workers[:1]:
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    run(setting, workers=2)
    killer.join()
    run(setting | {"out": str(tmp_path / "alone")})
    assert killed and results(tmp_path / "out") == results(tmp_path / "alone")


def test_a_run_is_opened_once_in_a_worker(setting: dict[str, Any]) -> None:
    """What is sent holds no model; the first process keeps the run that it has, and one inside a run is not sent."""
    run = Run.join(recipe.Recipe.model_validate(setting), "cpu", progress.Reporter(quiet=True), 2)
    run.adapt()
    sent = pickle.dumps(run)
    assert len(sent) < 20_000
    there = pickle.loads(sent)
    assert pickle.loads(pickle.dumps(run)) is there is not run
    assert there.recipe == run.recipe and there.device == run.device and there.folder == run.folder
    assert there.workers == 2 and there.model_digest == run.model_digest
    run.recipe = run.recipe.model_copy(update={"keep": 0.25})
    assert pickle.loads(pickle.dumps(run)).recipe.keep == 0.25
    inner = dataclasses.replace(run, shared=False)
    assert inner.executor.workers == 1
    with pytest.raises(AssertionError, match="stays in its process"):
        pickle.dumps(inner)


def test_torchrun_is_not_what_shares_the_work(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = recipe.Recipe.model_validate(setting)
    for start in (pipeline.run, compare.compare, tables.run):
        with pytest.raises(UserError, match=r"^torchrun: .*--workers N$"):
            start(made)
    assert not (tmp_path / "out").exists()


def test_one_process_of_torchrun_is_a_process_like_any_other(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(setting)["discoveries"]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.slow
def test_auto_with_workers(setting: dict[str, Any], tmp_path: Path) -> None:
    """The choice is one process's work, the discovery after it everybody's."""
    auto = setting | {"criterion": setting["criterion"] | {"name": "auto", "among": ["jas", "variance"]}}
    alone = run(auto | {"out": str(tmp_path / "alone")})
    assert run(auto, workers=2)["choice"] == alone["choice"]
    assert results(tmp_path / "out") == results(tmp_path / "alone")


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(setting: dict[str, Any], workers: int) -> None:
    with pytest.raises(UserError, match="--workers"):
        run(setting, workers=workers)


# ---- one shard


def scoring(calls: list[int] | None = None) -> image_scores.Score:
    def score(index: np.ndarray) -> tuple[dict[int, list[torch.Tensor]], torch.Tensor]:
        if calls is not None:
            calls.append(len(index))
        table = torch.arange(len(index))[:, None] * 0.0 + torch.tensor(index)[:, None] * torch.linspace(-1, 1, 6)
        return {2: [table, -table]}, torch.tensor(index % 3)

    return score


def made(index: np.ndarray, score: image_scores.Score, batch: int) -> list[Columns]:
    return [shard(index[a:b], batch, (2,), score, lambda t: t) for a, b in image_scores.shards(len(index), batch)]


def test_shards_are_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_scores, "SHARD", 8)
    for batch, step in ((1, 8), (3, 9), (8, 8), (20, 20)):
        found = image_scores.shards(50, batch)
        assert [start for start, _ in found] == list(range(0, 50, step))
        assert [stop for _, stop in found] == [start for start, _ in found[1:]] + [50]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), "cpu"])
def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, error: BaseException | str) -> None:
    monkeypatch.setattr(image_scores, "SHARD", 6)
    calls: list[int] = []
    inner = scoring(calls)

    def tight(index: np.ndarray) -> Any:
        if len(index) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory") if error == "cpu" else error  # type: ignore[misc]
        return inner(index)

    index = np.array([5, 3, 8, 1, 0, 7, 2])
    wide, narrow = made(index, scoring(), 6), made(index, tight, 6)
    assert max(calls) == 2 and len(wide) == len(narrow) == 2
    for one, other in zip(wide, narrow, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one.keys() - {"smallest"})
        assert of_t(one, 2).paths.units.shape[1:] == (2, 2)
    assert [s["smallest"].tolist() for s in wide] == [[6], [6]]
    assert [s["smallest"].tolist() for s in narrow] == [[2], [6]]  # 6 → 3 → 2; the last has one image


def test_a_single_image_that_does_not_fit_is_one_line() -> None:
    def never(index: np.ndarray) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="not enough memory for a single image"):
        made(np.arange(5), never, 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    calls: list[int] = []

    def broken(index: np.ndarray) -> Any:
        calls.append(len(index))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        made(np.arange(5), broken, 4)
    assert calls == [4]


@pytest.mark.usefixtures("small_shards")
def test_halved_batches_are_recorded_and_change_nothing(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batching, "images_per_batch", lambda *_: 4)
    whole = run(setting | {"out": str(tmp_path / "whole")})
    row = CRITERIA["jas"]

    def tight(model: Any, sites: Any, images: Any, labels: Any, **options: Any) -> Any:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return row.score(model, sites, images, labels, **options)

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
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("parts/jas*/*.safetensors")}
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
        assert not {"image", "units"} & set(content) and max(column.nbytes for column in content.values()) == 3 * 64 * 4
        assert content["means.0"].shape == (3, 64) and content["images"].tolist() == [24, 24, 24]


def test_free_memory_decides_the_passes_and_never_the_parts(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitprune.core import memory

    run = Run.join(recipe.Recipe.model_validate(setting), "cpu", progress.Reporter(quiet=True))
    rooms, sizes = [], []
    for free in (1 << 40, 3_000_000, 0):
        monkeypatch.setattr(memory, "free", lambda _, free=free: free)
        rooms.append(run.batching.room(2))
        sizes.append((run.batching.images_per_batch(2), run.batching.batch, run.batching.repair_batch))
    assert rooms[0] > 40 > rooms[1] > rooms[2] == 1
    assert sizes == [(40, 80, 64)] * 3
    alone = run.batching.images_per_batch(1)
    assert alone >= 1 and Jas().nodes == 5


@pytest.mark.parametrize("pieces", [[4], [2, 2], [1, 1, 1, 1], [2, 1, 1]])
def test_the_next_batch_is_made_while_one_is_scored(pieces: list[int]) -> None:
    """A batch is asked for once, in whatever pieces it is looked at, a second time too; the last one is short."""
    images, asked = np.array([7, 3, 9, 1, 4, 0, 2, 8, 5, 6]), []

    def batches() -> Any:
        for at in range(0, 10, 4):
            asked.append(at)
            yield torch.tensor(images[at : at + 4]) * 10, torch.tensor(images[at : at + 4])

    ahead = image_scores._Ahead(images, batches())
    for batch, at in enumerate(range(0, 10, 4), 1):
        whole = images[at : at + 4]
        for again in range(2):
            start = 0
            for count in pieces[again:] or pieces:
                index = whole[start : start + count]
                if len(index):
                    x, y = ahead.of(index)
                    assert y.tolist() == index.tolist() and x.tolist() == (10 * index).tolist()
                start += count
        assert len(asked) == batch
