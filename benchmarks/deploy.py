"""What the exported files are worth: speed against arithmetic, accuracy of every precision, all in one run.

    python benchmarks/deploy.py [--quick] [--only demo|vit_small] [--threads 2]

demo: the bundled model, an eighth of each FFN kept (OBS order, affine repair) by a whole `vitprune run`, its files
examined on the whole test split through onnxruntime. vit_small: ViT-S/16 with random weights, a quarter kept; no
accuracy, so logit differences only. Dense and slim are timed in turn on the same images, batch 32, and the figures are
ratios of the same round, so a busy machine disturbs them little. `contrib_relative` is the time of the slim file after
onnxruntime's transformer optimizer (model type vit) divided by that of the file as exported: above 1 the plain one is
faster. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch

from vitprune.deploy import bench, runtime
from vitprune.deploy.onnx import exporting, precision
from vitprune.model import families, size
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.recipe.recipe import Recipe
from vitprune.runs import pipeline

BATCH = 32
DEMO = {
    "name": "deploy",
    "criterion": {"name": "obs", "probe_per_class": 40},
    "keep": 0.125,
    "recovery": "affine",
    "baselines": [],
    "export": {"precisions": ["fp32", "fp16", "int8"], "latency_batches": [BATCH]},
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def contrib(source: Path, path: Path, heads: int, dim: int) -> dict[str, int]:
    """The file with the contrib operators of onnxruntime's transformer optimizer; how many of each it made."""
    from onnxruntime.transformers.optimizer import optimize_model

    made = optimize_model(str(source), model_type="vit", num_heads=heads, hidden_size=dim, opt_level=0)
    made.save_model_to_file(str(path))
    return {name: int(n) for name, n in made.get_fused_operator_statistics().items() if n}


def timed(dense: Path, slim: Path, others: dict[str, Path], threads: int, seconds: float) -> dict[str, Any]:
    """FLOP ratio, speed-up and efficiency of the slim file, and the time of the others relative to it."""
    files = {"dense": dense, "slim": slim} | others
    rows = {row["model"]: row for row in bench.bench(files, [BATCH], ["cpu"], threads, seconds)}
    bench.show(list(rows.values()))
    slim_row = rows["slim"]
    found = {
        "flop_ratio": 1 / slim_row["mac_ratio"],
        "speedup_batch32": slim_row["speedup"],
        "efficiency_batch32": slim_row["efficiency"],
        "dense_ms": rows["dense"]["median_ms"],
        "slim_ms": slim_row["median_ms"],
        "rounds": slim_row["rounds"],
    }
    return found | {f"{name}_relative": rows[name]["relative"] / slim_row["relative"] for name in others}


def demo(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """The bundled model, through the same stages as any recipe."""
    say("demo: vitprune run, one to three minutes")
    record = pipeline.run(Recipe.model_validate(DEMO | {"out": str(folder)}), device="cpu")
    root = folder / DEMO["name"]
    files = {row["precision"]: row for row in record["export"]["files"]}
    fused = contrib(root / "model.onnx", root / "contrib.onnx", 3, 96)
    others = {p: root / files[p]["path"] for p in ("fp16", "int8")} | {"contrib": root / "contrib.onnx"}
    found = timed(root / bench.FILES[0], root / "model.onnx", others, threads, seconds)
    sweep = files["int8"]["sweep"]
    return found | {
        "top1_dense": next(row["top1"] for row in record["rows"] if row["criterion"] == "dense"),
        "top1_slim": files["fp32"]["top1"],
        "fp16_delta_points": files["fp16"]["top1_change_points"],
        "int8_delta_points": files["int8"]["top1_change_points"],
        "max_abs_logit_diff": files["fp32"]["agreement"]["max_abs_diff"],
        "fp16_max_abs_logit_diff": files["fp16"]["agreement"]["max_abs_diff"],
        "int8_max_abs_logit_diff": files["int8"]["agreement"]["max_abs_diff"],
        "int8_excluded": sweep["excluded"],
        "int8_why": sweep["why"],
        "nodes": files["fp32"]["nodes"],
        "contrib_nodes": fused,
    }


def vit_small(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """ViT-S/16 at 224, random weights, 384 of 1,536 hidden units kept in every block."""
    torch.manual_seed(0)
    dense = timm.create_model("vit_small_patch16_224", num_classes=1000).eval().requires_grad_(False)
    slim = surgery.slim(dense, Plan({site.name: torch.arange(site.size) < 384 for site in families.ffn_sites(dense)}))
    folder.mkdir()
    files = {name: folder / f"{name}.onnx" for name in ("dense", "slim", "fp16", "int8", "contrib")}
    for name, model in (("dense", dense), ("slim", slim)):
        say(f"vit_small: exporting {name}")
        exporting.export(model, files[name], size.size(model))
    images = torch.randn(16, 3, 224, 224)
    parts = [part.numpy() for part in images.split(8)]
    precision.to_fp16(files["slim"], files["fp16"])
    nobody = np.zeros(len(images), np.int64)  # no labels, so no floor: everything in int8
    precision.to_int8(files["slim"], files["int8"], parts, parts, nobody, floor=100.0)
    fused = contrib(files["slim"], files["contrib"], 6, 384)
    with torch.inference_mode():
        expected = slim(images).numpy()

    def gap(name: str) -> float:
        made = runtime.session(files[name], threads=threads)
        return float(np.abs(np.concatenate([runtime.predict(made, part) for part in parts]) - expected).max())

    gaps = {name: gap(name) for name in ("slim", "fp16", "int8")}
    found = timed(files["dense"], files["slim"], {n: files[n] for n in ("int8", "contrib")}, threads, seconds)
    return found | {
        "fp16_delta_points": None,
        "int8_delta_points": None,
        "max_abs_logit_diff": gaps["slim"],
        "fp16_max_abs_logit_diff": gaps["fp16"],
        "int8_max_abs_logit_diff": gaps["int8"],
        "logit_spread": float(expected.std()),
        "nodes": exporting.facts(files["slim"])["nodes"],
        "contrib_nodes": fused,
    }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a third of the timing")
    parser.add_argument("--only", choices=("demo", "vit_small"), action="append", help="these parts only")
    parser.add_argument("--threads", type=int, default=2, help="of onnxruntime, in the timed parts")
    args = parser.parse_args()
    chosen, seconds = args.only or ["demo", "vit_small"], 10.0 if args.quick else 30.0
    found: dict[str, Any] = {
        "threads": args.threads,
        "onnxruntime": runtime.onnxruntime().__version__,
        "onnx": onnx.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        if "demo" in chosen:
            found |= demo(Path(folder) / "demo", args.threads, seconds)
        if "vit_small" in chosen:
            found["vit_small"] = vit_small(Path(folder) / "vit_small", args.threads, 2 * seconds)
    print(json.dumps(rounded(found)))


if __name__ == "__main__":
    main()
