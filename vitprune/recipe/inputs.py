"""The sections `model`, `data` and `split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from vitprune.recipe.parts import BY_ORDER, Part, Seed


class Preprocess(Part):
    """How a model's images are prepared: what is left out stays as the weights' own configuration says it."""

    input_size: StrictInt | list[StrictInt] | None = Field(
        None, description="side of the square, [height, width] or [channels, height, width]; must be the model's"
    )
    mean: list[Annotated[float, Field(strict=True, ge=0, le=1)]] | None = Field(
        None, min_length=1, description="one per channel, of pixels from 0 to 1"
    )
    std: list[Annotated[float, Field(strict=True, ge=1e-6, le=1)]] | None = Field(
        None, min_length=1, description="one per channel, of pixels from 0 to 1"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = Field(
        None, description="of the resize"
    )
    crop_pct: Annotated[float, Field(strict=True, ge=0.1, le=1)] | None = Field(
        None, description="the input's share of the side that images are resized to"
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def of_pixels_to_one(cls, given: Any) -> Any:
        numbers = [v for v in given if type(v) in (int, float)] if isinstance(given, list) else []
        if any(v > 1 for v in numbers):
            raise ValueError("is of pixels from 0 to 1: divide what is of pixels to 255 by 255")
        return given

    @field_validator("crop_pct", mode="before")
    @classmethod
    def a_share(cls, given: Any) -> Any:
        if type(given) in (int, float) and given > 1:
            raise ValueError("is a share of at most 1, as 0.875")
        return given

    @field_validator("input_size")
    @classmethod
    def sides(cls, given: int | list[int] | None) -> int | list[int] | None:
        sizes = given if isinstance(given, list) else [1 if given is None else given]
        if len(sizes) not in (1, 2, 3) or (isinstance(given, list) and len(sizes) == 1) or min(sizes) < 1:
            raise ValueError("is one side, [height, width] or [channels, height, width]")
        return given

    def size(self, channels: int) -> tuple[int, ...] | None:
        """(channels, height, width), of a model of so many channels where the recipe leaves them out."""
        given = self.input_size
        if given is None:
            return None
        sides = [given, given] if isinstance(given, int) else given
        return tuple(sides) if len(sides) == 3 else (channels, *sides)


_OF_BACKBONES = ("head", "features")


class Model(Part):
    """Which model: `bundled`, a timm name, `local-dir:FOLDER` with config.json and model.safetensors, or another's."""

    name: str = Field(
        "bundled",
        description="`bundled`, a timm model name, `local-dir:FOLDER`, `hf-hub:ID`, `torchvision:vit_b_16`, "
        "`transformers:FOLDER`",
    )
    pretrained: bool = Field(False, description="fetch the name's own weights (needs a network)")
    checkpoint: Path | None = Field(
        None, description="a local .safetensors, .pth or .npz file in the model's own key names, also below a prefix"
    )
    checkpoint_key: str | None = Field(
        None, min_length=1, description="which of the sets of weights in the checkpoint, as `model_ema` or `teacher`"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="extra arguments for timm.create_model")
    preprocess: Preprocess | None = Field(None, description="how images are prepared, where the weights do not say it")
    head: Literal["none"] | None = Field(
        None,
        description="`none`: a backbone, whatever classifier came with it; features are pruned for, labels play no part",
    )
    features: Literal["pooled", "tokens"] | None = Field(
        None, description="of a backbone, what its output is: every token (the default) or the pooled vector alone"
    )

    @model_serializer(mode="wrap")
    def as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The section without what only backbones have, where it is not given: a classifier's digests stay."""
        return {name: value for name, value in plain(self).items() if value is not None or name not in _OF_BACKBONES}

    @model_validator(mode="after")
    def key_of_a_checkpoint(self) -> Model:
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise ValueError("`checkpoint_key` names a set of weights in `checkpoint`, which is not given")
        return self

    def folders(self) -> list[tuple[str, Path | None]]:
        """Where the model is read from on this machine, each with its key."""
        kind, _, place = self.name.partition(":")
        own = Path(place) if kind in ("local-dir", "transformers") and place else None
        return [("model.name", own), ("model.checkpoint", self.checkpoint)]


class Data(Part):
    """Which images: `source: bundled`, `path:`, `dataset:`, or `probe:` and `test:`.

    A path is a folder with one folder of images per class, a .csv or .parquet manifest with the columns path and label,
    a .tar file, or a folder of .tar files.
    """

    source: Literal["bundled"] | None = Field(None, description="the images that come with the package")
    path: Path | None = Field(
        None, description="the images, relative to the working folder; with `dataset`, where its files are"
    )
    dataset: str | None = Field(
        None, description="a name of timm.data.create_dataset: torch/…, or by extras hfds/…, hfids/…, wds/…, tfds/…"
    )
    dataset_split: str = Field("validation", description="which part of the dataset")
    probe: Path | None = Field(None, description="images to choose with, in place of a share of each class")
    test: Path | None = Field(None, description="images to judge with; none of them may be among the probe's")
    labels: Literal["by-order"] | Path | None = Field(
        None,
        description="names of the images' classes against the model's: a .json, .csv or plain text file, or the word "
        "`by-order`: the sorted classes are the outputs (a file of that name is `./by-order`)",
    )
    attributes: Path | None = Field(
        None, description="attributes of the images for the names of units: a .csv, image and then 0 or 1 for each"
    )
    masks: Path | None = Field(
        None,
        description="labels of pixels for `see`: a folder with a PNG of whole numbers for each image, under its name",
    )
    on_corrupt: Literal["fail", "skip"] = Field(
        "fail", description="an unreadable image: stop, or leave it out and count"
    )
    workers: Annotated[StrictInt, Field(ge=0, le=256)] | None = Field(
        None, description="processes that decode; 0: threads of the run itself; without it as the images are many"
    )
    limit_per_class: Annotated[StrictInt, Field(ge=2)] | None = Field(
        None, description="first this many images of each class (a quick trial)"
    )

    @model_validator(mode="after")
    def one_source(self) -> Data:
        if (self.probe is None) != (self.test is None):
            raise ValueError("`probe` and `test` go together, one to choose with and one to judge with")
        path = self.path if self.dataset is None else None  # a dataset may have both
        if sum(given is not None for given in (self.source, path, self.dataset, self.probe)) != 1:
            raise ValueError(
                "give either `source: bundled` or `path: FOLDER`, or `dataset: NAME`, or `probe` and `test`"
            )
        return self

    @field_serializer("labels", mode="plain")
    def file_or_word(self, labels: Path | str | None) -> str | None:
        """A file that is called as the word is stays a file."""
        return f"./{labels}" if labels == Path(BY_ORDER) else None if labels is None else str(labels)

    def content(self) -> dict[str, Any]:
        """What a model depends on: neither how many processes decode, nor what only `see` looks at."""
        return self.model_dump(mode="json", exclude={"workers", "attributes", "masks"})


class SplitSpec(Part):
    """The per-class split of the images into probe (choose) and test (judge)."""

    seed: Seed = Field(0, description="of the shuffle")
    probe: float = Field(0.8, gt=0, lt=1, description="share of each class that goes to the probe split")
