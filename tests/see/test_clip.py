"""A local CLIP: the vectors are transformers' own, a folder that is none is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import change_json, picture
from tiny_clip import PREPARED, clip_folder
from transformers import CLIPModel, CLIPTokenizer

from vitprune.core.errors import UserError
from vitprune.see.naming.clip import Clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "clip")


def test_vectors_are_those_of_transformers(folder: Path) -> None:
    clip, model = Clip.open(folder, CPU), CLIPModel.from_pretrained(folder).eval()
    words = ["boot", "a very long concept that is cut", "bag", "boot"]
    tokens = CLIPTokenizer.from_pretrained(folder)(
        words, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    pictures = [picture(kind, 1, mode) for kind, mode in ((0, "L"), (1, "RGB"), (2, "L"))]
    pixels = [
        np.asarray(one.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC), np.float32) / 255 for one in pictures
    ]
    mean, std = np.array(PREPARED["image_mean"], np.float32), np.array(PREPARED["image_std"], np.float32)
    given = torch.from_numpy(np.stack([((one - mean) / std).transpose(2, 0, 1) for one in pixels]))
    with torch.no_grad():
        both = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=given)
    torch.testing.assert_close(clip.texts(words), both.text_embeds)
    torch.testing.assert_close(clip.images(iter(pictures)), both.image_embeds)
    assert (clip.texts(words)[0] == clip.texts(words)[3]).all()


def without(path: Path, name: str) -> None:
    (path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: without(f, "model.safetensors"), "has no model.safetensors"),
        (lambda f: without(f, "vocab.json"), "has no tokenizer.json or vocab.json"),
        (lambda f: without(f, "preprocessor_config.json"), "has no preprocessor_config.json"),
        (lambda f: change_json(f / "config.json", lambda c: c.update(model_type="siglip")), "model_type is siglip"),
        (lambda f: (f / "config.json").write_text("[]"), "model_type is None"),
        (
            lambda f: change_json(f / "config.json", lambda c: c.update(projection_dim=9)),
            "does not fit its config.json",
        ),
        (
            lambda f: change_json(f / "config.json", lambda c: c["vision_config"].update(hidden_size=1 << 30)),
            "hidden_size = 1073741824 is out of range",
        ),
        (
            lambda f: change_json(f / "preprocessor_config.json", lambda c: c.update(image_std=[0, 0, 0])),
            "preprocessor_config.json",
        ),
    ],
)
def test_a_folder_that_is_no_clip_is_one_line(tmp_path: Path, spoil: Any, said: str) -> None:
    made = clip_folder(tmp_path / "clip")
    spoil(made)
    with pytest.raises(UserError, match=r"see\.names\.folder|config\.json") as error:
        Clip.open(made, CPU)
    assert said in str(error.value)
