"""The number of outputs is the head's, not what an attribute says; a head that is none is refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from small import image_folder, recipe_dict
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

import vitprune
from vitprune.core.errors import UserError
from vitprune.model import classifier
from vitprune.model.load import build
from vitprune.recipe import recipe
from vitprune.runs import pipeline

LABELS = torch.arange(10) % 5
SWIN = {
    "img_size": 28,
    "patch_size": 4,
    "window_size": 7,
    "embed_dim": 8,
    "depths": (1,),
    "num_heads": (1,),
    "in_chans": 1,
}


def linear(outputs: int) -> nn.Linear:
    return nn.Linear(16, outputs).double()


def test_a_head_that_was_replaced_is_what_counts(tiny_vit, make_images):
    """As tutorials do it; the attribute still says 5."""
    model, images = tiny_vit(), make_images(20)
    model.head = linear(20)
    labels = torch.arange(20)
    found = vitprune.discover(model, images, labels, criterion="jas", t=3)
    assert (model.num_classes, classifier.outputs(model), found.classes) == (5, 20, 20)
    slim = vitprune.prune(model, found, keep=0.5, images=images, classes=[19, 7])
    made = vitprune.evaluate(slim, images, labels, head=[7, 19])
    assert (made.n, len(made.per_class)) == (20, 20)
    classifier.narrow(slim, [19, 7])
    assert classifier.outputs(slim) == slim.num_classes == 2
    model.head = linear(3)
    for verb in (
        lambda: vitprune.discover(model, images, labels % 5),
        lambda: vitprune.evaluate(model, images, labels % 5),
    ):
        with pytest.raises(UserError, match="labels run from 0 to 4, the head's outputs from 0 to 2"):
            verb()
    with pytest.raises(UserError, match="outputs 0 to 2"):
        vitprune.evaluate(model, images, labels % 3, head=[4])


@pytest.mark.parametrize(
    "head",
    [nn.Sequential(nn.Dropout(), nn.Linear(16, 20)), nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 20)), nn.Bilinear],
    ids=["dropout", "norm", "another layer"],
)  # fmt: skip
def test_a_head_of_another_kind_is_counted_by_a_pass(tiny_vit, make_images, head):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 3

    model = tiny_vit()
    model.head = (Scaled() if head is nn.Bilinear else head).double()
    model.train()
    assert classifier.outputs(model) == 20
    assert model.training and model.head.training
    with pytest.raises(UserError, match="without a row per class"):
        classifier.narrow(model, [0, 1])
    assert vitprune.evaluate(model, make_images(20), torch.arange(20)).n == 20


HEADLESS = {
    "Identity": lambda m: setattr(m, "head", nn.Identity()),
    "num_classes 0": lambda m: m.reset_classifier(0),
    "dropout alone": lambda m: setattr(m, "head", nn.Dropout()),
    "nothing": lambda m: setattr(m, "head", nn.Sequential()),
}


@pytest.mark.parametrize("name", HEADLESS)
def test_a_head_that_is_none_is_refused_by_name(tiny_vit, make_images, name):
    model, images = tiny_vit(), make_images(10)
    HEADLESS[name](model)
    kind = type(model.head).__name__
    backbone = [] if name == "num_classes 0" else [lambda: vitprune.discover(model, images, LABELS)]  # which is scored
    for verb in (
        *backbone,
        lambda: vitprune.evaluate(model, images, LABELS),
        lambda: vitprune.path_scores(model, images, LABELS, torch.zeros(10, 3, 2, dtype=torch.int64)),
    ):
        with pytest.raises(UserError, match=rf"model\.head: is {kind}, .*num_classes"):
            verb()


def test_heads_in_other_places():
    """Two heads, a head inside a module, and those of torchvision and transformers."""
    tiny = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 5,
    }
    model = timm.create_model("deit_tiny_distilled_patch16_224", **tiny)
    assert classifier.outputs(model) == 5
    model.head_dist = nn.Identity()
    with pytest.raises(UserError, match=r"model\.head_dist: is Identity"):
        classifier.outputs(model)
    model = timm.create_model("swin_tiny_patch4_window7_224", **SWIN, num_classes=5)
    assert classifier.outputs(model) == 5
    model.head.fc = nn.Identity()
    with pytest.raises(UserError, match=r"model\.head\.fc: is Identity"):
        classifier.outputs(model)
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    model = build.build("torchvision:vit_b_16", sizes | {"num_classes": 5})
    net = model.net
    assert isinstance(net, TorchvisionViT) and classifier.outputs(model) == 5
    net.heads.head = nn.Linear(16, 7)
    assert classifier.outputs(model) == 7
    for change in (lambda: setattr(net.heads, "head", nn.Identity()), lambda: setattr(net, "heads", nn.Identity())):
        change()
        with pytest.raises(UserError, match=r"model\.net\.heads.*: is Identity"):
            classifier.outputs(model)


def test_logits_are_one_row_per_image(tiny_vit, make_images):
    model = tiny_vit()
    model.head = nn.Sequential(nn.Linear(16, 20).double(), nn.Unflatten(1, (4, 5)))
    with pytest.raises(UserError, match=r"gives \[1, 4, 5\] for one image; a classifier's logits \[N, C\]"):
        vitprune.evaluate(model, make_images(10), LABELS)


def test_a_recipe_with_a_model_without_a_classifier_is_refused(tmp_path):
    """The default of half of timm's names (DINOv2, EVA-02, SigLIP), which are backbones: what needs a classifier is refused
    before any work, with the argument to give."""
    content = recipe_dict("", image_folder(tmp_path / "images", 4, "RGB"), tmp_path / "out")
    tiny = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2}
    content["model"] = {"name": "vit_small_patch14_dinov2", "args": tiny}
    with pytest.raises(UserError, match=r"criterion `jas`: needs a classifier.*model\.args: \{num_classes"):
        pipeline.run(recipe.Recipe.model_validate(content))
