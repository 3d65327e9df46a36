"""What a criterion holds however few images it takes at a time is known before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small import image_folder, model_folder, recipe_dict, tiny_model

from vitprune.core import memory
from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.settings import Seeded
from vitprune.criteria.statistics import held
from vitprune.model import families
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline


@pytest.fixture(name="giant", scope="module")
def of_giant() -> torch.nn.Module:
    """ViT-g, 40 blocks of 6,144 units, without its weights."""
    with torch.device("meta"):
        return timm.create_model("vit_giant_patch14_clip_224")


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.summed])
def test_the_figure_is_that_of_the_sums_themselves(criterion: str, attention: bool) -> None:
    """All matrices, packed or not; the vectors and counts beside them are nothing where it counts."""
    model = tiny_model(depth=3)
    sites, row = families.ffn_sites(model), CRITERIA[criterion]
    asked = row.sums(attention)
    assert asked is not None
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4) % 3
    made = asked.sums(model, sites, lambda: iter([(images, labels)]), classes=[0, 1, 2], how=Seeded(0), first=None)
    counted = sum(value.numel() * 8 for name, value in made.items() if value.ndim > 1 or name.endswith(".gram"))
    assert held.sums(criterion, model, sites, attention and row.attention is not None) == counted > 0


def test_a_criterion_without_sums_holds_nothing() -> None:
    model = tiny_model()
    for name in ("jas", "activation", "magnitude-l2", "random", "class-alignment"):
        assert held.sums(name, model, families.ffn_sites(model), attention=True) == 0
        held.require(name, model)


@pytest.mark.parametrize(("gigabytes", "fits"), [(16, True), (8, False)])
def test_a_giant_on_a_card_of_16_gb_and_on_one_that_is_too_small(
    giant: torch.nn.Module, gigabytes: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sites = giant, families.ffn_sites(giant)
    assert [site.size for site in sites] == [6144] * 40
    assert held.sums("fisher-obs", model, sites) == 40 * (6144 * (6144 + 128) // 2 + 1408**2) * 8
    monkeypatch.setattr(memory, "whole", lambda device: (gigabytes << 30) if device is not None else 1 << 40)
    if fits:
        held.require("fisher-obs", model)
        held.require("fisher-obs", model, attention=True)
        return
    with pytest.raises(UserError) as refused:
        held.require("fisher-obs", model)
    line = str(refused.value)
    assert "6.8 GB" in line and "8.6 GB of memory" in line and "--device cpu" in line and "\n" not in line
    held.require("activation", model)


def test_a_machine_that_cannot_hold_the_sums_of_its_card(
    giant: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once is enough: parts are added up site by site, from the disk."""
    for gigabytes in (7, 5):
        monkeypatch.setattr(memory, "whole", lambda device: (gigabytes if device is None else 80) << 30)  # noqa: B023
        if gigabytes == 7:
            held.require("fisher-obs", giant)
            continue
        with pytest.raises(UserError, match=r"this machine has 5\.4 GB"):
            held.require("fisher-obs", giant)


def test_a_run_is_refused_before_any_work_and_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = recipe_dict(model_folder(tmp_path / "model"), image_folder(tmp_path / "images"), tmp_path / "out")
    made = Recipe.model_validate(content | {"criterion": {"name": "fisher-obs"}})
    monkeypatch.setattr(memory, "whole", lambda _: 100_000)
    with pytest.raises(UserError, match="criterion `fisher-obs`: its sums take"):
        pipeline.run(made, "discover", device="cpu", reporter=Reporter(quiet=True))
    assert not list(tmp_path.glob("out/*/stages/*/*")) and not (tmp_path / "out/tiny/recipe.yaml").exists()
