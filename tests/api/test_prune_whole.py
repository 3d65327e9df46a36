"""`vitprune.prune(…, budget={"macs": …})`: the whole model in one budget, from the library."""

from __future__ import annotations

import pytest
import timm
import torch
from small import tiny_model

import vitprune
from vitprune import UserError
from vitprune.model import size
from vitprune.model.sites.attention import attention_sites

IMAGES = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def test_attention_goes_beside_the_ffns_within_the_budget() -> None:
    model = tiny_model().eval()
    scores = vitprune.discover(model, IMAGES, LABELS)
    slim = vitprune.prune(model, scores, budget={"macs": 0.5}, images=IMAGES)
    assert size.macs(slim) <= 0.5 * size.macs(model)
    assert [(s.heads, s.dim) for s in attention_sites(slim)] != [(s.heads, s.dim) for s in attention_sites(model)]
    by_parameters = vitprune.prune(model, scores, budget={"params": 0.7}, images=iter(IMAGES.split(8)), classes=[0, 2])
    assert size.parameters(by_parameters) <= 0.7 * size.parameters(model)
    assert slim(IMAGES).isfinite().all() and by_parameters(IMAGES).isfinite().all()


def test_a_family_whose_attention_stays_says_so() -> None:
    args = {"img_size": 16, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_classes": 3}
    model = timm.create_model("swin_tiny_patch4_window7_224", **args).eval()
    images = torch.randn(12, 3, 16, 16)
    scores = vitprune.discover(model, images, torch.arange(12) % 3)
    with pytest.warns(UserWarning, match="only FFN units are pruned"):
        slim = vitprune.prune(model, scores, budget={"macs": 0.8}, images=images)
    assert size.macs(slim) <= 0.8 * size.macs(model)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_base_patch16_rpn_224"])
def test_families_of_other_attentions_and_blocks_are_cut_too(name: str) -> None:
    args = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "num_classes": 3}
    model, images = timm.create_model(name, **args).eval(), torch.randn(40, 3, 16, 16)
    scores = vitprune.discover(model, images, LABELS)
    slim = vitprune.prune(model, scores, budget={"macs": 0.4}, images=images)
    assert size.macs(slim) <= 0.4 * size.macs(model) and slim(images).isfinite().all()
    assert [s.heads * s.dim for s in attention_sites(slim)] != [s.heads * s.dim for s in attention_sites(model)]


def test_what_does_not_go_together_is_one_line() -> None:
    model = tiny_model().eval()
    scores = vitprune.discover(model, IMAGES, LABELS)
    others = vitprune.discover(model, IMAGES, LABELS, criterion="variance")
    for wrong, told in (
        ({}, "give keep=0.25, or budget="),
        ({"keep": 0.5, "budget": {"macs": 0.5}}, "in the place of keep"),
        ({"budget": {"macs": 2.0}}, "less than or equal to 1"),
        ({"budget": {"macs": 0.5, "params": 0.5}}, "a budget of one thing"),
        ({"budget": {"macs": 0.5}}, "needs images"),
        ({"budget": {"macs": 0.01}, "images": IMAGES}, "is below what is left"),
    ):
        with pytest.raises(UserError, match=told):
            vitprune.prune(model, scores, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs scores of `fisher-obs`, not of `variance`"):
        vitprune.prune(model, others, budget={"macs": 0.5}, images=IMAGES)
