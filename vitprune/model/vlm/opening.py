"""Vision-language models from folders that transformers wrote, or that `saving.py` did.

Built from the library's own classes alone, weights from safetensors: no code that comes with weights is run, nothing is
fetched. A folder of ours whose layers differ in width says so in config.json; the model is then made to these widths before
its weights are read.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json
from vitprune.model.load import headers
from vitprune.model.load.weights import shards
from vitprune.model.sites import base
from vitprune.model.vlm import sites, tokens
from vitprune.model.vlm.preparing import Preparer
from vitprune.model.vlm.recognising import FAMILIES, architecture_of, config_of

OURS = "vitprune"


@dataclass(frozen=True, slots=True)
class Vlm:
    """An open vision-language model, in eval mode and float32; its folder, its class, and its processor if there is one."""

    model: nn.Module
    folder: Path
    architecture: str
    processor: Any = None

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def preparer(self) -> Preparer:
        """What makes samples of pairs. Raises UserError where the folder has no processor."""
        if self.processor is None:
            raise UserError(
                f"{self.folder}: has no processor (preprocessor_config.json, tokenizer.json); pairs need one"
            )
        return Preparer(self.processor, self.config)


def open_vlm(folder: Path) -> Vlm:
    """The model of a folder. Raises UserError where it is none, is quantised, or lacks weights."""
    config = config_of(folder)
    name = architecture_of(folder)
    if name is None:
        said = str((config.get("architectures") or ["none"])[0])[:60]
        raise UserError(f"{folder}: {said} is not known as a vision-language model; there are {', '.join(FAMILIES)}")
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(part, dict) and part.get("quantization_config"):
            raise UserError(
                f"{folder}: its weights are quantised, so no unit can be cut out; give the folder of full weights"
            )
    weights = shards.weights_of(folder)
    if weights is not None:
        shards.shapes(weights)  # before the library follows the names in an index
    made = _class(name)
    tokens.image_token(made.config_class.from_dict(config))
    own = config.get(OURS)
    widths = own.get("widths") if isinstance(own, dict) else None
    try:
        model = _ragged(made, config, folder, widths) if isinstance(widths, dict) else _plain(made, folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: cannot be opened as {name} ({one_line(error)})") from error
    sites.every_ffn(model)
    return Vlm(model.eval().requires_grad_(False), folder, name, _processor(folder))


def _class(name: str) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        library = importlib.import_module("transformers")
        library.utils.logging.disable_progress_bar()
        return getattr(library, name)
    except ImportError as error:
        raise UserError(f"model: {name} needs the extra: pip install 'vitprune[transformers]'") from error


def _plain(made: Any, folder: Path) -> Any:
    """By transformers' own loading: it knows the names that its older versions wrote."""
    model, found = made.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
    )
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found.get(what):
            raise ValueError(f"{what.replace('_', ' ')}: {sorted(map(str, found[what]))[0]}")
    return model


def _ragged(made: Any, config: Json, folder: Path, widths: Json) -> Any:
    """A model whose layers differ in width: the architecture without memory, made to these widths, is held against what the
    file says of itself before anything is allocated."""
    settings = made.config_class.from_dict({k: v for k, v in config.items() if k != OURS})
    with torch.device("meta"):
        planned = made(settings)
    _to_widths(planned, widths, folder)
    files = sorted(folder.glob("*.safetensors"))
    shapes = {name: shape for file in files for name, shape in headers.shapes(file).items()}
    tied = set(getattr(planned, "_tied_weights_keys", None) or ()) if settings.tie_word_embeddings else set()
    for name, value in planned.state_dict().items():
        if name not in tied and shapes.get(name) != tuple(value.shape):
            raise UserError(
                f"{folder}: {name} is {shapes.get(name)} in the weights, {tuple(value.shape)} by config.json"
            )
    model = made(settings).float()
    _to_widths(model, widths, folder)
    weights: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as held:
            weights |= {name: held.get_tensor(name) for name in held.keys() if name in model.state_dict()}  # noqa: SIM118
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


def _to_widths(model: nn.Module, widths: Json, folder: Path) -> None:
    known = sites.named(model)
    for name, width in widths.items():
        site = known.get(name)
        if site is None:
            raise UserError(f"{folder}: config.json gives a width to `{name[:80]}`, which this model does not have")
        if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= site.size:
            raise UserError(
                f"{folder}: config.json gives {name} {str(width)[:20]} units; 1 to {site.size} are possible"
            )
        base.resize(model, site, width)


def _processor(folder: Path) -> Any:
    """The folder's processor, None where it has none."""
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: its processor cannot be opened ({one_line(error)})") from error
