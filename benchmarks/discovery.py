"""What the discovery engine is worth: speed, accuracy, memory, all in one run.

    python benchmarks/discovery.py [--quick] [--only speed|accuracy|memory|gpu]

Speed: 12 blocks × 192 wide × 197 tokens, random weights, against the authors' procedure (benchmarks/authors.py): once
at identical settings (clamped class token, left sum, 20 nodes, t = 1), once at the defaults of the tool. Accuracy:
the bundled model against 1,000 midpoint nodes along the reference's own path. Memory: a whole `vitprune discover` of
500 and of 5,000 images. GPU, where there is one: ViT-B/16, random weights, images per second in float32 and bfloat16.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import authors
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.attribution.settings import Jas
from vitprune.images import batches
from vitprune.images.class_names import output_indices
from vitprune.images.sources.bundled import CLASSES, Bundled
from vitprune.images.split import first_per_class, split_per_class
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.recipe.inputs import Model

DEFAULTS = Jas()
SAME = Jas(quadrature="left", nodes=20, reference=True)
TOP = 5


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def engine(model: nn.Module, x: Tensor, y: Tensor, how: Jas, t: int = 1, along: Tensor | None = None) -> list[Tensor]:
    return jas(model, families.ffn_sites(model), x, y, ts=[t], how=how, along=along)[t]


def in_batches(size: int, x: Tensor, y: Tensor, score: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
    parts = [score(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)]
    return [torch.cat(block) for block in zip(*parts, strict=True)]


def matmul_rate() -> float:
    """Multiply-adds per second of this machine's float32 matrix product, in the shapes of a ViT of width 192."""
    a, b = torch.randn(197 * 16, 192), torch.randn(192, 768)
    return max(len(a) * 192 * 768 * 20 / timed(lambda: [a @ b for _ in range(20)]) for _ in range(5))


def floor_macs(depth: int, dim: int, tokens: int, nodes: int) -> float:
    """Multiply-adds per image of the procedure itself: the passes it cannot do without."""
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    last = 2 * tokens * dim**2 + 2 * 5 * dim**2  # one query, one FFN row, keys and values of all
    behind = [(depth - 2 - i) * block + last if i < depth - 1 else 0 for i in range(depth)]
    tangents = 2 * ((depth - 2) * block + last)
    return nodes * (2 * sum(behind) + tangents)


def speed(quick: bool) -> dict[str, float]:
    """The engine against the authors' procedure, the pair interleaved batch by batch so that drift cancels."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000).eval().requires_grad_(False)
    spread(model)
    count = 2 if quick else 16
    x, y = torch.randn(count, 3, 224, 224), torch.arange(count) * 37 % 1000
    engine(model, x[:1], y[:1], replace(DEFAULTS, nodes=1))  # warm up
    theirs_s = same_s = ours_s = 0.0
    theirs: list[list[Tensor]] = []
    same: list[list[Tensor]] = []
    for a, b in zip(x.split(2), y.split(2), strict=True):
        theirs_s += timed(lambda a=a, b=b: theirs.append(authors.scores(model, a, b, 20)))  # type: ignore[misc]
        same_s += timed(lambda a=a, b=b: same.append(engine(model, a, b, SAME)))  # type: ignore[misc]
        ours_s += timed(lambda a=a, b=b: engine(model, a, b, DEFAULTS))  # type: ignore[misc]
        say(
            f"speed: {len(theirs) * 2}/{count} images, authors {theirs_s:.1f} s, same {same_s:.1f}, defaults {ours_s:.1f}"
        )
    pairs = [(p, q) for one, other in zip(same, theirs, strict=True) for p, q in zip(one, other, strict=True)]
    difference = max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)
    macs = floor_macs(12, 192, 197, DEFAULTS.nodes)
    rate = macs * count / ours_s
    return {
        "speedup_same_settings": theirs_s / same_s,
        "max_rel_diff_same_settings": difference,
        "speedup_defaults": theirs_s / ours_s,
        "seconds_per_image_authors": theirs_s / count,
        "seconds_per_image_same_settings": same_s / count,
        "seconds_per_image_defaults": ours_s / count,
        "gmacs_per_image_floor_defaults": macs / 1e9,
        "gmacs_per_second_reached": rate / 1e9,
        "share_of_matmul_rate": rate / matmul_rate(),
    }


def spread(model: nn.Module) -> None:
    """timm initialises so small that every image looks alike; larger weights make the scores differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "blocks" in name:
                weight.mul_(2.0)
        model.get_parameter("head.weight").normal_(0, 0.05)


