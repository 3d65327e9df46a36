"""What a model's files say of it, read without torch: its arguments, the header of its weights, a folder against itself."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_json
from vitprune.model.load import headers, stated, timm_names
from vitprune.model.load.weights import shards
from vitprune.recipe import paths
from vitprune.recipe.inputs import Model

BUNDLED = Path(__file__).parents[1] / "demo" / "model"
MAX_CONFIG = 1 << 20
TORCHVISION = ("vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32")
TRANSFORMERS = (
    "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification", "ViTForImageClassification",
)  # fmt: skip  # fmt: skip
TOWERS = (  # without a classifier
    "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel", "CLIPVisionModel", "CLIPVisionModelWithProjection",
    "CLIPModel", "SiglipVisionModel", "SiglipModel",
)  # fmt: skip
HEADS = re.compile(
    r"(?:net\.)?(?:(?:head|fc|classifier|heads\.head|cls_classifier)(?:\.fc)?|head_dist|distillation_classifier)\.weight"
)
FC2 = re.compile(r"(?:.*\.)?blocks\.\d+\.(?:.*\.)?mlp\.fc2\.weight")


@dataclass(slots=True)
class Found:
    """What is known of the model: its outputs, their names, its hidden widths. `unseen` is what was not looked at."""

    outputs: int | None = None
    names: list[str] | None = None
    widths: list[int] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def model(spec: Model) -> Found:
    """What the model's files say, and that they say one thing. Raises UserError."""
    source, _, own = spec.name.rpartition(":")
    at_home = spec.name == "bundled" or source == "local-dir" or (source == "transformers" and own not in TRANSFORMERS)
    if source == "transformers" and paths.CLASS_NAME.fullmatch(own):
        return named(spec, own, TRANSFORMERS)
    if at_home:
        if spec.checkpoint is not None or spec.args or spec.pretrained:
            raise UserError(
                f"model `{spec.name[:80]}`: brings its own weights; "
                "remove model.checkpoint, model.args and model.pretrained"
            )
        return in_folder(BUNDLED if spec.name == "bundled" else Path(own), source == "transformers")
    if source == "torchvision":
        return named(spec, own, TORCHVISION)
    if source == "hf-hub":
        if not spec.pretrained or spec.checkpoint is not None or spec.args:
            raise UserError(f"model `{spec.name[:80]}`: is fetched with its weights; give pretrained: true and no more")
        return Found(unseen=["the model, which is fetched"])
    if why := timm_names.refusal(spec.name):
        raise UserError(f"model.name `{spec.name[:80]}`: {why}")
    return named(spec, own, (own,))


