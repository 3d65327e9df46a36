"""Repairs on a device have the processor's bits, and ask it for nothing that it has not (helpers/simulated)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import simulated
import torch
from small import plan_for
from torch import Tensor, nn

from vitprune.core import memory
from vitprune.criteria.heads import scores as of_heads
from vitprune.criteria.statistics.random import random
from vitprune.model import families
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning.repair import streams
from vitprune.pruning.repair.names import Recovery
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.slimming import slim
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs
from vitprune.runs.engine import worker


@pytest.mark.sample(3)
@pytest.mark.parametrize("how", ["layerwise+head", "affine", "mean", "none"])
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_repair_on_a_device_has_the_processors_bits(
    tiny_vit: Callable[..., nn.Module],
    make_images: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    how: Recovery,
    kind: str,
) -> None:
    monkeypatch.setattr(memory, "free", lambda _: 1 << 34)

    def made(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        curves = [one.curve for one in of_heads.random(attention_sites(model), seed=0)]
        plan = allocation.plan(model, random(families.ffn_sites(model), seed=0), curves, 0.5, Macs(model))
        repairer = Repairer(how)
        done = slim(plan, repairer, repairer.prepare(model, lambda: list(images.split(4))))
        return {key: value.cpu() for key, value in done.state_dict().items()}

    images = make_images(8, dtype=torch.float32)
    here = made(tiny_vit(depth=2, dtype=torch.float32), images)
    with simulated.device(kind) as own:
        there = made(simulated.there(tiny_vit(depth=2, dtype=torch.float32)), images.to(own))
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


# ---- where a card's streams lie


def room(card: int, machine: int) -> Callable[[torch.device], int]:
    return lambda device: card if device.type == "cuda" else machine


def test_streams_lie_on_the_card_then_in_pinned_memory_then_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forty bytes each: the card's share, less what is reserved, has room for two of them, pinned memory, which comes in
    powers of two, for two more. What is replaced or dropped makes room again."""
    monkeypatch.setattr(memory, "free", room(200, 512))
    pins, real = list[bool](), streams.host_copy

    def copied(x: Tensor, pinned: bool) -> Tensor:
        pins.append(pinned)
        return real(x, pinned)

    monkeypatch.setattr(streams, "host_copy", copied)
    with simulated.device("cuda") as own:
        made = streams.Streams(tmp_path, own, reserved=40)
        assert (made.near, made.room) == (80, 128)
        for n in range(5):
            made.put("x", n, torch.full((10,), float(n)).to(own))
        found = [made.kept["x", n].device.type if ("x", n) in made.kept else "file" for n in range(5)]
        assert found == ["cuda", "cuda", "cpu", "cpu", "file"] and pins == [True, True]
        for n in range(5):
            back = made.get("x", n, own)
            assert back.device == own and torch.equal(back.cpu(), torch.full((10,), float(n)))
        made.put("x", 0, torch.full((10,), 9.0).to(own))
        assert (made.near, made.room) == (0, 0) and made.get("x", 0, own).cpu()[0] == 9
        for n in (1, 2):
            made.drop(n)
        assert (made.near, made.room) == (40, 64)
        made.close()


def test_processes_of_one_card_share_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "free", room(800, 0))
    monkeypatch.setattr(memory, "sharing", 1)
    for workers, names, near in ((1, ("cuda:0",), 400), (4, ("cuda:0", "cuda:1"), 200), (3, ("cuda:0", "cuda:1"), 200)):
        worker.begin(torch.get_num_threads(), names, 0, workers=workers)
        with simulated.device("cuda") as own:
            assert streams.Streams(tmp_path, own).near == near
    worker.begin(torch.get_num_threads(), (), 0)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_repair_whose_streams_lie_everywhere_has_the_same_bits(
    tiny_vit: Callable[..., nn.Module],
    make_images: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    keeps: bool,
) -> None:
    places = set[str]()
    put = streams.Streams.put

    def noted(self: streams.Streams, name: str, batch: int, value: Tensor) -> None:
        put(self, name, batch, value)
        places.add(self.kept[name, batch].device.type if (name, batch) in self.kept else "file")

    monkeypatch.setattr(streams.Streams, "put", noted)

    def made(model: nn.Module, images: Tensor, kept: streams.DenseStreams | None) -> dict[str, Tensor]:
        repairer, plan = Repairer("layerwise", scratch=tmp_path), plan_for(model, [torch.arange(32) % 3 > 0] * 2)
        done = slim(plan, repairer, repairer.prepare(model, lambda: list(images.split(3)), streams=kept))
        return {key: value.cpu() for key, value in done.state_dict().items()}

    images = make_images(9, dtype=torch.float32)
    here, one = made(tiny_vit(depth=2, dtype=torch.float32), images, None), 4 * 17 * 16 * 3
    places.clear()
    monkeypatch.setattr(memory, "free", room(4 * one, 12 * one))
    with simulated.device("cuda") as own:
        model = simulated.there(tiny_vit(depth=2, dtype=torch.float32))
        kept = streams.DenseStreams(pinned=True) if keeps else None
        there = made(model, images.to(own), kept)
        if kept:
            assert {tensor.device.type for tensor in kept.tensors.values()} == {"cpu"}
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert places >= {"cuda", "cpu"} and (keeps or "file" in places)


def test_dense_streams_that_a_card_has_no_room_for_are_pinned(
    tiny_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated.device("cuda"):
        model = simulated.there(tiny_vit(depth=2, dtype=torch.float32))
        whole = 5 * 5 * streams._one(model)
        for card, machine, pinned in ((2 * whole, 0, False), (0, 8 * whole, True), (0, 8 * whole - 8, None)):
            monkeypatch.setattr(memory, "free", room(card, machine))
            found = streams.DenseStreams.if_room(model, 5)
            assert (found and found.pinned) == pinned
