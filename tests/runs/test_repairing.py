"""A repair shared by workers: the bits of one process, whoever held which part and whatever was lost on the way."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from small import image_folder, model_folder, recipe_dict
from torch import nn

from vitprune.core.progress import Reporter
from vitprune.pruning.repair import layerwise, streams, walk
from vitprune.recipe.parse import dump
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.pool import Pool
from vitprune.runs.record import frontier, repairs
from vitprune.runs.results import repairing
from vitprune.runs.stages import prune
from vitprune.runs.state import batching
from vitprune.runs.state import run as running
from vitprune.runs.state.run import Run

HOWS = ["sequential", "layerwise", "layerwise+head", "layerwise+distill"]


class Workers:
    """Two workers in this process, each with a state of its own. Now and then one forgets all (`lose`), or a part goes to
    the other one (`stray`), as the numbers drawn say."""

    workers = 2

    def __init__(self, lose: float = 0.0, stray: float = 0.0, seed: int = 0) -> None:
        self.lose, self.stray, self.draw = lose, stray, random.Random(seed)
        self.states: list[tuple[dict[str, Run], list[Any]]] = [({}, []), ({}, [])]
        self.done: list[tuple[str, int]] = []

    def carry(self, _: Callable[[], Any]) -> None:
        """They open the model themselves."""

    def run(self, job: Job, folder: Path) -> Iterator[Columns]:
        assert not job.kept
        for position, item in enumerate(job.items):
            own = (position + (self.draw.random() < self.stray)) % 2
            if self.draw.random() < self.lose:
                self.states[own] = {}, []
            opened, held = self.states[own]
            running._opened, repairing._held = opened, held
            work: Callable[[Any], Columns] = pickle.loads(pickle.dumps(job.work))
            self.done.append((job.name, position))
            yield pickle.loads(pickle.dumps(work(item)))

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "REPAIR_IMAGES", 2)
    monkeypatch.setattr(running, "_opened", {})
    monkeypatch.setattr(repairing, "_held", [])


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that has come to its discovery, with slim attention to be repaired."""
    folder = tmp_path_factory.mktemp("repairing")
    content = recipe_dict(model_folder(folder / "m"), image_folder(folder / "i", 9), folder / "out")
    del content["keep"], content["criterion"]
    content |= {"budget": {"macs": 0.55}, "recovery": "layerwise", "baselines": []}
    recipe = Recipe.model_validate(content)
    pipeline.run(recipe, "discover", device="cpu")
    return recipe


def opened(recipe: Recipe, workers: Workers | None, count: int = 1) -> Run:
    run = Run.join(recipe, "cpu", Reporter(quiet=True), count if workers is None else workers.workers)
    run.adapt()
    if workers is not None:
        run.__dict__["executor"] = workers
    return run


def repaired(recipe: Recipe, how: Any, workers: Workers | None, **settings: Any) -> dict[str, torch.Tensor]:
    return slim(opened(recipe, workers), how, **settings)


def slim(run: Run, how: Any, **settings: Any) -> dict[str, torch.Tensor]:
    targets = run.classes.every()
    plan = prune.main_mask(run, None, targets)
    assert any(not cut.whole for cut in plan.attention.values())
    made: nn.Module = prune.slimmed(run, plan, how, None, targets, **settings)
    return made.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(map(torch.equal, one.values(), other.values()))


@pytest.mark.parametrize("how", HOWS[::-1])
@pytest.mark.sample(2)
def test_workers_leave_no_trace_in_a_repair(discovered: Recipe, how: str) -> None:
    alone, workers = repaired(discovered, how, None), Workers()
    assert same(repaired(discovered, how, workers), alone)
    asked = {name for name, _ in workers.done}
    assert asked == {"repair", *(["classifier"] if how.endswith("head") else [])}
    assert {position for _, position in workers.done} == set(range(walk.PARTS))
    assert not list(opened(discovered, None).folder.root.glob("stages/prune/parts/*"))


