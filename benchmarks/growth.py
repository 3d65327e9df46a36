"""How the cost of every stage grows with images, classes and width: exponents of time and of memory.

    python benchmarks/growth.py [--quick] [--criterion NAME] [--work FOLDER]

The default recipe on a small ViT with drawn weights and grey noise (`thousand.py`); one of the three is changed at a time:
images x1, x4, x16 at 10 classes; 10, 100 and 1,000 classes at one number of images; units of an FFN x1, x2. Caps on the
images of a stage are lifted, so that each takes all. Every measurement is a process of its own, one thread: `seconds` are
those of the processor, `memory` is what a stage needed beyond what was in use before it, in MB. An exponent is the slope
between the two largest sizes, log over log, after `FLOOR` has been added to both: what is below it is noise. `report` is the
record and the pages, `run` all of the process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import thousand
import yaml

Json = dict[str, Any]
FLOOR = {"seconds": 0.2, "memory": 20.0}
WIDTH, DEPTH, UNITS = 32, 3, 192
PROBE = 0.75


def sizes(quick: bool) -> dict[str, list[tuple[int, int, int]]]:
    """By axis: classes, images and units of every measurement, the axis's own growing."""
    images = 200 if quick else 480
    at_once = 800 if quick else 4000  # in the quick one those of the images axis: one measurement less
    return {
        "images": [(10, images * times, UNITS) for times in ((1, 4) if quick else (1, 4, 16))],
        "classes": [(classes, at_once, UNITS) for classes in ((10, 100) if quick else (10, 100, 1000))],
        "width": [(10, images, UNITS * times) for times in (1, 2)],
    }


def recipe(folder: Path, classes: int, images: int, units: int, criterion: str, quick: bool = False) -> Path:
    """The default recipe, with the caps lifted."""
    folder.mkdir(parents=True)
    model = thousand.model(folder / "model", classes, WIDTH, DEPTH, units)
    made: Json = {"version": 1, "name": "grown", "out": str(folder / "exported"), "split": {"seed": 0, "probe": PROBE}}
    made |= {"model": {"name": f"local-dir:{model}"}, "refit_images": 1 << 20}
    made |= {"data": {"path": str(thousand.images(folder / "images.tar", classes, images // classes))}}
    made |= {"criterion": {"name": criterion, "probe_per_class": 1 << 20}, "export": {"latency_batches": [1]}}
    made["export"] |= {"precisions": ["fp32"]} if quick else {}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def run(path: Path) -> None:
    """What is started for one measurement: prints seconds and memory of every stage."""
    import torch

    from vitprune.core import memory
    from vitprune.recipe import parse
    from vitprune.runs import pipeline

    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def does(*args: Any) -> Any:
            with memory.peak(torch.device("cpu")) as highest:
                start = time.process_time()
                made = work(*args)
                seconds[name] = seconds.get(name, 0.0) + time.process_time() - start
            peaks[name] = max(peaks.get(name, 0.0), highest[0] or 0.0)
            return made

        return does

    pipeline.STAGES = tuple(dataclasses.replace(stage, work=timed(stage.name, stage.work)) for stage in pipeline.STAGES)
    for room in (pipeline.record, pipeline.matrices):
        room.write = timed("report", room.write)  # type: ignore[assignment]
    pipeline.record.build = timed("report", pipeline.record.build)
    pipeline.run(parse.load(path), "run", device="cpu")
    seconds["run"] = time.process_time()
    peaks["run"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory": peaks}))


def measured(path: Path) -> Json:
    command = [sys.executable, str(Path(__file__).resolve()), "--run", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return dict(json.loads(done.stdout.decode().strip().splitlines()[-1]))


def exponent(before: float, after: float, times: float, floor: float) -> float:
    """The slope between two sizes that are `times` apart, log over log."""
    return round(math.log((after + floor) / (before + floor)) / math.log(times), 2)


def exponents(found: dict[str, list[Json]], asked: dict[str, list[tuple[int, int, int]]], what: str) -> Json:
    """By stage and axis."""
    place = {"classes": 0, "images": 1, "width": 2}
    made: Json = {}
    for axis, every in found.items():
        times = asked[axis][-1][place[axis]] / asked[axis][-2][place[axis]]
        before, after = every[-2][what], every[-1][what]
        for stage in after:
            slope = exponent(before.get(stage, 0.0), after[stage], times, FLOOR[what])
            made.setdefault(stage, {})[axis] = slope
    return made


def measure(args: argparse.Namespace, work: Path) -> Json:
    asked, known = sizes(args.quick), dict[tuple[int, int, int], Json]()
    loads = [os.getloadavg()[0]]
    for size in dict.fromkeys(size for every in asked.values() for size in every):
        known[size] = measured(recipe(work / "-".join(map(str, size)), *size, args.criterion, args.quick))
        loads.append(os.getloadavg()[0])
        print(f"{size}: {known[size]['seconds']['run']:.1f} s of the processor", file=sys.stderr, flush=True)
    found = {axis: [known[size] for size in every] for axis, every in asked.items()}
    names = ("classes", "images", "units")
    rows = [dict(zip(names, size, strict=True)) | made for size, made in known.items()]
    return {
        "criterion": args.criterion,
        "load": [round(min(loads), 1), round(max(loads), 1)],
        "exponents": exponents(found, asked, "seconds"),
        "memory_exponents": exponents(found, asked, "memory"),
        "measured": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two sizes of each, fewer images, the fp32 file alone")
    parser.add_argument("--criterion", default="fisher-obs")
    parser.add_argument("--work", type=Path, help="folder to work in")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run)
        return
    if args.work:
        print(json.dumps(measure(args, args.work.resolve())))
        return
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(measure(args, Path(work))))


if __name__ == "__main__":
    main()
