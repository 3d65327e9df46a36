"""Sums over images in parts: the bits of one pass, whoever made which part and however often it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small import image_folder, model_folder, recipe_dict

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.scores import Scores
from vitprune.model.inside import moments
from vitprune.model.sites.base import names
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline
from vitprune.runs.results import curves
from vitprune.runs.stages import score, sums
from vitprune.runs.stages.sums import Asked
from vitprune.runs.state.batching import Batching
from vitprune.runs.state.run import Run

SUMMED = [name for name, row in CRITERIA.items() if row.summed]


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Batching, "batch", 4)
    content = recipe_dict(model_folder(tmp_path / "m"), image_folder(tmp_path / "i", 12), tmp_path / "out")
    content |= {"criterion": {"name": SUMMED[0], "probe_per_class": 9}, "baselines": SUMMED[1:], "recovery": "affine"}
    return content | {"allocation": "uniform"}


def results(out: Path) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in out.glob("tiny/stages/*/*.safetensors") if p.parent.name != "split"}
    assert len(found) == len(SUMMED) + 1 and not list(out.glob("tiny/stages/*/parts"))
    return found


@pytest.mark.sample(1)
def test_workers_leave_no_trace_in_sums(setting: dict[str, Any], tmp_path: Path) -> None:
    """One pass over all batches is what the parts are held to."""
    pipeline.run(Recipe.model_validate(setting), "moments", device="cpu")
    alone = results(tmp_path / "out")
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True))
    index = score._mixed(run, run.classes.every())
    assert len(index) == 27
    for name in SUMMED:
        whole, how = CRITERIA[name].whole, run.recipe.criterion.how(name)
        assert whole is not None
        found = whole(run.loaded.model, run.sites, lambda: run.images.batches(index, 4), how=how)
        made = Scores.whole(name, names(run.sites), found)
        assert made.to_bytes() == alone[f"{name}-of-all.safetensors"], name
    stats = moments.moments(run.loaded.model, run.sites, (x for x, _ in run.images.batches(run.split.probe, 4)))
    kept = load_file(run.folder.stage_folder("moments") / "all.moments.safetensors")
    assert all(np.array_equal(kept[f"covariance.{i}"], stat.covariance) for i, stat in enumerate(stats))
    for workers in (2, 3):
        out = tmp_path / f"by-{workers}"
        pipeline.run(Recipe.model_validate(setting | {"out": str(out)}), "moments", device="cpu", workers=workers)
        assert results(out) == alone


def test_parts_of_a_stopped_sum_are_taken(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True))
    pipeline.run(run.recipe, "split", device="cpu")
    asked = Asked("moments", "obs", CRITERIA["obs"].settings(), run.split.probe, 4)
    work, made = sums._work, []

    def stops(run: Run, asked: Asked, first: Any, item: list[int]) -> Any:
        made.append(item[0])
        if made == [0, 4, 8]:
            raise KeyboardInterrupt
        return work(run, asked, first, item)

    monkeypatch.setattr(sums, "_work", stops)
    with pytest.raises(KeyboardInterrupt):
        sums.totals(run, asked, "").all()
    found = sums.totals(run, asked, "").all()
    assert made == [0, 4, 8, *range(8, len(run.split.probe), 4)]
    again = sums.totals(run, asked, "").all()
    assert len(made) == 2 + 1 + len(range(8, len(run.split.probe), 4))
    assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)
    left = [path.parent.name for path in (run.folder.stage_folder("moments") / "parts").rglob("*.safetensors")]
    assert left == [sums.SITES] * len(run.sites)


@pytest.mark.parametrize("name", [name for name in SUMMED if CRITERIA[name].attention])
@pytest.mark.sample(2)
def test_a_site_needs_no_more_than_its_own_sums(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """FFNs and attentions one by one, each from its own sums, to the bits of all at once."""
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True))
    pipeline.run(run.recipe, "split", device="cpu")
    row, model = CRITERIA[name], run.loaded.model
    assert row.summed is not None and row.attention is not None
    asked = Asked("discover", name, row.settings(), run.split.probe, 4, attention=True)
    found, read = sums.totals(run, asked, "").all(), list[set[str]]()
    one_site = sums.Totals.of

    def seen(totals: sums.Totals, *site: Any) -> Any:
        own = one_site(totals, *site)
        read.append(set(sums.of_site(found, site[1], site[0] == sums.ATTENTION).values()))
        assert own.keys() == sums.of_site(found, site[1], site[0] == sums.ATTENTION).keys()
        return own

    monkeypatch.setattr(sums.Totals, "of", seen)
    ffns, attentions = curves.of_sites(run, asked, "")
    assert len(read) == len(run.sites) + len(attentions) == 4
    assert set.union(*read) == set(found) and sum(map(len, read)) == len(found)
    expected = row.summed.scores(model, run.sites, found, how=asked.how)
    sites = names(run.sites)
    assert Scores.whole(name, sites, ffns).to_bytes() == Scores.whole(name, sites, expected).to_bytes()
    whole = row.attention.curves(model, lambda: run.images.batches(asked.index, 4), found, how=asked.how)
    for own, other in zip(attentions, whole, strict=True):
        tensors = other.tensors()
        assert own.keys() == tensors.keys() and all(torch.equal(own[key], tensors[key]) for key in own)


def test_large_sums_have_few_parts() -> None:
    assert sums.items(8, 8, 8, 1000) == []
    assert sums.items(8, 30, 8, 1000) == [[8, 16], [16, 24], [24, 30]]
    few = sums.items(8, 808, 8, sums.BYTES)
    assert [stop for _, stop in few[:-1]] == [start for start, _ in few[1:]] and few[-1][1] == 808
    assert len(few) == sums.FEWEST and all((stop - start) % 8 == 0 for start, stop in few)


@pytest.mark.parametrize("name", ["fisher-obs", "obs"])
def test_parts_added_up_on_disk_are_the_sums_of_one_pass(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """To the bit, of FFNs and attentions; and nobody but who makes a part ever has the sums of two sites in memory."""
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True))
    pipeline.run(run.recipe, "split", device="cpu")
    asked = Asked("discover", name, CRITERIA[name].settings(), run.split.probe, 4, attention=True)
    tensors, seen = sums._columns, list[set[str]]()

    def kept(found: sums.Sums) -> Any:
        seen.append({word for key in found for word in key.split(".") if word.isdigit()})
        return tensors(found)

    monkeypatch.setattr(sums, "_columns", kept)
    totals = sums.totals(run, asked, "")
    parts, sites = len(run.split.probe) // 4 + 1, len(totals.sites)
    assert [len(one) for one in seen] == [len(run.sites)] * parts + [1] * sites
    found = totals.all()

    def batches() -> Any:
        return run.images.batches(asked.index, 4)

    classes = sorted(set(run.images.labels[asked.index].tolist()))
    once = asked.summed.sums(run.loaded.model, run.sites, batches, classes=classes, how=asked.how, first=None)
    assert once.keys() == found.keys() and all(torch.equal(once[key], found[key]) for key in once)


def test_a_part_that_has_gone_is_one_line(setting: dict[str, Any]) -> None:
    run = Run.join(Recipe.model_validate(setting), "cpu", Reporter(quiet=True))
    pipeline.run(run.recipe, "split", device="cpu")
    totals = sums.totals(run, Asked("moments", "obs", CRITERIA["obs"].settings(), run.split.probe, 4), "")
    totals.parts.path(1).unlink()
    with pytest.raises(UserError, match="gone or damaged since it was written; run again"):
        totals.of(sums.FFN, 1)
    with pytest.raises(UserError, match="gone or damaged"):
        sums._added([totals.parts.path(0), totals.parts.path(1)], [sums.FFN, 0])
