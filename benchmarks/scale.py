"""Past one process: what several workers are worth, how cost grows, and what kills do to a result.

    python benchmarks/scale.py [--quick] [--only engines|growth|faults] [--kills N] [--json FILE]

Engines: the default recipe on the bundled model, from the first job to the last exam row, without export, the start of the
processes included, one thread each: 1, 2 and 3 local processes and a local Ray cluster, each in a process and a folder of
its own; the bits of every file that they leave are compared. Growth: `growth.py`, exponents of time and memory of every
stage in images, classes and width. Faults: workers, the head (the process that was called) and a Ray node are killed, at
moments spread over the run; the head is called again; the files must be those of an undisturbed run. --quick: no
baselines, two processes, three kills. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
HERE = Path(__file__).parent
RAY = importlib.util.find_spec("ray") is not None
TIMES = ("seconds", "peak_memory_mb", "latency", "smallest_batch")  # what no two runs have in common


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def recipe(folder: Path, **changed: Any) -> Path:
    """A recipe of the bundled model that names nothing but itself, and what is `changed`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"name": "run", "model": {"name": "bundled"}, "data": {"source": "bundled"}, "out": str(folder), **changed}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


ALL = {True: ["local-1", "local-2", "ray-2"], False: ["local-1", "local-2", "local-3", "ray-2"]}
SMALL: Json = {
    "criterion": {"name": "fisher-obs", "probe_per_class": 40},
    "baselines": ["jas", "activation"],
    "refit_images": 640,
    "budget": {"macs": 0.25},
}


def started(path: Path, workers: int, engine: str, log: Path, address: str | None = None) -> subprocess.Popen[bytes]:
    """`vitprune evaluate` of a recipe in a process of its own, one thread each."""
    command = [
        sys.executable,
        str(HERE / "scale.py"),
        "--run",
        str(path),
        "--workers",
        str(workers),
        "--engine",
        engine,
    ]
    command += ["--address", address] if address else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VITPRUNE_SCALE": str(path)}
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env=environment)


def run(args: argparse.Namespace) -> None:
    """What `started` starts: prints the seconds from the first job to the last exam row."""
    import torch

    from vitprune.core.progress import Reporter
    from vitprune.recipe import parse
    from vitprune.runs import pipeline
    from vitprune.runs.engine import opening

    torch.set_num_threads(1)  # the number can move last bits, so it is the same for all
    found = parse.load(args.run)
    start = time.perf_counter()
    crew = opening.Crew(args.workers, args.engine, args.address)
    pipeline.run(found, "evaluate", reporter=Reporter(), workers=crew)
    print(json.dumps({"seconds": time.perf_counter() - start}))


def without_times(content: Any) -> Any:
    """A record without what is measured of the run itself."""
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k not in TIMES}
    return [without_times(v) for v in content] if isinstance(content, list) else content


def bits(folder: Path) -> dict[str, str]:
    """Digest of every file that a run left, by its place; records without their times, and none of the records of the
    stages, which list digests of the others."""
    made: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name in ("stage.json", ".lock", ".vitprune") or place.startswith("stages/seen"):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(without_times(json.loads(content)), sort_keys=True).encode()
        if path.suffix == ".yaml":
            content = b"\n".join(line for line in content.splitlines() if not line.startswith(b"out:"))
        made[place] = hashlib.sha256(content.replace(str(folder.parent).encode(), b"")).hexdigest()
    return made


def apart(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Places that are not the same."""
    return sorted(place for place in one.keys() | other.keys() if one.get(place) != other.get(place))


def seconds(log: Path) -> float:
    return float(json.loads(log.read_text().strip().splitlines()[-1])["seconds"])


def marked(mark: str) -> list[int]:
    """The processes that were started with a mark in their environment, by /proc."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"VITPRUNE_SCALE={mark}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_of(mark: str, engine: str) -> list[int]:
    """The processes that work out parts; Ray's own helpers, without which its node ends, are none of them."""
    word = "ray::_Actor" if engine == "ray" else "loky"
    return [one for one in marked(mark) if word in name_of(one) and "resource_tracker" not in name_of(one)]


def engines(args: argparse.Namespace, work: Path) -> Json:
    """Seconds and bits of every engine, in turn; `--rounds` times, the median."""
    asked = [
        (engine, int(count)) for engine, _, count in (one.partition("-") for one in args.engines or ALL[args.quick])
    ]
    asked = [one for one in asked if RAY or one[0] != "ray"]
    changed: Json = {"baselines": []} if args.quick else {}
    took: dict[str, list[float]] = {}
    first: dict[str, str] | None = None
    different: list[str] = []
    left = 0
    for round_ in range(args.rounds):
        for engine, count in asked:
            name = f"{engine}_{count}"
            folder = work / f"{name}-{round_}"
            process = started(recipe(folder, **changed), count, engine, folder / "log")
            code = process.wait()
            if code:
                raise SystemExit(f"{name}: exit {code}\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(1)
            left += len(marked(str(folder / "recipe.yaml")))
            took.setdefault(name, []).append(seconds(folder / "log"))
            found = bits(folder / "run")
            first = first or found
            different += [f"{name}: {place}" for place in apart(first, found)]
            say(f"{name}: {took[name][-1]:.1f} s, {len(found)} files, {len(different)} other, {left} processes left")
    middle = {name: statistics.median(of) for name, of in took.items()}
    made: Json = {f"speedup_{name}": middle["local_1"] / of for name, of in middle.items() if name != "local_1"}
    made.setdefault("speedup_ray_2", None)
    return made | {"seconds": middle, "same_bits": not different, "different": different[:20], "left": left}


def growth(args: argparse.Namespace, work: Path) -> Json:
    """The exponents that `growth.py` finds."""
    command = [sys.executable, str(HERE / "growth.py"), *(["--quick"] if args.quick else []), "--work", str(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.decode().strip().splitlines()[-1]))


def disturbed(
    path: Path, kill: Callable[[subprocess.Popen[bytes], str], str | None], engine: str, at: list[float]
) -> list[str]:
    """Call a recipe until it is done, and let `kill` do its work at moments (seconds after a call); what was killed."""
    killed: list[str] = []
    waits = list(at)
    log = path.parent / "log"
    while True:
        process = started(path, 2, engine, log)
        begun = time.monotonic()
        while process.poll() is None:
            if waits and time.monotonic() - begun >= waits[0]:
                what = kill(process, str(path))
                if what:
                    killed.append(f"{what} after {time.monotonic() - begun:.1f} s: {doing(log)}")
                    waits.pop(0)
            time.sleep(0.05)
        if process.returncode == 0:
            return killed
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"{path}: exit {process.returncode}\n{log.read_text()[-2000:]}")


def doing(log: Path) -> str:
    """What the run said last."""
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1][:60] if lines else "at the start"


