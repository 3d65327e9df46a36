"""A CLIPModel of two tiny random towers, as a folder that transformers would write."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

CONFIG = {
    "text_config": {
        "vocab_size": 284, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    },
    "projection_dim": 8,
}  # fmt: skip
PREPARED = {
    "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True, "resample": 3,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


def clip_folder(path: Path, seed: int = 0) -> Path:
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(**CONFIG))
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    model.save_pretrained(path)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(len(hidden))]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 256, "<|endoftext|>": 257}
    vocabulary |= {f"{letter}</w>": 258 + n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    (path / "preprocessor_config.json").write_text(json.dumps(PREPARED))
    return path
