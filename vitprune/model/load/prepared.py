"""How a model's images are prepared and who says so: the recipe, the weights' own configuration, or nobody.

What nobody says is the architecture's default in timm. It may be wrong for weights trained elsewhere, so it is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model.load.spec import PreprocessSpec

SAID = ("interpolation", "crop_pct", "mean", "std")  # the size is the model's own, crop_mode is `center` unless said
RECIPE, WEIGHTS, DEFAULT, MODEL = "the recipe", "the weights' configuration", "timm's default, not stated", "the model"
OF_WEIGHTS = ("license", "tag", "label_names", "label_descriptions")  # facts of timm's weights, not of its architecture


@dataclass(frozen=True, slots=True)
class Origin:
    """Who says each part of the preprocessing; `notes` are for the report."""

    said_by: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def assumed(self) -> list[str]:
        """What nobody says."""
        return [key for key in SAID if self.said_by.get(key) == DEFAULT]


def apply(config: Json, given: PreprocessSpec | None, fixed: bool) -> Json:
    """timm's data_config under a recipe's `model.preprocess`; `fixed`: the model's size is not the recipe's to choose.

    Raises UserError for what does not fit the model.
    """
    if given is None:
        return config
    channels, height, width = config["input_size"]
    size = given.size(channels)
    if size is not None and size != (channels, height, width):
        ways = [f"in_chans: {size[0]}"] * (size[0] != channels)
        ways += [f"img_size: {size[1] if size[1] == size[2] else list(size[1:])}"] * (size[1:] != (height, width))
        cure = "its folder says so; remove it from model.preprocess"
        cure = cure if fixed else f"give model.args: {{{', '.join(ways)}}}"
        raise UserError(
            f"model.preprocess.input_size {list(size)}: the model takes {[channels, height, width]}; {cure}"
        )
    for key in ("mean", "std"):
        values = getattr(given, key)
        if values is not None and len(values) != channels:
            raise UserError(f"model.preprocess.{key}: {len(values)} values for images of {channels} channels")
    named = {key: getattr(given, key) for key in SAID}
    return config | {k: tuple(v) if isinstance(v, list) else v for k, v in named.items() if v is not None}


def origin(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    given: PreprocessSpec | None,
    stated: set[str],
    name: str,
    trained: bool,
) -> Origin:
    """Who says what of a data_config, `before` and `after` the recipe; `stated` is what the weights' configuration says.

    `trained`: there are weights, so that a default can be wrong for them.
    """
    mine = {key for key in SAID if given is not None and getattr(given, key) is not None}
    said_by = {"input_size": MODEL} | {
        key: RECIPE if key in mine else WEIGHTS if key in stated else DEFAULT for key in SAID
    }
    notes = []
    if assumed := [key for key in SAID if said_by[key] == DEFAULT] if trained else []:
        notes.append(
            f"Nobody says how the images of these weights are prepared: {_shown(after, assumed)} is the default for {name}. "
            "If they were trained otherwise the accuracies here are too low: state it in model.preprocess."
        )
    if changed := [key for key in SAID if key in mine & stated and _plain(before[key]) != _plain(after[key])]:
        notes.append(
            f"The recipe's {_shown(after, changed)} stands in place of what the weights' configuration says: "
            f"{_shown(before, changed)}."
        )
    return Origin(said_by, notes)


def facts(config: Mapping[str, Any], said_by: Mapping[str, str]) -> Json:
    """What the report and an ONNX file say of it: the values, and `said_by`."""
    return {key: _plain(config[key]) for key in ("input_size", *SAID, "crop_mode")} | {"said_by": dict(said_by)}


def _shown(config: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {_text(config[key])}" for key in keys)


def _text(value: Any) -> str:
    return " ".join(f"{v:.4g}" for v in value) if isinstance(value, list | tuple) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
