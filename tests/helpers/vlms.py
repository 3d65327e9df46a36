"""Tiny vision-language models with random weights, one of each family, and what they are called with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from vitprune.model.vlm.tokens import Sample

FAMILIES = ("llava", "qwen2vl", "idefics3", "smolvlm")
IMAGE = 99
WORDS = (
    "a", "photo", "of", "boot", "coat", "bag", "red", "blue", "large", "small", "the", "is", "it", "what", "answer",
    "question",
)  # fmt: skip
TEXT: Any = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tiny(family: str, seed: int = 0) -> Any:
    """A model of a family in eval mode: 32 wide, 48 language units and 64 vision units a block, 2 or 3 blocks."""
    torch.manual_seed(seed)
    if family == "llava":
        vision: Any = hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7,
            projection_dim=32,
        )  # fmt: skip
        text = hf.LlamaConfig(**TEXT, num_hidden_layers=3)
        config: Any = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
        model: Any = hf.LlavaForConditionalGeneration(config)
    elif family == "qwen2vl":
        rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
        vision = {
            "depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "in_channels": 3, "hidden_size": 32,
        }  # fmt: skip
        config = hf.Qwen2VLConfig(
            text_config={**TEXT, "num_hidden_layers": 2, "rope_scaling": rope}, vision_config=vision,
            image_token_id=IMAGE, video_token_id=98, vision_start_token_id=97, vision_end_token_id=96,
        )  # fmt: skip
        model = hf.Qwen2VLForConditionalGeneration(config)
    else:
        kind = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
        vision = {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
            "patch_size": 8,
        }  # fmt: skip
        text = hf.LlamaConfig(**TEXT, num_hidden_layers=2)
        config = getattr(hf, f"{kind}Config")(
            text_config=text, vision_config=vision, image_token_id=IMAGE, scale_factor=2, pad_token_id=0
        )
        model = getattr(hf, f"{kind}ForConditionalGeneration")(config)
    return model.eval().requires_grad_(False)


def samples(family: str, count: int, seed: int = 0, text: int = 5, prompt: tuple[int, ...] = (10, 11)) -> list[Sample]:
    """Samples with random images and texts of `text` tokens: beginning, image, prompt, text."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        extras, visual = _image(family, draw)
        before = [
            1,
            *([97] if family == "qwen2vl" else []),
            *[IMAGE] * visual,
            *([96] if family == "qwen2vl" else []),
            *prompt,
        ]
        words = torch.randint(20, 60, (text,), generator=draw)
        made.append(Sample(torch.cat([torch.tensor(before), words]), len(before), extras))
    return made


def _image(family: str, draw: torch.Generator) -> tuple[dict[str, Tensor], int]:
    if family == "llava":
        return {"pixel_values": torch.rand(1, 3, 28, 28, generator=draw)}, 16
    if family == "qwen2vl":
        grid = torch.tensor([[1, 4, 4]])
        return {"pixel_values": torch.rand(16, 3 * 2 * 16, generator=draw), "image_grid_thw": grid}, 4
    return {"pixel_values": torch.rand(1, 1, 3, 32, 32, generator=draw)}, 4


def folder(path: Path, seed: int = 0, model: nn.Module | None = None) -> Path:
    """A LLaVA folder with a processor over a vocabulary of WORDS, as transformers writes it."""
    made: Any = tiny("llava", seed) if model is None else model
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE} | {
        w: 10 + i for i, w in enumerate(WORDS)
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    size = {"height": 28, "width": 28}
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    processor = hf.LlavaProcessor(
        images, words, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    made.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def pairs(path: Path, count: int = 12, seed: int = 0) -> Path:
    """A pairs file beside its images: noise in red or blue, and a text that says so."""
    draw = torch.Generator().manual_seed(seed)
    lines = []
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = (torch.rand(28, 28, 3, generator=draw) * 120).byte()
        pixels[..., 0 if i % 2 else 2] += 120
        Image.fromarray(pixels.numpy()).save(path / f"{i}.png")
        text = f"a {'red' if i % 2 else 'blue'} {WORDS[3 + i % 3]}"
        lines.append(json.dumps({"image": f"{i}.png", "prompt": "<s> <image> what is it", "text": text}))
    (path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return path / "pairs.jsonl"
