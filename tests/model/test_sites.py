"""A kind of site is a file and a row: a toy one, whole attention heads, goes through prune, save and load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small import model_folder
from torch import Tensor, nn

import vitprune
from vitprune.core.errors import UserError
from vitprune.model import families, kinds
from vitprune.model.load import opening, saving
from vitprune.model.sites import base
from vitprune.model.sites.base import Cost, Site, Size, Slice
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe.inputs import Model


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one block's attention, all of one size."""

    block: int
    size: int
    width: int
    kind: str = "heads"
    least: int = 1
    multiple: int = 1

    @property
    def name(self) -> str:
        return f"blocks.{self.block}.attn"

    @property
    def reads(self) -> str:
        return f"{self.name}.proj"

    def slices(self, model: nn.Module) -> list[Slice]:
        starts = tuple(part * self.size * self.width for part in range(3))
        qkv = [Slice(f"{self.name}.qkv.{name}", 0, starts, self.width) for name in ("weight", "bias")]
        return [*qkv, Slice(f"{self.name}.proj.weight", 1, (0,), self.width)]

    def sizes(self, model: nn.Module) -> list[Size]:
        return [
            Size(self.name, "num_heads"),
            Size(self.name, "attn_dim", self.width),
            Size(f"{self.name}.qkv", "out_features", 3 * self.width),
            Size(f"{self.name}.proj", "in_features", self.width),
        ]

    def cost(self, model: nn.Module, units: int) -> Cost:
        per_head = 4 * self.width * model.get_submodule(f"{self.name}.qkv").in_features  # type: ignore[operator]
        return Cost(units * per_head, units * (per_head + 3 * self.width))  # type: ignore[arg-type,operator]


def heads(model: nn.Module) -> list[Heads]:
    return [Heads(i, b.attn.num_heads, b.attn.head_dim) for i, b in enumerate(model.blocks)]  # type: ignore


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "heads", heads)


def halves(sites: list[Site]) -> dict[str, Tensor]:
    return {site.name: torch.arange(site.size) % 2 == 0 for site in sites}


@pytest.mark.usefixtures("toy")
def test_a_kind_of_site_is_a_file_and_a_row(tmp_path: Path) -> None:
    loaded = opening.open_model(Model(name=f"local-dir:{model_folder(tmp_path / 'm')}"))
    sites = kinds.sites_of(loaded.model, ["ffn", "heads"])
    assert {site.kind for site in sites} == {"ffn", "heads"} and len({site.name for site in sites}) == len(sites)
    plan = Plan(halves(sites))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(3, *families.input_shape(loaded.model), generator=draw)
    assert surgery.masked_vs_sliced(loaded.model, plan, images) < 1e-5
    slim = surgery.slim(loaded.model, plan)
    for before, after in zip(sites, kinds.sites_of(slim, ["ffn", "heads"]), strict=True):
        assert after.size == plan.widths[before.name]
        removed = before.cost(loaded.model, before.size).parameters - before.cost(loaded.model, after.size).parameters
        assert removed > 0
    lost = sum(p.numel() for p in loaded.model.parameters()) - sum(p.numel() for p in slim.parameters())
    assert lost == sum(
        s.cost(loaded.model, s.size).parameters - s.cost(loaded.model, plan.widths[s.name]).parameters for s in sites
    )
    saving.save(tmp_path / "slim", loaded, slim, {})
    back = vitprune.load(tmp_path / "slim")
    assert torch.equal(back(images), slim(images))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", ["ffn", "heads"])
def test_every_kind_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    """Masked is sliced, the count is the cost, a size that is not there is noticed, and there is a way back in size."""
    model = opening.open_model(Model(name=f"local-dir:{model_folder(tmp_path / 'm')}")).model
    for site in kinds.sites_of(model, [kind]):
        base.check_size(model, site, site.size)
        with pytest.raises(AssertionError):
            base.check_size(model, site, site.size + 1)
    again = surgery.slim(model, Plan(halves(kinds.sites_of(model, [kind]))))
    sizes = {site.name: site.size for site in kinds.sites_of(model, [kind])}
    for site in kinds.sites_of(again, [kind]):
        base.resize(again, site, sizes[site.name])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_kind_or_a_name_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    model = opening.open_model(Model(name=f"local-dir:{model_folder(tmp_path / 'm')}")).model
    with pytest.raises(UserError, match="sites: `stem` is not known; there are ffn"):
        kinds.sites_of(model, ["stem"])
    with pytest.raises(UserError, match=r"site `blocks\.9\.mlp`: this model has no such site"):
        kinds.named(model, ["blocks.9.mlp"])
