"""A model as a folder: config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save as to_bytes
from torch import nn

from vitprune.core import ledger
from vitprune.core.files import replacing, write_json
from vitprune.core.reading import Json
from vitprune.model import families, kinds
from vitprune.model.declared import Foreign
from vitprune.model.families import ffn_sites
from vitprune.model.load.loaded import ASSUMED, KEPT_CFG, PROJECTION, RAGGED, READS, Loaded, _shapes, projection
from vitprune.model.load.spec import Args
from vitprune.model.load.weights import checksums
from vitprune.model.sites import attention, ffn


def save(folder: Path, loaded: Loaded, model: nn.Module, about: Json) -> None:
    """Write `model` (pruned from `loaded`) as config.json + model.safetensors; `about` joins the `vitprune` block.

    A result of one width for all blocks and whole attention also loads with plain timm: mlp_ratio says it. One of several
    widths or with slim attention does not, and timm's error then names what to use. Saving what was loaded from here
    writes the same bytes.
    """
    sites = ffn_sites(model)
    widths = [site.size for site in sites]
    added = ffn.has_added_biases(model, sites)  # for a repair; the architecture has none there
    args = {k: v for k, v in loaded.model_args.items() if k not in ("num_classes", "global_pool", "mlp_ratio")}
    own = {key: getattr(model, key) for key in ("num_features", "global_pool") if hasattr(model, key)}
    if "global_pool" in own:
        args["global_pool"] = own["global_pool"]
    if not isinstance(model, Foreign):
        ratio, before = _one_ratio(loaded, args, model, widths), loaded.model_args.get("mlp_ratio")
        if ratio is not None or before is not None:
            args["mlp_ratio"] = before if ratio is None else ratio
        if ratio is None:
            args[RAGGED] = True
    _write_weights(folder, model)
    record = {
        "architecture": loaded.architecture,
        "num_classes": projection(model) or loaded.outputs,
        **own,
        "model_args": args,
        "pretrained_cfg": _pretrained_cfg(loaded),
        "vitprune": {
            "widths": kinds.sizes(model),
            **({"attention": slim} if (slim := attention.slim(model)) else {}),
            **({"added_biases": True} if added else {}),
            **({PROJECTION: True} if projection(model) else {}),
            **({READS: "pooled"} if families.reads(model) == "pooled" else {}),
            **({ASSUMED: loaded.origin.assumed} if loaded.origin.assumed else {}),
            **about,
        },
    }
    record = json.loads(json.dumps(record))  # as it will be read: lists, not tuples
    checksums.add(record, folder / "model.safetensors")
    write_json(folder / "config.json", record)


def _write_weights(folder: Path, model: nn.Module) -> None:
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for name in ("model.safetensors", "config.json"):
        ledger.guard(folder / name, anywhere=True)
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(to_bytes(state, metadata={"format": "pt"}))


def _pretrained_cfg(loaded: Loaded) -> Json:
    """timm's pretrained_cfg with the preprocessing as resolved and the labels, its keys in one order."""
    cfg = dict(getattr(loaded.model, "pretrained_cfg", None) or {}) | loaded.data_config
    cfg["num_classes"] = projection(loaded.model) or loaded.outputs
    if not loaded.outputs:  # a backbone, whatever names its head's outputs had
        cfg = {key: value for key, value in cfg.items() if not key.startswith("label_")}
    if loaded.labels:
        cfg["label_names"] = [label.split("\t")[0] for label in loaded.labels]
        if any("\t" in label for label in loaded.labels):
            cfg["label_descriptions"] = [label.split("\t")[-1] for label in loaded.labels]
    return {"custom_load": False} | {k: cfg[k] for k in KEPT_CFG if k in cfg}


def _one_ratio(loaded: Loaded, args: Args, model: nn.Module, widths: list[int]) -> float | None:
    """The mlp_ratio with which timm itself builds exactly this model, if there is one: fc1 may hold a gate beside the
    units, and other layers may follow the ratio too."""
    if len(set(widths)) > 1:
        return None
    for made in (1, 2):
        ratio = ratio_for(int(model.embed_dim), made * widths[0])  # type: ignore[arg-type]
        try:
            with torch.device("meta"):
                changed = args | {"mlp_ratio": ratio, "num_classes": projection(model) or loaded.outputs}
                plan = timm.create_model(loaded.architecture, **changed)
        except Exception:
            continue
        if _shapes(plan) == _shapes(model):
            return ratio
    return None


def ratio_for(dim: int, width: int) -> float:
    """An mlp_ratio with int(dim * ratio) == width."""
    ratio = width / dim
    return ratio if int(dim * ratio) == width else (width + 0.5) / dim