def accuracy(quick: bool) -> dict[str, float]:
    """The defaults against 1,000 midpoint nodes along the reference's path, image by image and block by block."""
    loaded = opening.open_model(Model(name="bundled"))
    model = loaded.model
    source = Bundled()
    outputs = output_indices(source.classes, loaded.outputs, loaded.labels, "bundled")
    images = batches.Images(source, loaded.transform(), 1, outputs)
    split = split_per_class(source.class_of, source.classes, seed=0, probe=0.8)
    count = 8 if quick else 100
    index = first_per_class(split.probe, source.class_of, 10)[:: 100 // count][:count]
    x, y = next(images.batches(index, count))
    start = time.perf_counter()
    exact = in_batches(1, x, y, lambda a, b: engine(model, a, b, Jas(quadrature="midpoint", nodes=1000), TOP))
    say(f"accuracy: reference of {count} images in {time.perf_counter() - start:.1f} s")
    path = torch.stack([block.topk(TOP, 1).indices for block in exact], 1)
    of = {"default": DEFAULTS, "right_20": Jas(quadrature="right", nodes=20)}
    found: dict[str, float] = {}
    for name, how in of.items():
        ours = engine(model, x, y, how, TOP, path)
        gap = torch.stack([(a - b).abs().amax(1) / b.abs().amax(1) for a, b in zip(ours, exact, strict=True)])
        best = [
            (a.topk(TOP, 1).indices[:, :, None] == b.topk(TOP, 1).indices[:, None])
            for a, b in zip(ours, exact, strict=True)
        ]
        agreement = float(torch.stack([hit.any(2).double().mean(1) for hit in best]).mean())
        say(f"accuracy, {name}: median {gap.median():.2e}, p95 {gap.quantile(0.95):.2e}, top-{TOP} {agreement:.4f}")
        prefix = "" if name == "default" else f"{name}_"
        found |= {
            f"{prefix}top5_agreement_vs_1000": agreement,
            f"{prefix}median_rel_diff_vs_1000": float(gap.median()),
            f"{prefix}p95_rel_diff_vs_1000": float(gap.quantile(0.95)),
        }
    return found


def memory(_: bool) -> dict[str, float]:
    """Peak resident memory of a whole `vitprune discover` of 500 and of 5,000 images with a toy model."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        toy(Path(folder) / "toy")
        for count in (500, 5000):
            content = {
                "name": f"n{count}",
                "model": {"name": f"local-dir:{folder}/toy"},
                "criterion": {"name": "jas", "t": 20, "probe_per_class": count // 10},
                "baselines": [],
                "out": folder,
            }
            path = Path(folder) / f"{count}.yaml"
            path.write_text(yaml.safe_dump(content))
            peaks[count] = peak_of([sys.executable, "-m", "vitprune", "discover", str(path), "--device", "cpu"])
            say(f"memory: {count} images, peak {peaks[count] / 1e6:.0f} MB")
    return {
        "peak_memory_ratio_5000_vs_500": peaks[5000] / peaks[500],
        "peak_memory_mb_500": peaks[500] / 1e6,
        "peak_memory_mb_5000": peaks[5000] / 1e6,
    }


def toy(folder: Path) -> None:
    """A small random ViT for the bundled images, as a timm folder."""
    args = {"img_size": 28, "patch_size": 14, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **args)
    folder.mkdir()
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    cfg = {
        "input_size": [1, 28, 28],
        "mean": [0.286],
        "std": [0.353],
        "num_classes": 10,
        "label_names": list(CLASSES),
    }
    cfg |= {"interpolation": "bilinear", "crop_pct": 1.0, "first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "model_args": args, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))


LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(command: list[str]) -> int:
    """Bytes of resident memory at the highest point of a command, started from a small process: a child's counter
    begins at its parent's size."""
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout) * 1024


def gpu(quick: bool) -> dict[str, float]:
    """ViT-B/16 at 224 with random weights: images per second, and what 50,000 images would take."""
    if not torch.cuda.is_available():
        say("gpu: no CUDA device here, not measured; run this script on a machine with one")
        return {}
    model = timm.create_model("vit_base_patch16_224", num_classes=1000).eval().requires_grad_(False).cuda()
    spread(model)
    count, size = (64 if quick else 1000), 32
    x, y = torch.randn(count, 3, 224, 224), torch.arange(count) % 1000
    found: dict[str, float] = {}
    for name in ("float32", "tf32", "bfloat16"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        how = replace(DEFAULTS, precision="bfloat16") if name == "bfloat16" else DEFAULTS
        engine(model, x[:size].cuda(), y[:size].cuda(), how)
        seconds = timed(
            lambda how=how: in_batches(size, x, y, lambda a, b: engine(model, a.cuda(), b.cuda(), how)), "cuda"
        )  # type: ignore[misc]
        found[f"gpu_images_per_second_{name}"] = count / seconds
        found[f"gpu_minutes_for_50000_{name}"] = 50_000 / count * seconds / 60
        say(f"gpu, {name}: {count / seconds:.1f} images/s")
    return found


PARTS = {"speed": speed, "accuracy": accuracy, "memory": memory, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="2 and 8 images instead of 16 and 100")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts only")
    args = parser.parse_args()
    found: dict[str, float] = {}
    for name in args.only or PARTS:
        found |= PARTS[name](args.quick)
    print(json.dumps({key: float(f"{value:.6g}") for key, value in found.items()}))


if __name__ == "__main__":
    main()
