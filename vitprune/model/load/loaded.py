"""A model that was opened, with what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from vitprune.core.reading import Json
from vitprune.images.preprocess import Preprocessing
from vitprune.model.families import PROJECTS
from vitprune.model.load.prepared import Origin
from vitprune.model.load.spec import Args

RAGGED = "ragged_widths_need_vitprune_load"  # a model argument that no timm model takes: plain timm's error quotes it


ASSUMED = "preprocessing_assumed"  # of a folder's pretrained_cfg: what no configuration and no recipe has said


READS = "features"  # of a folder's `vitprune` block: `pooled` where a backbone's output is the pooled vector alone
PROJECTION = "projection"  # of a folder's `vitprune` block: the head is a projection of features, no classifier


KEPT_CFG = (
    "tag", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes",
    "pool_size", "first_conv", "classifier", "license", "label_names", "label_descriptions",
)  # fmt: skip

Widths = dict[str, int] | list[int]  # units by site name; a list, block by block, in folders of before sites had names


@dataclass(slots=True)
class Loaded:
    """A model in eval mode with frozen weights, and what is needed to build it again and to feed it.

    `about` is the `vitprune` block of the folder it came from, less what `save` works out itself; `origin` tells who says
    how images are prepared, `notes` what a report should say of the weights.
    """

    model: nn.Module
    architecture: str
    model_args: Args
    data_config: Json
    labels: list[str] | None
    widths: list[int] = field(default_factory=list)
    about: Json = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    notes: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> int:
        """Number of classes C the head tells apart."""
        return int(self.model.num_classes)  # type: ignore[arg-type]

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The model's own evaluation transform, PIL image → float tensor [C, H, W], alike in every process."""
        return Transform(Preprocessing.of(self.data_config))


@dataclass(frozen=True, slots=True)
class Transform:
    """The way of an image into a model; `preprocessing` by itself stops before the pixels are normalised."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocessing(image))


def as_backbone(model: nn.Module) -> None:
    """Nothing; the model's outputs are features from now on: those before its head, or, where it has one, that projects."""
    model.num_classes = 0  # type: ignore[assignment]
    setattr(model, PROJECTS, isinstance(getattr(model, "head", None), nn.Linear))


def projection(model: nn.Module) -> int:
    """Dimensions that a backbone's features are projected to, as CLIP's image tower does; 0 for a model without."""
    head = getattr(model, "head", None)
    return head.out_features if getattr(model, PROJECTS, False) and isinstance(head, nn.Linear) else 0


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
