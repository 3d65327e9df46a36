"""`make demo` measured, and the page that tells of it, so that docs/demo.md says what was printed and nothing else.

    python benchmarks/demo.py run           # both recipes and the page of both, timed: benchmarks/results/demo.json; then
                                            # recipes/see-demo.yaml, which is to stay within a minute beyond the first
    python benchmarks/demo.py [--check]     # docs/demo.md between its two marks, made from that file alone

`run` works in a folder of its own (with --work DIR in that one, which stays) and leaves exported/ alone.
--check writes nothing and exits 1 where the page differs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo.json"
PAGE = ROOT / "docs" / "demo.md"
START, END = "<!-- demo: benchmarks/demo.py -->", "<!-- end -->"
RUNS = ("demo", "demo-whole")
ROW = ("criterion", "protocol", "recovery", "t", "seed", "top1", "macs", "mcnemar_p")
Json = dict[str, Any]


def run(work: Path | None) -> None:
    """Do as `make demo` does after the installation, and keep what was printed, rows and seconds."""
    from vitprune.deploy import timing

    found: Json = {"date": datetime.now(UTC).date().isoformat(), "runs": {}}
    command, load, began = [sys.executable, "-m", "vitprune"], timing.Load(), time.monotonic()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as own:
        place = work or Path(own)
        for name in RUNS:
            started = time.monotonic()
            done = subprocess.run(
                [*command, "run", ROOT / "recipes" / f"{name}.yaml"],
                cwd=place,
                env=env,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            record = json.loads((place / "exported" / name / "report.json").read_text())
            found["runs"][name] = {
                "seconds": round(time.monotonic() - started, 1),
                "stages": {stage["name"]: stage["seconds"] for stage in record["stages"]},
                "printed": [line.rstrip() for line in done.stdout.splitlines()],
                "rows": [{key: row.get(key) for key in ROW} for row in record["rows"]],
                "macs": {key: value for key, value in record["model"].items() if key.startswith("macs")},
            }
            found["machine"] = record["machine"]
        subprocess.run([*command, "report", *(f"exported/{name}" for name in RUNS)], cwd=place, env=env, check=True)
        found["seconds"], started = round(time.monotonic() - began, 1), time.monotonic()
        subprocess.run([*command, "run", ROOT / "recipes" / "see-demo.yaml"], cwd=place, env=env, check=True)
        taken = time.monotonic() - started
        stages = json.loads((place / "exported/see-demo/report.json").read_text())["stages"]
        (seen,) = (stage["seconds"] for stage in stages if stage["name"] == "see")
        found["see_demo"] = {
            "seconds": round(taken, 1), "see": seen, "beyond_demo": round(taken - found["runs"]["demo"]["seconds"], 1)
        }  # fmt: skip
    others = load.others()
    found["other_cores"] = None if others is None else round(others, 2)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


def top1(rows: Sequence[Json], **which: Any) -> list[float]:
    """Top-1 in points of the rows that are so."""
    found = [100 * row["top1"] for row in rows if all(row[key] == value for key, value in which.items())]
    assert found, which
    return found


def span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def about(rows: Sequence[Json]) -> str:
    """The paragraph on the first half: what JAS is ahead of, and where it is not."""
    oracle = {row["t"]: None for row in rows if row["protocol"] == "oracle"}
    ahead = [
        top1(rows, protocol="oracle", t=t, criterion="jas")[0]
        - top1(rows, protocol="oracle", t=t, criterion="activation")[0]
        for t in oracle
    ]
    where = "at every t" if min(ahead) > 0 else f"at {sum(x > 0 for x in ahead)} of {len(ahead)} t"
    (dense,) = top1(rows, criterion="dense")
    (bare,), (mended,) = (top1(rows, protocol="honest", criterion="jas", recovery=r) for r in ("none", "affine"))
    drawn = [row for row in rows if row["criterion"] == "random" and row["recovery"] == "affine"]
    before = statistics.mean(top1(rows, criterion="random", recovery="none"))
    over = [100 * row["top1"] - mended for row in drawn]
    p = ", ".join(f"{row['mcnemar_p']:.2g}" for row in drawn)
    after = f"{span(over)} ahead" if min(over) > 0 else f"{span([-x for x in over])} behind"
    gains = span([x for x in ahead if x > 0])
    return (
        f"There JAS is ahead of activation {where}, by {gains} points (in the paper: at every t). As a criterion for removing "
        "units for real (paths through all tokens, because a removed unit is gone at all of them) it loses "
        f"{dense - mended:.1f} points of top-1 after the repair. Random masks are {bare - before:.0f} points behind it before "
        f"the repair, and after it {after} (p = {p}): a unit that is easily rebuilt from the others is worth little however "
        "strongly it fires, which JAS and activation do not see and the tool's default, `fisher-obs`, does."
    )


def whole(made: Json) -> str:
    """The table of the second half."""
    rows, macs = made["rows"], made["macs"]
    lines = [
        "| criterion | recovery | top-1 |",
        "|---|---|---:|",
        f"| dense | | {top1(rows, criterion='dense')[0]:.2f} |",
    ]
    (bare,), (mended,) = (top1(rows, criterion="fisher-obs", recovery=r) for r in ("none", "layerwise+head"))
    drawn = top1(rows, criterion="random", recovery="layerwise+head")
    lines += [f"| fisher-obs | none | {bare:.2f} |", f"| fisher-obs | layerwise+head | **{mended:.2f}** |"]
    spread = f"{statistics.mean(drawn):.2f} ± {statistics.stdev(drawn):.2f}"
    lines += [f"| random, as many heads, dimensions and units | layerwise+head | {spread} |"]
    dense, slim, filed = (macs[key] / 1e6 for key in ("macs_dense", "macs_slim", "macs_exported"))
    head = wrapped(
        "Then `recipes/demo-whole.yaml` runs: the tool's own default at a quarter of all multiply-adds, attention beside the "
        f"FFNs, from 2,000 unlabelled images ({slim:.1f} M of {dense:.1f} M multiply-adds in the checkpoint, "
        f"{100 * filed / dense:.0f} % of them in the ONNX file):"
    )
    return f"{head}\n\n" + "\n".join(lines)


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def clock(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def text(found: Json | None) -> str:
    """What stands between the marks."""
    if found is None:
        return (
            f"{START}\nThe figures of the present recipes are not measured yet: `python benchmarks/demo.py run`.\n{END}"
        )
    first, second = (found["runs"][name] for name in RUNS)
    machine, others = found["machine"], found["other_cores"]
    shared = "" if others is None else f", of which others used {others:.1f} meanwhile"
    printed = "\n".join(first["printed"])
    where = f"{found['date']}, {machine['cores']} cores of {machine['cpu']}{shared}"
    whole_time, *halves = (clock(one["seconds"]) for one in (found, first, second))
    took = wrapped(
        f"Both halves and the page of both took {whole_time} ({' and '.join(halves)} of it the halves; {where}). The first "
        "half prints"
    )
    reading = wrapped(
        "How to read it: *honest* rows are one model for every image, examined on the 20 % of each class that took no part in "
        "any choice. *Oracle-routed* rows are the paper's own protocol (class token only, everything but t units per block "
        "zeroed, the mask picked by the image's **true label**): nobody knows that label at deployment, nothing gets smaller, "
        f"and these figures are no promise. {about(first['rows'])}"
    )
    return f"{START}\n{took}\n\n```text\n{printed}\n```\n\n{reading}\n\n{whole(second)}\n{END}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("what", nargs="?", choices=["run", "page"], default="page")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page differs")
    parser.add_argument("--work", type=Path, help="an empty folder to work in, which stays")
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.work and asked.work.resolve())
    page = PAGE.read_text()
    before, rest = page.split(START)
    made = before + text(json.loads(RESULT.read_text()) if RESULT.is_file() else None) + rest.split(END)[1]
    if asked.check:
        sys.exit(f"stale: {PAGE.name}; python benchmarks/demo.py" if made != page else 0)
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
