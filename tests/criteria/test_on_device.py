"""What criteria do on a device: its tensors alone, float64 where it knows that, the processor's bits (helpers/simulated)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simulated
import torch
from torch import Tensor

from vitprune.core import least_squares, memory
from vitprune.criteria.catalog import CRITERIA, how_of
from vitprune.criteria.curves import Curve
from vitprune.criteria.paths import Gathered
from vitprune.criteria.statistics import elimination, elimination_on_device, fisher_obs, obs
from vitprune.images.sources.bundled import Bundled
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.recipe.inputs import Model

KINDS = ["cuda", "mps"]


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda _: 1 << 34)


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fisher-obs", "obs", "variance", "jas", "taylor", "activation", "joint-gates"])
def test_a_criterion_on_a_device_keeps_to_it(tiny_vit, make_images, name: str, kind: str) -> None:
    row, images, labels = CRITERIA[name], make_images(3, dtype=torch.float32), torch.arange(3)
    how = how_of(name)

    def scores(model: Any, x: Tensor, y: Tensor) -> list[Tensor]:
        sites = families.ffn_sites(model)
        if row.score:
            return row.score(model, sites, x, y, ts=[4], how=how)[4]
        assert row.whole
        found = row.whole(model, sites, lambda: iter([(x, y)]), how=how)
        return [t for one in found for t in ([one.order, one.costs] if isinstance(one, Curve) else [one])]

    here = scores(tiny_vit(depth=2, dtype=torch.float32), images, labels)
    with simulated.device(kind) as own:
        there = scores(simulated.there(tiny_vit(depth=2, dtype=torch.float32)), images.to(own), labels.to(own))
        there = [x.cpu() for x in there]
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-10 if "obs" in name else 0, atol=1e-14 if "obs" in name else 0)


def close_to(theirs: tuple[Tensor, Tensor], mine: tuple[Tensor, Tensor]) -> None:
    assert theirs[0].tolist() == mine[0].tolist()
    torch.testing.assert_close(theirs[1], mine[1], rtol=1e-10, atol=1e-12 * float(mine[1].max()))


@pytest.mark.parametrize(("n", "d"), [(200, 12), (64, 80), (65, 3), (1, 1)])
def test_elimination_on_a_device_is_that_of_the_processor(n: int, d: int) -> None:
    """More units than a block of updates, exactly one block, one more; wider and narrower than the stream."""
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(d, n, generator=generator, dtype=torch.float64)
    covariance = (torch.randn(3 * n + 1, n, generator=generator, dtype=torch.float64) ** 3).T.cov().reshape(n, n)
    mine = elimination.eliminate(weight, covariance)
    with simulated.device("cuda") as own:
        theirs = elimination.eliminate(weight, covariance, device=own)
        assert {x.device.type for x in theirs} == {"cpu"}
    close_to(theirs, mine)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_elimination_needs_a_device_with_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(elimination_on_device, "eliminate")
    elimination.eliminate(torch.eye(3), torch.eye(3), device=torch.device(kind))


def test_elimination_on_a_device_takes_the_bundled_models_units_in_the_same_order() -> None:
    """Its own covariances, of 48 of its images; the first block and the last."""
    loaded, source = opening.open_model(Model()), Bundled()
    model, transform, sites = loaded.model, loaded.transform(), families.ffn_sites(loaded.model)
    images = torch.stack([transform(source.image(i)) for i in range(0, 4800, 100)])
    found = fisher_obs.statistics(model, sites, lambda: iter([(images, torch.zeros(48, dtype=torch.int64))]), 0)
    for site, covariance, gradient in list(zip(sites, *found[:2], strict=True))[:: len(sites) - 1]:
        weight = fisher_obs.root(gradient) @ obs.columns(model, site)
        mine = elimination.eliminate(weight, covariance)
        close_to(elimination_on_device.eliminate(weight, covariance, least_squares.RIDGE, torch.device("cpu")), mine)


@pytest.mark.parametrize("depth", [1, 12])
def test_paths_are_gathered_by_one_transfer_of_each_kind(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """Labels, units, their scores and all scores: four, however many blocks there are."""
    generator, moved = torch.Generator().manual_seed(0), list[tuple[int, ...]]()
    blocks = [torch.randn(5, 8, generator=generator) for _ in range(depth)]
    labels, asked = torch.arange(5) % 2, simulated._Mode.asked

    def counted(mode: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "cpu":
            moved.append(tuple(args[0].shape))
        return asked(mode, name, args, kwargs)

    here = Gathered.of(blocks, labels, np.arange(5), 3).columns()
    with simulated.device("cuda") as own:
        there = [block.to(own) for block in blocks], labels.to(own)
        monkeypatch.setattr(simulated._Mode, "asked", counted)
        made = Gathered.of(*there, np.arange(5), 3).columns()
    assert moved == [(5,), (5, depth, 3), (5, depth, 3), (5, 8 * depth)]
    assert made.keys() == here.keys() and all(np.array_equal(made[name], here[name]) for name in here)