@pytest.mark.parametrize("most", [1, 7, 10, 1000])
def test_a_repair_looks_at_no_more_images_than_it_may(
    discovered: Recipe, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`refit_images`: of the probe split alone, of each class as many as of any other, one at most more."""
    run = opened(discovered.model_copy(update={"refit_images": most}), None)
    plan, targets, seen = prune.main_mask(run, None, run.classes.every()), run.classes.every(), set[int]()
    real = type(run.images).batches

    def batches(self: Any, index: np.ndarray, *given: Any, **settings: Any) -> Any:
        seen.update(index.tolist())
        return real(self, index, *given, **settings)

    monkeypatch.setattr(type(run.images), "batches", batches)
    prune.slimmed(run, plan, "layerwise+head", None, targets)
    assert len(seen) == min(most, len(run.split.probe)) and seen <= set(run.split.probe.tolist())
    assert np.bincount(run.images.labels[sorted(seen)]).max() <= -(-most // len(targets))


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize(("lose", "stray"), [(0.1, 0.1), (0.2, 0.0), (0.0, 0.3)])
@pytest.mark.sample(2)
def test_a_part_that_is_lost_is_made_again_to_the_same_bits(
    discovered: Recipe, lose: float, stray: float, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = repaired(discovered, "layerwise+head", None)
    if not room:
        monkeypatch.setattr(streams.DenseStreams, "if_room", lambda *_: None)
        monkeypatch.setattr(streams, "IN_MEMORY", 0)
    assert same(repaired(discovered, "layerwise+head", Workers(lose, stray)), alone)


@pytest.mark.parametrize("before", [True, False], ids=["begun by workers", "begun alone"])
@pytest.mark.parametrize("after", [True, False], ids=["finished by workers", "finished alone"])
@pytest.mark.sample(2)
def test_a_stopped_repair_goes_on_from_what_was_solved(
    discovered: Recipe, before: bool, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, solved, stop = repaired(discovered, "layerwise", None), list[walk.Step](), 3
    real = layerwise.solve

    def solve(new: Any, old: Any, step: walk.Step, *given: Any) -> None:
        if len(solved) == stop:
            raise KeyboardInterrupt
        solved.append(step)
        real(new, old, step, *given)

    monkeypatch.setattr(layerwise, "solve", solve)
    with pytest.raises(KeyboardInterrupt):
        repaired(discovered, "layerwise", Workers() if before else None, kept=True)
    stop = 99
    assert same(repaired(discovered, "layerwise", Workers() if after else None, kept=True), alone)
    assert len(solved) == len(set(solved))  # no layer twice
    folder = opened(discovered, None).folder
    left = [path.suffix for path in folder.root.glob("stages/prune/parts/*/*")]
    assert left == [".safetensors"] * len(solved)  # the weights, until the stage has finished
    folder.clear(folder.stage_folder("prune") / "parts", set())


def test_a_worker_keeps_the_dense_streams_and_lets_the_others_go(discovered: Recipe) -> None:
    workers = Workers()
    repaired(discovered, "layerwise", workers)
    for _, held in workers.states:
        (one,) = held
        assert not one.walk.at and not one.walk.streams.kept
        kept = one.run._streams[1].tensors
        assert one.walk.kept is one.run._streams[1] and {place for place, _ in kept} == set(range(5))
    again = repaired(discovered, "sequential", workers)
    assert workers.states[0][1][0].walk.kept.tensors is not None
    assert same(again, repaired(discovered, "sequential", None))


def test_real_workers_one_of_them_killed(discovered: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, real, solved = repaired(discovered, "layerwise+head", None), layerwise.solve, [0]

    def solve(*given: Any) -> None:
        solved[0] += 1
        if solved[0] == 3:
            workers = [one for one in psutil.Process().children() if "popen_loky" in " ".join(one.cmdline())]
            workers[0].kill()
        real(*given)

    monkeypatch.setattr(layerwise, "solve", solve)
    run = opened(discovered, None, 2)
    assert isinstance(run.executor, Pool)
    try:
        assert same(slim(run, "layerwise+head"), alone) and solved[0] > 3
    finally:
        run.close()


def test_parts_are_whole_batches_and_their_number_alone_says_them() -> None:
    for batches in range(40):
        found = walk.parts(batches)
        assert [n for part in found for n in part] == list(range(batches))
        assert len(found) == min(batches, walk.PARTS) and all(found)


def test_images_of_a_part_are_where_the_whole_order_has_them(discovered: Recipe) -> None:
    run = opened(discovered, None)
    index = np.arange(13)[::-1].copy()
    asked = repairing.Asked(repairing.Left(Path(), ""), "", "layerwise", index, 2)
    seen = torch.cat([x for item in asked.items(99) for x in asked.images(run, range(*item))])
    assert torch.equal(seen, torch.cat([x for x, _ in run.images.batches(index, 2)]))


# ---- several models at once


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A frontier that has come to its discovery."""
    folder = tmp_path_factory.mktemp("several")
    content = recipe_dict(model_folder(folder / "m"), image_folder(folder / "i", 9), folder / "out")
    del content["keep"], content["criterion"]
    content |= {"budget": {"macs": [0.8, 0.65, 0.5]}, "recovery": "layerwise+head", "baselines": []}
    recipe = Recipe.model_validate(content)
    pipeline.run(recipe, "discover", device="cpu")
    return recipe


def changed(recipe: Recipe, **other: Any) -> Recipe:
    return Recipe.model_validate(yaml.safe_load(dump(recipe)) | other)


def test_budgets_are_repaired_at_once_and_the_stage_repairs_them_no_more(several: Recipe) -> None:
    """As many as give every worker the same number, the others by all workers together; to the bits of one process."""
    workers, alone = Workers(), opened(several, None)
    run = opened(several, workers)
    inners = list(frontier.runs(run))
    asked = repairs.items(run, inners)
    assert asked == [["macs-0.8", None], ["macs-0.65", None]] and repairs.items(alone, list(frontier.runs(alone))) == []
    repairs.solve(run, asked)
    assert workers.done == [("repairs", 0), ("repairs", 1)]
    for inner, left in zip(inners, (False, False, True), strict=True):
        workers.done.clear()
        prune.prune(inner)
        assert ({"repair"} <= {name for name, _ in workers.done}) == left
        assert not list(inner.folder.root.glob("stages/prune/parts/*"))
    together = [(inner.folder.root / "model.safetensors").read_bytes() for inner in inners]
    for inner, expected in zip(frontier.runs(alone), together, strict=True):
        prune.prune(inner)
        assert (inner.folder.root / "model.safetensors").read_bytes() == expected


def test_class_sets_are_repaired_at_once(discovered: Recipe, tmp_path: Path) -> None:
    groups = {"a": ["circle"], "b": ["cross", "square"]}
    recipe = changed(discovered, groups=groups, out=str(tmp_path))
    pipeline.run(recipe, "discover", device="cpu")
    workers = Workers()
    run = opened(recipe, workers)
    asked = repairs.items(run, [run])
    assert asked == [[None, "a"], [None, "b"]]
    repairs.solve(run, asked)
    workers.done.clear()
    prune.prune(run)
    assert not workers.done
    made = {group: (run.folder.root / group / "model.safetensors").read_bytes() for group in groups}
    prune.prune(opened(recipe, None))
    assert made == {group: (run.folder.root / group / "model.safetensors").read_bytes() for group in groups}


@pytest.mark.parametrize(
    "other",
    [{"budget": {"latency": [0.8, 0.5]}}, {"budget": {"size_mb": [0.1, 0.2]}}, {"recovery": "affine"}],
    ids=["measured", "weighed", "folded"],
)
def test_what_is_measured_or_mended_in_no_time_is_left_to_the_stage(several: Recipe, other: dict[str, Any]) -> None:
    run = opened(changed(several, **other), Workers())
    assert repairs.items(run, list(frontier.runs(run))) == []


@pytest.mark.slow
def test_a_frontier_of_real_workers_is_that_of_one_process(several: Recipe, tmp_path: Path) -> None:
    made = {}
    for workers in (1, 2):
        recipe = several.model_copy(update={"out": tmp_path / str(workers)})
        pipeline.run(recipe, "prune", device="cpu", workers=workers)
        made[workers] = {p.parent.name: p.read_bytes() for p in (tmp_path / str(workers)).rglob("model.safetensors")}
    assert made[1] == made[2] and len(made[1]) == 3
