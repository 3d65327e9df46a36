"""A model in memory as a folder that `load` opens again."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import RotaryEmbeddingDinoV3
from timm.models import eva
from torch import nn

from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json, read_json
from vitprune.model import classifier, door, families
from vitprune.model.families import ffn_sites
from vitprune.model.load import build, opening, saving
from vitprune.model.load.describing import Source, describe
from vitprune.model.load.loaded import Loaded
from vitprune.model.load.saving import ratio_for
from vitprune.model.load.weights.towers import writing as towers
from vitprune.model.load.weights.towers.opening import opened
from vitprune.model.sites.attention import whole_heads

BATCH = 2


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    architecture: str | None = None,
    args: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    library: Literal["vitprune", "transformers"] = "vitprune",
) -> Path:
    """`folder`, with the model in it as config.json and model.safetensors, as a run's checkpoint: slim or dense, for `load`.

    `architecture` is the timm name that the model was made of, and `args` what `timm.create_model` was given beside it; both
    are read off the model where it tells. `labels`: the names of the outputs. What was written is opened again and held
    against the model on two images before it takes its place. Raises UserError where it is not the same model, where
    nothing says what it was made of, or where the folder holds somebody else's files.

    `library="transformers"`: a folder that transformers opens, of a backbone that is built like its DINOv2, CLIP or SigLIP
    tower, with one width for all of its FFNs and whole attention.
    """
    model = door.bare("save", model, (torch.float32,))
    ffn_sites(model)
    if library not in ("vitprune", "transformers"):
        raise UserError(f"save: library {str(library)[:40]!r}: there are vitprune and transformers")
    name = architecture or _architecture(model)
    if not build.known(name):
        raise UserError(f"save: architecture `{name[:80]}`: not known; give the timm name that the model was made of")
    given = dict(args) if args is not None else _args(model, name)
    if labels is not None and len(labels) != classifier.outputs(model):
        raise UserError(f"save: {len(labels)} labels for a model of {classifier.outputs(model)} outputs")
    target = Path(folder)
    with door.Inside(model):
        loaded = _described(model, name, given, labels)
        with tempfile.TemporaryDirectory() as place:
            if library == "transformers":
                return _tower(model, target, Path(place), loaded.data_config)
            saving.save(Path(place), loaded, model, {})
            _same(model, Path(place), name)
        target.mkdir(parents=True, exist_ok=True)
        saving.save(target, loaded, model, {})
    return target


def _described(model: nn.Module, name: str, args: Json, labels: Sequence[str] | None) -> Loaded:
    """The model with what is known of it; nothing in it is changed."""
    own = getattr(model, "pretrained_cfg", None)
    cfg = _prepared(dict(own or {}), families.input_shape(model), labels)
    try:
        return describe(model, name, args, Source(cfg, None))
    finally:
        model.pretrained_cfg = own  # type: ignore[assignment]


def _tower(model: nn.Module, target: Path, place: Path, data_config: Json) -> Path:
    """`target`, with what transformers opens, once it gave the model back in `place`."""
    towers.save(place, model, data_config)
    record = read_json(place / "config.json")
    again, _, _ = opened(record, place / "config.json", place / "model.safetensors", None)
    _hold(model, again.eval(), "save: transformers does not give this model back", "leave its folder to timm")
    target.mkdir(parents=True, exist_ok=True)
    towers.save(target, model, data_config)
    return target


def _prepared(cfg: Json, shape: tuple[int, int, int], labels: Sequence[str] | None) -> Json:
    """How images are prepared; a mean of three channels says nothing of a model that takes one."""
    wrong = [key for key in ("mean", "std") if len(cfg.get(key) or ()) != shape[0]]
    cfg = {key: value for key, value in cfg.items() if key not in wrong} | {"input_size": list(shape)}
    return cfg | ({"label_names": list(labels)} if labels is not None else {})


def _architecture(model: nn.Module) -> str:
    """The timm name that the model remembers."""
    cfg = getattr(model, "pretrained_cfg", None)
    found = (cfg.get("architecture") if isinstance(cfg, Mapping) else getattr(cfg, "architecture", None)) or ""
    if not found:
        raise UserError(
            "save: nothing in the model says what it was made of; give architecture='vit_base_patch16_224' or so"
        )
    return str(found)


def _args(model: nn.Module, name: str) -> Json:
    """What the model's own sizes say of the arguments that it was made with."""
    channels, *size = families.input_shape(model)
    found: Json = {"in_chans": channels, "img_size": size[0] if size[0] == size[1] else size}
    if isinstance(model, families.PLAIN):
        patch: Any = model.patch_embed.patch_size
        found |= {"patch_size": patch[0] if patch[0] == patch[1] else list(patch)}
        found |= {"embed_dim": int(model.embed_dim), "depth": len(model.blocks)}  # type: ignore[arg-type]
        heads = whole_heads(model)
        found |= {"num_heads": heads} if heads else {}
        found |= _of_tower(model)
    taken = inspect.signature(timm.model_entrypoint(name)).parameters
    return found if any(one.kind is one.VAR_KEYWORD for one in taken.values()) else {}


def _of_tower(model: Any) -> Json:
    """What an image tower has that its architecture's name does not say: its activation, registers, its pooling's width."""
    act, pool = model.blocks[0].mlp.act if hasattr(model.blocks[0], "mlp") else None, getattr(model, "attn_pool", None)
    found: Json = {"act_layer": "gelu_tanh"} if type(act).__name__ == "GELUTanh" else {}
    registers = getattr(model, "reg_token", None)
    if isinstance(model, eva.Eva):
        found["num_reg_tokens"] = 0 if registers is None else int(registers.shape[1])
        if isinstance(model.rope, RotaryEmbeddingDinoV3) and model.rope.temperature:
            found["rope_temperature"] = model.rope.temperature
    elif registers is not None:
        found["reg_tokens"] = int(registers.shape[1])
    if pool is not None and getattr(pool, "mlp", None) is not None:
        found["mlp_ratio"] = ratio_for(int(model.embed_dim), int(pool.mlp.fc1.out_features))
    return found


def _same(model: nn.Module, folder: Path, name: str) -> None:
    """Raises UserError where the folder does not give the model back."""
    advice = f"save: `{name}` does not give this model back"
    more = "give args= what timm.create_model was called with"
    try:
        again = opening.load(folder)
    except UserError as error:
        raise UserError(f"{advice} ({one_line(error)}); {more}") from error
    _hold(model, again, advice, more)


def _hold(model: nn.Module, again: nn.Module, advice: str, more: str) -> None:
    """Raises UserError where the two models do not give the same for two images."""
    images = torch.randn(BATCH, *families.input_shape(model), generator=torch.Generator().manual_seed(0))
    own = next(model.parameters()).device
    with torch.no_grad():
        before, after = model(images.to(own)).float().cpu(), again(images)
    if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
        raise UserError(f"{advice}: its answers differ; {more}")
