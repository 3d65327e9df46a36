"""A tiny timm model folder, a tiny folder of images, and a recipe for both: everything a whole run needs, in a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprune.core.files import write_text
from vitprune.core.least_squares import Moments
from vitprune.criteria.curves import Curve
from vitprune.criteria.scores import Scores
from vitprune.deploy import runtime
from vitprune.model import families
from vitprune.model.sites.base import names
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.runs.record import record

ARCHITECTURE = "vit_tiny_patch16_224"
FOLDERS = ("circle", "cross", "square")  # in the order of an ImageFolder
LABELS = ("square", "circle", "cross")  # in the order of the model's outputs: never by position
ARGS: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2}
WIDTH = 64


def tiny_args(in_chans: int = 1) -> dict[str, Any]:
    return {**ARGS, "in_chans": in_chans}


def tiny_model(in_chans: int = 1, outputs: int = 3, seed: int = 0, **changed: Any) -> nn.Module:
    """A ViT with weights large enough for its logits to differ between images."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = timm.create_model(ARCHITECTURE, **(tiny_args(in_chans) | {"num_classes": outputs} | changed))
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    return made.eval().requires_grad_(False)


def config(in_chans: int = 1, outputs: int = 3, labels: tuple[str, ...] | None = LABELS) -> dict[str, Any]:
    """config.json as timm writes it."""
    cfg: dict[str, Any] = {
        "tag": "small", "custom_load": False, "input_size": [in_chans, 28, 28], "fixed_input_size": True,
        "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center", "mean": [0.4, 0.5, 0.6][:in_chans],
        "std": [0.2, 0.25, 0.3][:in_chans], "num_classes": outputs, "pool_size": None,
        "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
    }  # fmt: skip
    if labels:
        cfg["label_names"] = list(labels)
    return {
        "architecture": ARCHITECTURE,
        "num_classes": outputs,
        "num_features": 16,
        "global_pool": "token",
        "model_args": tiny_args(in_chans),
        "pretrained_cfg": cfg,
    }


def model_folder(path: Path, in_chans: int = 1, outputs: int = 3, labels: tuple[str, ...] | None = LABELS) -> Path:
    """A folder that `local-dir:` reads."""
    path.mkdir(parents=True)
    save_file(tiny_model(in_chans, outputs).state_dict(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config(in_chans, outputs, labels)))
    return path


def change_json(path: Path, change: Any) -> None:
    """Rewrite a JSON file after `change(content)`."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def picture(kind: int, seed: int, mode: str = "L", size: int = 28) -> Image.Image:
    """A noisy picture with a brighter patch whose place tells the kind."""
    generator = np.random.default_rng([kind, seed])
    pixels = generator.integers(0, 120, (size, size, 3))
    third = size // 3
    pixels[kind * third : (kind + 1) * third, :third] += 120
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def image_folder(path: Path, per_class: int = 10, mode: str = "L") -> Path:
    """Three class folders of generated PNGs."""
    for kind, name in enumerate(FOLDERS):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            picture(kind, i, mode).save(path / name / f"{i:02d}.png")
    return path


def recipe_dict(model: Path | str, images: Path, out: Path, **changed: Any) -> dict[str, Any]:
    """Everything small: 4 probe images per class, 4 integration steps, 3 units per path."""
    name = model if isinstance(model, str) else f"local-dir:{model}"
    made: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": {"name": name},
        "data": {"path": str(images)},
        "split": {"seed": 0, "probe": 0.8},
        "criterion": {"name": "jas", "t": 3, "nodes": 4, "probe_per_class": 4},
        "keep": 0.5,
        "recovery": "affine",
        "baselines": ["activation", "random"],
        "random_draws": 1,
        "export": {"onnx": False, "latency_batches": [1]},
        "out": str(out),
    }
    return made | changed


def write_recipe(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def linear_onnx(path: Path, seed: int, about: dict[str, Any]) -> None:
    """A linear classifier of grey images of 28 pixels a side, as an ONNX file with our metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weight = np.random.default_rng(seed).normal(size=(28 * 28, len(LABELS))).astype(np.float32) / 20
    nodes = [
        onnx.helper.make_node("Flatten", ["images"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    takes = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1, 28, 28])
    gives = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(LABELS)])
    graph = onnx.helper.make_graph(nodes, "linear", [takes], [gives], [onnx.numpy_helper.from_array(weight, "weight")])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(made, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(made, path)


def contents(folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in leave_out
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a run should have removed."""
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.name.endswith(".tmp")]


_programs: dict[str, Any] = {}


def plain_report(content: dict[str, Any], folder: Path) -> list[Path]:
    """A report without its plots."""
    for name in ("report.json", "report.md", "report.html"):
        write_text(folder / name, json.dumps(content))
    return [folder / name for name in ("report.json", "report.md", "report.html")]


def plan_of(masks: Sequence[Tensor], classes: tuple[int, ...] = ()) -> Plan:
    """A plan for a plain ViT: bool [n] for each block's FFN."""
    return Plan({f"blocks.{i}.mlp": keep for i, keep in enumerate(masks)}, classes)


def plan_for(model: nn.Module, masks: Sequence[Tensor]) -> Plan:
    """A plan for any model: bool [n] for each of its FFNs."""
    return Plan(dict(zip(names(families.ffn_sites(model)), masks, strict=True)))


def scores_of(criterion: str, blocks: Sequence[Tensor], ties: Sequence[Tensor] | None = None) -> Scores:
    """Scores of a plain ViT: [C, n] for each block's FFN."""

    def named(given: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f"blocks.{i}.mlp": block for i, block in enumerate(given)}

    return Scores(criterion, named(blocks), named(ties) if ties else None)


def rows_of(found: Sequence[Tensor | Curve]) -> list[Tensor]:
    """Scores [C, n] site by site of what a criterion that looks at the whole gave."""
    return [one.scores[None] if isinstance(one, Curve) else one for one in found]


def mend(
    slim: nn.Module,
    dense: nn.Module,
    plan: Plan,
    how: Any,
    images: Callable[[], Iterable[Tensor]] | None = None,
    moments: Sequence[Moments] | None = None,
    streams: DenseStreams | None = None,
    **settings: Any,
) -> None:
    """Repair `slim` in place, with a state of its own."""
    repairer = Repairer(how, **settings)
    repairer.repair(slim, plan, repairer.prepare(dense, images, moments=moments, streams=streams))


def quicken(patch: pytest.MonkeyPatch) -> None:
    """No plots, latency in a moment, one ONNX conversion per distinct model: what takes long and is tested elsewhere."""
    convert, interleaved = torch.onnx.export, runtime.interleaved

    def export(model: nn.Module, *args: Any, **options: Any) -> Any:
        key = hashlib.sha256(repr(model).encode())
        for value in model.state_dict().values():
            key.update(value.numpy().tobytes())
        if key.hexdigest() not in _programs:
            _programs[key.hexdigest()] = convert(model, *args, **options)
        return _programs[key.hexdigest()]

    def briefly(sessions: Any, images: Any, seconds: float = 0.0) -> Any:
        return interleaved(sessions, images, seconds=0.0)

    patch.setattr(torch.onnx, "export", export)
    patch.setattr(runtime, "interleaved", briefly)
    patch.setattr(record, "write_report", plain_report)