def a_worker(engine: str, chance: random.Random) -> Callable[[subprocess.Popen[bytes], str], str | None]:
    def kill(_: subprocess.Popen[bytes], mark: str) -> str | None:
        found = workers_of(mark, engine)
        if not found:
            return None
        os.kill(chance.choice(found), signal.SIGKILL)
        return f"{engine} worker"

    return kill


def the_head(process: subprocess.Popen[bytes], _: str) -> str | None:
    process.kill()
    process.wait()
    return "head"


def faults(args: argparse.Namespace, work: Path) -> Json:
    """Kills spread over runs of a small recipe, and whether what they leave is what an undisturbed run leaves."""
    chance = random.Random(0)
    calm = work / "calm"
    process = started(recipe(calm, **SMALL), 2, "local", calm / "log")
    if process.wait():
        raise SystemExit((calm / "log").read_text()[-2000:])
    whole, expected = seconds(calm / "log"), bits(calm / "run")
    count = 3 if args.quick else args.kills
    kinds = ["worker", "head", "ray"] if args.quick else ["worker", "worker", "head", "worker", "ray"]
    kinds = [kind for kind in kinds if RAY or kind != "ray"]
    killed: list[str] = []
    different: list[str] = []
    n = 0
    while len(killed) < count:
        kind = kinds[n % len(kinds)]
        engine = "ray" if kind == "ray" else "local"
        each = min(1 if args.quick else 3, count - len(killed))
        at = sorted(whole * (0.15 + 0.8 * chance.random()) for _ in range(each))
        folder = work / f"faults-{n}"
        kill = the_head if kind == "head" else a_worker(engine, chance)
        found = disturbed(recipe(folder, **SMALL), kill, engine, at)
        different += [f"{kind}: {place}" for place in apart(expected, bits(folder / "run"))]
        killed += found
        n += 1
        say(f"{len(killed)} killed ({'; '.join(found)}), {len(different)} files other")
        if n > 10 * count:
            raise SystemExit("kills: the runs end before they can be met")
    if RAY and not args.quick:
        killed += a_node(work / "node", expected, different)
    return {"kills": killed, "kills_survived": len(killed) if not different else 0, "killed_other": different[:20]}


def a_node(folder: Path, expected: dict[str, str], different: list[str]) -> list[str]:
    """A node of a small Ray cluster on this machine killed in the middle of a run."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    folder.mkdir(parents=True)
    process = started(recipe(folder, **SMALL), 2, "ray", folder / "log", cluster.address)
    time.sleep(20)
    cluster.remove_node(second, allow_graceful=False)
    killed = [f"ray node after 20 s: {doing(folder / 'log')}"]
    cluster.add_node(num_cpus=1)
    if process.wait():
        raise SystemExit((folder / "log").read_text()[-2000:])
    cluster.shutdown()
    different += [f"node: {place}" for place in apart(expected, bits(folder / "run"))]
    say(killed[0])
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["engines", "growth", "faults"], nargs="*")
    parser.add_argument("--rounds", type=int, default=1, help="how often every engine is timed, in turn")
    parser.add_argument("--engines", nargs="+", help="those that are timed, local-1 first: local-2, ray-2")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the last line there too")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="local", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args)
        return
    parts = {"engines": engines, "growth": growth, "faults": faults}
    made: Json = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as work:
        for name, part in parts.items():
            if not args.only or name in args.only:
                (Path(work) / name).mkdir()
                made |= part(args, Path(work) / name)
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
