"""What every stage of a run costs on a GPU, and how much faster slim files are there: ViT-B/16, under five minutes.

    python benchmarks/gpu.py [--device cuda] [--limit 280] [--model vit_base_patch16_224] [--json FILE]
    python benchmarks/gpu.py --device cpu --quick     # a small model, in under a minute: the script itself, no figure

Random weights and synthetic images: times alone. Stages: pixels to the device; JAS at the defaults; the sums of fisher-obs;
its elimination (one block, on the device and by the processor); the layerwise repair; the exam; ONNX Runtime's fp16 files of
the dense model and of what is left at half and a quarter of the multiply-adds (the same share of every site, drawn), on every
provider there is, timed in turn. Passes in float32, tf32 and bfloat16. One line of JSON a stage, told as it ends; a stage that
fails has `error`, one for which no time is left `skipped`. `minutes` are those of 50,000 images, 40,000 of them in the probe
split and 8,000 in the repair. The last line is one JSON object with all of it. Exit code 1 if a stage failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitprune.core import device as devices
from vitprune.core import memory
from vitprune.criteria.attribution.jas import jas
from vitprune.criteria.catalog import how_of
from vitprune.criteria.heads import scores as of_heads
from vitprune.criteria.paths import Gathered
from vitprune.criteria.settings import Seeded
from vitprune.criteria.statistics import elimination, fisher_obs
from vitprune.criteria.statistics.obs import columns
from vitprune.criteria.statistics.random import random
from vitprune.deploy import bench, runtime
from vitprune.deploy.onnx import exporting
from vitprune.deploy.onnx.precision import to_fp16
from vitprune.exam.logits import predictor
from vitprune.images.batches import Images
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.bundled import Bundled
from vitprune.model import families, size
from vitprune.model.inside import first_token
from vitprune.model.load.loaded import Transform
from vitprune.model.sites.attention import attention_sites
from vitprune.pruning import surgery
from vitprune.pruning.repair.repair import Repairer
from vitprune.pruning.slimming import slim
from vitprune.pruning.whole import allocation
from vitprune.pruning.whole.pricing import Macs

PROBE, TEST, REPAIR = 40_000, 10_000, 8_000
BUDGETS, BATCHES = (0.5, 0.25), (1, 8, 32)
QUICK = {"img_size": 64, "embed_dim": 96, "depth": 3, "num_heads": 3, "num_classes": 20}
Json = dict[str, Any]


class Bench:
    """The model, images and the clock; a method for every stage gives what it found."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.device, self.quick = torch.device(asked.device), asked.quick
        self.model = model_of(asked.model, asked.quick).to(self.device)
        self.sites = families.ffn_sites(self.model)
        self.batch = 4 if asked.quick else 64
        self.kinds: tuple[devices.Precision, ...] = ("float32", "tf32", "bfloat16")
        self.kinds = self.kinds if self.device.type == "cuda" else ("float32", "bfloat16")
        shape, draw = families.input_shape(self.model), torch.Generator().manual_seed(0)
        self.images = torch.randn(2 * self.batch, *shape, generator=draw).to(self.device)
        self.labels = (torch.arange(2 * self.batch) % int(self.model.num_classes)).to(self.device)
        self.statistics: tuple[Tensor, Tensor] | None = None

    def seconds(self, work: Callable[[], Any], repeat: int = 3, warm: int = 1) -> float:
        """The median of a few times, after one that does not count."""
        for _ in range(warm):
            work()
        times = []
        for _ in range(repeat):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def parts(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of so many images in all."""
        yield from zip(self.images[:count].split(self.batch), self.labels[:count].split(self.batch), strict=True)

    def of_kinds(self, images: int, work: Callable[[str], Any], repeat: int = 2) -> Json:
        """Images a second and the peak of memory, in every kind of product."""
        found: Json = {}
        for kind in self.kinds:
            with memory.peak(self.device) as highest, devices.products(kind, self.device):
                seconds = self.seconds(lambda kind=kind: work(kind), repeat)  # type: ignore[misc]
            found[kind] = {"images_per_s": images / seconds, "peak_mb": highest[0]}
        return found

    def loading(self) -> Json:
        """Kept pixels to the device, normalised there; and one core's preparing of an image, beside decoding."""
        source = Bundled()
        shape = families.input_shape(self.model)
        prepare = Preprocessing(1, shape[1:], "bicubic", 0.9, "center", (0.5,), (0.5,))
        count = 4 * self.batch
        images = Images(source, Transform(prepare), 1, np.arange(10), device=self.device)
        start = time.perf_counter()
        for i in range(count):
            prepare(source.image(i))
        one = (time.perf_counter() - start) / count

        def read() -> None:
            for _ in images.batches(np.arange(count), self.batch):
                pass

        return {"images_per_s": count / self.seconds(read), "prepared_by_one_core_per_s": 1 / one}

    def forward(self) -> Json:
        with torch.inference_mode():
            return self.of_kinds(self.batch, lambda _: self.model(self.images[: self.batch]), 3)

    def jas(self) -> Json:
        """Paths of t = 50 at the defaults, gathered as the run does it."""
        few = max(1, self.batch // 2)

        def work(kind: str) -> None:
            how = how_of("jas", precision="bfloat16" if kind == "bfloat16" else "float32")
            with devices.products("tf32" if kind == "tf32" else "float32", self.device):
                found = jas(self.model, self.sites, self.images[:few], self.labels[:few], ts=[50], how=how)
            Gathered.of(found[50], self.labels[:few], np.arange(few), 50)

        return self.of_kinds(few, work, 1)

    def sums(self) -> Json:
        classes, made = list(range(int(self.model.num_classes))), []

        def work(_: str) -> None:
            how = Seeded(0)
            batches = lambda: self.parts(2 * self.batch)  # noqa: E731
            made[:] = [fisher_obs.sums(self.model, self.sites, batches, classes=classes, how=how)]

        found = self.of_kinds(2 * self.batch, work, 1)
        covariances, gradients, _ = fisher_obs.of_sums(made[0], self.sites)
        self.statistics = covariances[0], gradients[0]
        return found

    def elimination(self) -> Json:
        """One block's; the order on the device beside the processor's, where these are two."""
        if self.statistics is None:
            raise RuntimeError("the sums of fisher-obs were not made")
        covariance, gradient = self.statistics
        weight = fisher_obs.root(gradient) @ columns(self.model, self.sites[0])
        made: list[Any] = []

        def work() -> None:
            made[:] = [elimination.eliminate(weight, covariance, device=self.device)]

        found: Json = {"seconds_per_block": self.seconds(work, 1)}
        if self.device.type == "cuda":
            start = time.perf_counter()
            order, costs = elimination.eliminate(weight, covariance)
            found["processor_seconds_per_block"] = time.perf_counter() - start
            found["same_order"] = torch.equal(made[0][0], order)
            found["costs_apart"] = float(((made[0][1] - costs).abs() / costs.abs().clamp_min(1e-12)).max())
        return found

    def repair(self) -> Json:
        """Layerwise at half of the multiply-adds; what every image adds, and what the fits take whatever their number."""
        plan, found = drawn(self.model, 0.5), Json()
        for kind in self.kinds:
            times = []
            for count in (self.batch, 2 * self.batch):
                batches = [x for x, _ in self.parts(count)]
                repairer = Repairer("layerwise")

                def work(batches: list[Tensor] = batches, repairer: Repairer = repairer) -> None:
                    slim(plan, repairer, repairer.prepare(self.model, lambda: batches))

                with devices.products(kind, self.device):
                    times.append(self.seconds(work, 1, warm=int(kind == "float32" and count == self.batch)))
            each = max(times[1] - times[0], 1e-9) / self.batch
            found[kind] = {"images_per_s": 1 / each, "fits_s": max(0.0, times[0] - each * self.batch)}
        return found

    def exam(self) -> Json:
        return self.of_kinds(self.batch, lambda _: predictor(self.model)(self.images[: self.batch]), 3)

    def onnx(self) -> Json:
        """Speed-up and efficiency of fp16 files at every budget, batch and provider."""
        provider = [p for p in runtime.available() if p != "cpu"] or ["cpu"]
        host = self.model.cpu()
        try:
            with tempfile.TemporaryDirectory() as folder:
                files: dict[str, Path] = {}
                for name, made in [
                    ("dense", host),
                    *((f"x{b:g}", surgery.slim(host, drawn(host, b))) for b in BUDGETS),
                ]:
                    short = name != "dense" and first_token.why_not(made) is None
                    whole, files[name] = Path(folder, f"{name}.fp32.onnx"), Path(folder, f"{name}.onnx")
                    exporting.export(first_token.of(made) if short else made, whole, size.size(made, shortcut=short))
                    to_fp16(whole, files[name])
                rows = bench.bench(files, BATCHES, provider, seconds=0.1 if self.quick else 1.0)
        finally:
            self.model.to(self.device)
        keys = ("provider", "batch", "model", "precision", "median_ms", "mac_ratio", "speedup", "efficiency")
        return {"rows": [{key: row.get(key) for key in keys} for row in rows]}


def model_of(name: str, quick: bool) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("vit_tiny_patch16_224" if quick else name, **(QUICK if quick else {}))
    return made.eval().requires_grad_(False)


def drawn(model: nn.Module, budget: float) -> Any:
    """A plan within a share of the multiply-adds: every site keeps the same share, which units are drawn."""
    curves = [one.curve for one in of_heads.random(attention_sites(model), seed=0)]
    scores = random(families.ffn_sites(model), seed=0)
    return allocation.plan(model, scores, curves, budget, Macs(model, shortcut=True))


def minutes(found: Json, blocks: int) -> Json:
    """Of 50,000 images, by kind of product: what was measured, times how often."""

    def spent(stage: str, kind: str, images: int) -> float | None:
        rate = found.get(stage, {}).get(kind, {}).get("images_per_s")
        return images / rate / 60 if rate else None

    rows: Json = {}
    kinds = [kind for kind in ("float32", "tf32", "bfloat16") if kind in found.get("forward", {})]
    each = found.get("elimination", {}).get("seconds_per_block")
    for kind in kinds:
        row = {"jas": spent("jas", kind, PROBE), "sums": spent("sums", kind, PROBE)}
        row |= {"repair": spent("repair", kind, REPAIR), "exam_row": spent("exam", "float32", TEST)}
        if row["repair"] is not None:
            row["repair"] += found["repair"][kind]["fits_s"] / 60
        row["elimination"] = each * blocks / 60 if each else None
        default = [row[name] for name in ("sums", "elimination", "repair", "exam_row")]
        known = [part for part in default if part is not None]
        row["default_recipe"] = sum(known) if len(known) == len(default) else None
        rows[kind] = row
    return rows


def about(asked: argparse.Namespace) -> Json:
    """Card, driver and versions; the caller says the date, or it is today's."""
    device, made = torch.device(asked.device), Json()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        made = {"cuda": torch.version.cuda, "memory_mb": round(card.total_memory / 1e6), "driver": driver()}
    return {"date": asked.date, "quick": asked.quick, **devices.machine(device), **made, **devices.versions()}


def driver() -> str | None:
    """NVIDIA's, as it tells it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("Module")[1].split()[0]
    except (OSError, IndexError):
        return None


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


STAGES = (
    ("forward", 5), ("loading", 5), ("jas", 20), ("sums", 15), ("elimination", 30), ("repair", 30), ("exam", 5), ("onnx", 90),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--limit", type=float, default=280, help="seconds; no stage begins that may go beyond")
    parser.add_argument("--only", nargs="+", choices=[name for name, _ in STAGES], default=[name for name, _ in STAGES])
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    parser.add_argument("--quick", action="store_true", help="a small model: tries the script")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    started, found, work = time.monotonic(), Json(), Bench(asked)
    for name, least in STAGES:
        if name not in asked.only:
            continue
        left = asked.limit - (time.monotonic() - started)
        begun = time.monotonic()
        if left < least and not asked.quick:
            made = {"skipped": f"{left:.0f} s are left, it may take {least}"}
        else:
            try:
                made = getattr(work, name)()
            except Exception as error:  # the next stage is still worth its time
                made = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        found[name] = rounded(made | {"seconds": time.monotonic() - begun})
        print(json.dumps({"stage": name} | found[name]), flush=True)
    every = {"about": about(asked), "stages": found, "minutes": rounded(minutes(found, len(work.sites)))}
    if asked.json:
        asked.json.write_text(json.dumps(every, indent=1) + "\n", "utf-8")
    print(json.dumps(every))
    return int(any("error" in stage for stage in found.values()))


if __name__ == "__main__":
    sys.exit(main())
