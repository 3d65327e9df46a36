"""A thousand classes: what the whole default road takes, and what a run takes that finds nothing to do.

    python benchmarks/thousand.py [--quick] [--idle] [--classes 1000] [--workers 1] [--engine local] [--folder FOLDER]

The images are grey noise with a mark of their class, in one tar file; the model is narrow (width 64) with the 12 blocks of
3,072 units and the 1,000 outputs of a large one, its weights drawn. Its accuracy says nothing; its time and memory do.
With --idle the road there is a short one: `activation`, whose discovery files are the largest (a count for each class and
unit), affine repair, no baselines, no export. Each run is a process of its own. `peak_mb` is the highest use of memory of it
and of what it started, `process_mb` that of one process. The last line is one JSON object; `idle_above_imports_mb` is the run
that finds nothing to do, less what `import torch, timm` takes; `kl` and `top1` are of the exported model, with all digits,
and `rows_digest` of every row of the exam: two engines have the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scale
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

PROBE, TEST = 12, 3  # images of a class
ARCHITECTURE = "vit_tiny_patch16_224"
SIDE = 28
PACE, LOOK = 0.1, 20  # seconds between two looks at the memory; after so many of them, one for new processes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="200 classes")
    parser.add_argument("--classes", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--idle", action="store_true", help="a short road to a run that finds nothing to do")
    parser.add_argument("--criterion", default=None, help="another than the default")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; one that stays")
    return parser.parse_args()


def images(path: Path, classes: int, per_class: int = PROBE + TEST, seed: int = 0) -> Path:
    """A tar file of grey PNGs, one folder a class."""
    draws = np.random.default_rng(seed)
    marks = draws.integers(0, 120, (classes, 7, 7))
    with tarfile.open(path, "w") as tar:
        for c in range(classes):
            mark = np.kron(marks[c], np.ones((SIDE // 7, SIDE // 7), np.int64))
            for i in range(per_class):
                pixels = (mark + draws.integers(0, 100, mark.shape)).astype(np.uint8)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG")
                member = tarfile.TarInfo(f"images/c{c:04d}/{i:03d}.png")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    return path


def model(folder: Path, classes: int, width: int = 64, depth: int = 12, hidden: int = 3072, seed: int = 0) -> Path:
    """A folder that `local-dir:` reads: a ViT with drawn weights, large enough for its logits to differ."""
    folder.mkdir(parents=True, exist_ok=True)
    args = {"img_size": SIDE, "patch_size": 7, "in_chans": 1, "embed_dim": width, "depth": depth, "num_heads": 4}
    args["mlp_ratio"] = hidden / width
    torch.manual_seed(seed)
    made = timm.create_model(ARCHITECTURE, **args, num_classes=classes)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.05)
    save_file(made.state_dict(), folder / "model.safetensors", {"format": "pt"})
    seen: dict[str, Any] = {"input_size": [1, SIDE, SIDE], "interpolation": "bilinear", "crop_pct": 1.0}
    seen |= {
        "mean": [0.5],
        "std": [0.5],
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    seen |= {"fixed_input_size": True, "label_names": [f"c{c:04d}" for c in range(classes)]}
    told = {"architecture": ARCHITECTURE, "num_classes": classes, "num_features": width, "global_pool": "token"}
    (folder / "config.json").write_text(json.dumps(told | {"model_args": args, "pretrained_cfg": seen}))
    return folder


SHORT: dict[str, Any] = {"criterion": {"name": "activation"}, "keep": 0.5, "recovery": "affine", "refit_images": 1000}
SHORT |= {"baselines": [], "export": {"onnx": False}}


def recipe(folder: Path, classes: int, criterion: str | None, short: bool = False) -> Path:
    """A recipe that asks for nothing but the model and the images, or for `SHORT`."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {"version": 1, "name": "thousand", "out": str(folder / "exported")}
    made |= {"model": {"name": f"local-dir:{model(folder / 'model', classes)}"}}
    made |= {"data": {"path": str(images(folder / "images.tar", classes))}}
    made |= {"split": {"seed": 0, "probe": PROBE / (PROBE + TEST)}}
    made |= SHORT if short else {}
    if criterion:
        made["criterion"] = {"name": criterion}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def taken(command: list[str]) -> tuple[float, float, float]:
    """Seconds and megabytes of a command: the highest use of memory of all of its processes together, and of one of them."""
    start, highest, one = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    looks, found = 0, [root]
    while process.poll() is None:
        found = [root, *_below(root)] if looks % LOOK == 0 else found  # it takes a while itself
        every, looks = list(map(_resident, found)), looks + 1
        highest, one = max(highest, sum(every)), max(one, *every)
        time.sleep(PACE)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - start, highest / 1e6, one / 1e6


def _below(root: psutil.Process) -> list[psutil.Process]:
    try:
        return list(root.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def measured(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    classes = asked.classes or (200 if asked.quick else 1000)
    path = recipe(folder, classes, asked.criterion, asked.idle)
    command = [sys.executable, "-m", "vitprune", "run", str(path), "--workers", str(asked.workers)]
    command += ["--engine", asked.engine]
    _, imports, _ = taken([sys.executable, "-c", "import torch, timm"])
    seconds, peak, process = taken(command)
    out = folder / "exported" / "thousand"
    record = json.loads((out / "report.json").read_text())
    idle_seconds, idle, _ = taken(command)
    rows = scale.without_times(json.loads((out / "stages" / "evaluate" / "rows.json").read_text())["rows"])
    stages = {s["name"]: {"seconds": s["seconds"], "peak_mb": s["peak_memory_mb"]} for s in record["stages"]}
    sizes = {p.name: p.stat().st_size / 1e6 for p in (out / "stages" / "discover").glob("*.safetensors")}
    return {
        "classes": classes,
        "road": "short" if asked.idle else "default",
        "images": classes * (PROBE + TEST),
        "workers": asked.workers,
        "engine": asked.engine,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "minutes": round(seconds / 60, 2),
        "peak_mb": round(peak),
        "process_mb": round(process),
        "imports_mb": round(imports),
        "report_mb": round((out / "report.html").stat().st_size / 1e6, 2),
        "record_mb": round((out / "report.json").stat().st_size / 1e6, 2),
        "discovery_mb": {name: round(size, 1) for name, size in sorted(sizes.items())},
        "stages": stages,
        "idle_seconds": round(idle_seconds, 1),
        "idle_mb": round(idle),
        "idle_above_imports_mb": round(idle - imports),
        "top1": record["result"]["top1"],
        "kl": record["result"]["kl"],
        "rows_digest": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
    }


def main() -> None:
    asked = arguments()
    if asked.folder is not None:
        print(json.dumps(measured(asked, asked.folder.resolve())))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(asked, Path(folder))))


if __name__ == "__main__":
    main()
