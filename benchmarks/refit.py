"""What the repair costs on a ViT-B/16-sized model: seconds per image against one plain forward pass, and memory.

    python benchmarks/refit.py [--images 16]

Random weights, synthetic images of 224 x 224, a quarter of each FFN kept. Ratios within one run; `layerwise_again` is a
repair that finds the dense model's streams of an earlier one kept in memory, as those of one run do; `memory_ratio` is the
peak of a repair with four times the images over that of the first, the streams in files (as beyond 2 GiB). `share` is
the repair's part of a run of the tool on ImageNet's classes: 8,000 images for the repair, 40 per class for TopK JAS at the
defaults, both scaled from what was measured here. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial

import timm
import torch

from vitprune.core import memory
from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.attribution.settings import Jas
from vitprune.model import families
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import streams
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.pruning.slimming import slim

REFIT_IMAGES, DISCOVERY_IMAGES, BATCH = 8000, 40_000, 4


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=16)
    n = parser.parse_args().images
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224").eval().requires_grad_(False)
    sites = families.ffn_sites(model)
    keep = torch.arange(sites[0].size) % 4 == 0
    mask = Plan({site.name: keep for site in sites})
    images, labels = torch.randn(4 * n, 3, 224, 224), torch.randint(0, 1000, (4 * n,))
    few = images[:n]

    def forward() -> None:
        with torch.inference_mode():
            for x in few.split(BATCH):
                model(x)

    def repair(how: str, on: torch.Tensor, kept: DenseStreams | None = None) -> None:
        repairer = Repairer(how)  # type: ignore[arg-type]
        slim(mask, repairer, repairer.prepare(model, lambda: on.split(BATCH), streams=kept))

    forward()
    once = seconds(forward) / n
    found = {"forward_seconds_per_image": once}
    for how in ("affine", "sequential", "layerwise"):
        small, large = seconds(lambda how=how: repair(how, few)), seconds(lambda how=how: repair(how, images))  # type: ignore[misc]
        found[f"{how}_forwards_per_image"] = (large - small) / (3 * n) / once
        found[f"{how}_fixed_seconds"] = max(0.0, small - (large - small) / 3)
        print(f"{how}: {found[f'{how}_forwards_per_image']:.1f} forward passes per image and "
              f"{found[f'{how}_fixed_seconds']:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    kept = [DenseStreams(), DenseStreams()]  # filled by the first repair, read by the next on the same images
    for _ in range(2):
        small, large = (seconds(partial(repair, "layerwise", *pair)) for pair in zip((few, images), kept, strict=True))
        found["layerwise_again_forwards_per_image"] = (large - small) / (3 * n) / once
    del kept
    discovery = seconds(lambda: jas(model, sites, few[:4], labels[:4], ts=[50], how=Jas())) / 4
    found["jas_forwards_per_image"] = discovery / once
    streams.IN_MEMORY = 0
    peaks = []
    for on in (few, images):
        with memory.peak(torch.device("cpu")) as highest:
            repair("layerwise", on)
        peaks.append(highest[0])
    found["peak_memory_mb"], found["memory_ratio"] = peaks[0] or 0.0, (peaks[1] or 0.0) / (peaks[0] or 1.0)
    for how in ("affine", "sequential", "layerwise"):
        whole = REFIT_IMAGES * found[f"{how}_forwards_per_image"] * once + found[f"{how}_fixed_seconds"]
        found[f"{how}_share"] = whole / (whole + DISCOVERY_IMAGES * discovery)
    print(json.dumps({"model": "vit_base_patch16_224", "images": n, **found}))


if __name__ == "__main__":
    main()