def named(spec: Model, own: str, known: tuple[str, ...]) -> Found:
    """A model by its name: what its arguments say of it, and the header of its weights."""
    if own not in known:
        near = difflib.get_close_matches(own[:80], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
        raise UserError(f"model.name `{spec.name[:80]}`: not known; {hint}")
    outputs = spec.args.get("num_classes")
    found = Found(outputs if type(outputs) is int else None, unseen=["the model's shapes"])
    if spec.checkpoint is None:
        return found
    if not spec.checkpoint.is_file():
        raise UserError(f"model.checkpoint {spec.checkpoint}: is no file; a .safetensors, .pth or .npz file is needed")
    if spec.checkpoint.suffix != ".safetensors":
        found.unseen.append(f"what {spec.checkpoint.name} holds")
        return found
    stored = headers.shapes(spec.checkpoint)
    agree(stored, spec.args, f"model.checkpoint {spec.checkpoint}", "model.args")
    found.widths = widths_in(stored)
    return found


def in_folder(folder: Path, foreign: bool) -> Found:
    """A folder of config.json and model.safetensors; of a `foreign` one the weights may be several files."""
    config, weights = folder / "config.json", folder / shards.WHOLE
    weights = (shards.weights_of(folder) or weights) if foreign else weights
    for path in (config, weights):
        if not path.is_file():
            raise shards.missing(folder, path.name)
    if config.stat().st_size > MAX_CONFIG:
        raise UserError(f"{config}: larger than a configuration can be")
    record, stored = read_json(config), shards.shapes(weights)
    if not isinstance(record, dict):
        raise UserError(f"{config}: not a configuration of a model")
    if foreign:
        made = record.get("architectures")
        if isinstance(made, list) and made[:1] and made[0] in TOWERS:
            return Found(0)
        labels = record.get("id2label")
        names = [str(label) for label in labels.values()] if isinstance(labels, dict) else None
        rows = outputs_in(stored)
        if names and rows and rows != len(names):
            raise UserError(f"{weights}: the classifier has {rows} outputs, {config.name} names {len(names)} classes")
        generic = names is None or all(name.startswith("LABEL_") for name in names)
        return Found(rows, None if generic else names, widths_in(stored))
    architecture, args, cfg = record.get("architecture"), record.get("model_args") or {}, record.get("pretrained_cfg")
    if not isinstance(architecture, str) or not isinstance(args, dict):
        raise UserError(f"{config}: not a timm configuration; it names an architecture and its model_args")
    if ":" not in architecture and (why := timm_names.refusal(architecture)):
        raise UserError(f"{config}: architecture `{architecture[:80]}` is {why}")
    args = {key: record[key] for key in ("num_classes", "global_pool") if key in record} | args
    agree(stored, args, str(weights), config.name)
    block = record.get("vitprune")
    said, widths = block.get("widths") if isinstance(block, dict) else None, widths_in(stored)
    said = list(said.values()) if isinstance(said, dict) else said  # by site name, or of before sites had one
    if isinstance(said, list) and widths and said != widths:
        raise UserError(f"{weights}: its FFNs have {shown(widths)} hidden units, vitprune.widths says {shown(said)}")
    attention(stated.attention(block.get("attention") if isinstance(block, dict) else None, config), stored, weights)
    outputs = args.get("num_classes") if type(args.get("num_classes")) is int else outputs_in(stored)
    return Found(outputs, labels_in(cfg, outputs) if isinstance(cfg, dict) else None, widths)


def attention(slim: stated.Attention, stored: dict[str, tuple[int, ...]], weights: Path) -> None:
    """Raises UserError where slim attention has other shapes than its heads and dimensions say."""
    for path, state in slim.items():
        layers = ("qkv", "q_proj", "k_proj", "v_proj")
        rows = sum((*stored.get(f"{path}.{layer}.weight", ()), 0)[0] for layer in layers)
        if rows != stated.rows(state):
            heads, queries, *values = state
            said = f"{heads} · (2 · {queries} + {values[0]})" if values else f"3 · {heads} · {queries}"
            raise UserError(f"{weights}: `{path[:60]}.qkv.weight` has {rows} rows, vitprune.attention says {said}")


def labels_in(cfg: Json, outputs: int | None) -> list[str] | None:
    """One text per output, two spellings of it (ImageNet's synset and plain name) joined by a tab."""
    names, more = cfg.get("label_names"), cfg.get("label_descriptions")
    if not isinstance(names, list) or (outputs is not None and len(names) != outputs):
        return None
    if isinstance(more, dict):
        more = [more.get(name, name) for name in names]
    if not isinstance(more, list) or len(more) != len(names):
        more = names
    return [str(n) if n == m else f"{n}\t{m}" for n, m in zip(names, more, strict=True)]


def agree(stored: dict[str, tuple[int, ...]], args: dict[str, Any], where: str, said_by: str) -> None:
    """Raises UserError where the weights' shapes are not those that the arguments say."""
    patch = next((shape for key, shape in stored.items() if key.endswith("patch_embed.proj.weight")), ())
    depth = {int(m[1]) for key in stored if (m := re.fullmatch(r"(?:\w+\.)?blocks\.(\d+)\..+", key))}
    seen: dict[str, int] = {}
    if len(patch) == 4:
        seen |= {"embed_dim": patch[0], "in_chans": patch[1]}
        if patch[2] == patch[3]:
            seen["patch_size"] = patch[2]
    if depth:
        seen["depth"] = max(depth) + 1
    if outputs := outputs_in(stored):
        seen["num_classes"] = outputs
    for key, value in seen.items():
        said = args.get(key)
        if type(said) is int and said != value and not (key == "num_classes" and said == 0):
            raise UserError(f"{where}: {key} is {value} by the shapes in it, {said_by} says {said}")


def outputs_in(stored: dict[str, tuple[int, ...]]) -> int | None:
    """The rows of the classifier; None where there is none or more than one is possible."""
    rows = {shape[0] for key, shape in stored.items() if len(shape) == 2 and HEADS.fullmatch(key)}
    return rows.pop() if len(rows) == 1 else None


def widths_in(stored: dict[str, tuple[int, ...]]) -> list[int]:
    """The hidden units of every FFN, in the order of the blocks; of a model with other names for its layers nothing."""
    keys = [key for key, shape in stored.items() if len(shape) == 2 and FC2.fullmatch(key)]
    order = sorted(keys, key=lambda key: [int(part) for part in re.findall(r"\d+", key.removesuffix(".fc2.weight"))])
    return [stored[key][1] for key in order]


def shown(values: list[Any]) -> str:
    """A few of them for a line."""
    return ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
