"""How much faster exported files of a slim whole model are than the dense one's, and how much of the arithmetic that is.

    python benchmarks/speed.py [--model DIR] [--budgets 0.5 0.25 0.2 0.1] [--threads 2] [--json FILE]

Without --model a ViT-S/16 of 197 tokens with random weights: no accuracy, so its sizes and its time alone count. Sizes are
those that `fisher-obs` takes on 64 random images. ONNX Runtime, batch 32, files as `vitprune run` exports them, timed in turn
with the dense file: ratios of the same round. `efficiency` is the share of the multiply-adds that is left, of the file over
the dense model's, divided by the share of the time; the dense file is timed with the shortcut of its last block too. Idle
machines only: `other_cores` says what else ran. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import vitprune
from vitprune.criteria.heads.obs import curves
from vitprune.criteria.statistics.attention import statistics
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting
from vitprune.model import families, size
from vitprune.model.inside import first_token
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning import surgery
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs

BATCH, IMAGES = 32, 64


def slim_models(model: nn.Module, budgets: list[float]) -> dict[str, nn.Module]:
    """The dense model and, not repaired, what is left of it at every budget."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *families.input_shape(model), generator=draw)
    outputs = int(model(images[:1]).shape[1])
    labels = torch.arange(IMAGES) % outputs
    scores = vitprune.discover(model, images, labels, criterion="fisher-obs")
    ffns, attentions = families.ffn_sites(model), attention_sites(model)

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x, labels) for x in images.split(16)]

    _, moments = statistics(model, ffns, attentions, batches, 0)
    found, prices = curves(model, attentions, moments, batches), Macs(model, shortcut=True)
    plans = {f"{b:g}": allocation.plan(model, scores, found, b, prices) for b in budgets}
    return {"dense": model} | {name: surgery.slim(model, plan) for name, plan in plans.items()}


def measure(models: dict[str, nn.Module], threads: int, seconds: float) -> dict[str, Any]:
    """Speed-up and efficiency of every model against the dense file without the shortcut."""
    dense, sessions, macs = models["dense"], dict[str, Any](), dict[str, float]()
    with tempfile.TemporaryDirectory() as name:
        for label, model in [("dense", dense), ("dense_shortcut", dense), *list(models.items())[1:]]:
            short = label != "dense" and first_token.why_not(model) is None
            path = Path(name) / f"{label}.onnx"
            exporting.export(first_token.of(model) if short else model, path, {})
            sessions[label] = runtime.session(path, threads=threads, in_turn=True)
            macs[label] = size.macs(model, shortcut=short)
        shape = (BATCH, *families.input_shape(dense))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        found = runtime.interleaved(sessions, images, seconds)
    made = {}
    for label, row in found.items():
        left = macs[label] / macs["dense"]
        made[label] = {
            "macs_ratio": left,
            "ms": row["median_ms"],
            "speedup": 1 / row["relative"],
            "efficiency": left / row["relative"],
            "relative_quartiles": row["relative_quartiles"],
            "other_cores": row["other_cores"],
        }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a timm folder; without it a ViT-S/16 with random weights")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.2, 0.1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the last line there too")
    args = parser.parse_args()
    torch.manual_seed(0)
    name = f"local-dir:{args.model}" if args.model else "vit_small_patch16_224"
    model = timm.create_model(name, pretrained=args.model is not None).eval()
    print(f"{name}: sizes", file=sys.stderr, flush=True)
    models = slim_models(model, args.budgets)
    print(f"{name}: timing", file=sys.stderr, flush=True)
    about = {"model": args.model.name if args.model else name, "batch": BATCH, "threads": args.threads}
    made = about | {"files": measure(models, args.threads, args.seconds)}
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
