"""A local CLIP: images and texts in one space, by a folder that transformers wrote; nothing is fetched, nothing unpickled.

Legend: N images, C texts, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json, read_json
from vitprune.images.decode import as_mode
from vitprune.images.preprocess import Preprocessing
from vitprune.model.load import build, folders
from vitprune.model.load.weights import shards

BATCH = 32
TOKENS = ("tokenizer.json", "vocab.json")  # one of them is there
KEY = "see.names.folder"


@dataclass(frozen=True, slots=True)
class Clip:
    """The two towers, how texts become tokens, and how images are prepared."""

    model: Any
    tokenizer: Any
    prepare: Preprocessing
    device: torch.device

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> Clip:
        """From a folder: config.json, model.safetensors, the tokenizer's files, preprocessor_config.json. Raises UserError
        for one that is no CLIPModel's, or without one of these."""
        try:
            config_file, weights = folders.files_of(folder, theirs=True)
            shards.shapes(weights)
            config = read_json(config_file, folders.MAX_CONFIG)
        except UserError as error:
            raise UserError(f"{KEY} {error}") from error
        if not isinstance(config, dict) or config.get("model_type") != "clip":
            kind = str(config.get("model_type") if isinstance(config, dict) else None)[:40]
            raise UserError(
                f"{KEY} {folder}: model_type is {kind}; it is a folder of a CLIPModel that transformers wrote"
            )
        if not any((folder / name).is_file() for name in TOKENS):
            raise UserError(
                f"{KEY} {folder}: has no {' or '.join(TOKENS)}; copy the tokenizer's files beside the model's"
            )
        model, tokenizer = _opened(folder, config, weights)
        return cls(model.eval().requires_grad_(False).to(device), tokenizer, _prepare(folder, model.config), device)

    def texts(self, words: Sequence[str]) -> Tensor:
        """Unit vectors [C, D]."""
        most = int(self.model.config.text_config.max_position_embeddings)
        made = []
        for at in range(0, len(words), 8 * BATCH):
            part = list(words[at : at + 8 * BATCH])
            given = self.tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt")
            with torch.no_grad():
                pooled = self.model.text_model(**{k: given[k].to(self.device) for k in ("input_ids", "attention_mask")})
                made.append(F.normalize(self.model.text_projection(pooled.pooler_output), dim=1).cpu())
        return torch.cat(made)

    def images(self, pictures: Iterable[Image.Image]) -> Tensor:
        """Unit vectors [N, D]."""
        waiting, made = iter(pictures), []
        while part := list(islice(waiting, BATCH)):
            pixels = torch.from_numpy(np.stack([self.prepare(as_mode(one, "RGB")) for one in part]))
            with torch.no_grad():
                pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
                made.append(F.normalize(self.model.visual_projection(pooled), dim=1).cpu())
        return torch.cat(made)


def _opened(folder: Path, config: Json, weights: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel
    except ImportError as error:
        raise UserError("see.names.by: clip: needs the extra: pip install 'vitprune[transformers]'") from error
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for part in ("text_config", "vision_config"):
        values = config.get(part) or {}
        folders.in_range(values if isinstance(values, dict) else {}, folder / "config.json")
    try:
        model = build.with_weights(CLIPModel, CLIPConfig.from_dict(config), folder)
    except Exception as error:  # whatever transformers has to say of a folder
        raise UserError(f"{KEY} {weights}: does not fit its config.json ({one_line(error)})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{KEY} {folder}: its tokenizer cannot be read ({one_line(error)})") from error
    return model, tokenizer


def _prepare(folder: Path, config: Any) -> Preprocessing:
    path, size = folder / "preprocessor_config.json", int(config.vision_config.image_size)
    if not path.is_file():
        raise UserError(f"{KEY} {folder}: has no preprocessor_config.json, so how its images are prepared is not known")
    found = build.transformers_cfg(read_json(path, folders.MAX_CONFIG))
    known = {"input_size": (3, size, size), "mean": (0.48145466, 0.4578275, 0.40821073)}
    known |= {"std": (0.26862954, 0.26130258, 0.27577711)}
    try:
        return Preprocessing.of(known | found)
    except ValueError as error:
        raise UserError(f"{KEY} {path}: {error}") from error
