"""The README's picture and table, made from committed results alone, so that neither can say what no file says.

    python benchmarks/readme.py [--check]

Writes docs/accuracy-speed.svg and the table between the two marks in README.md; the same results give the same bytes.
--check writes nothing and exits 1 where they differ from what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "accuracy-speed.svg"
START, END = "<!-- table: benchmarks/readme.py -->", "<!-- end -->"
LEFT = "0.25"  # share of the multiply-adds in the table
MODELS = (  # of a row: what it is, its figures of the whole model, its control, its speed
    ("bundled ViT (0.7 M), Fashion-MNIST", "whole-bundled", "controls-bundled", "speed-bundled"),
    ("DINOv2-S, Fashion-MNIST", "whole-dinov2_small_fashion", "controls-dinov2_small_fashion", "speed-dinov2_small"),
    (
        "DINOv2-S, photographs of clothes",
        "whole-dinov2_small_clothing",
        "controls-dinov2_small_clothing",
        "speed-dinov2_small_clothing",
    ),
    ("ViT-S/16 at 224, random weights", None, None, "speed-vit_small"),
)
AXIS = (
    '<text class="tick" x="375" y="345" text-anchor="middle">'
    "speed in ONNX Runtime, batch 32, dense = 1 × (label: multiply-adds left)</text>"
)
Json = dict[str, Any]


def read(name: str | None) -> Json | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if name and path.is_file() else None


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table() -> str:
    """A row a model at a quarter of its multiply-adds; a dash where nothing was measured."""
    lines = [
        "| model, images | top-1 dense | **a quarter of the multiply-adds** | same sizes at random, same repair "
        "| parameters left | ONNX Runtime, batch 32 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, whole, control, speed in MODELS:
        cells = ["–"] * 5
        found, drawn, timed = read(whole), read(control), read(speed)
        if found:
            row = found["budgets"][LEFT]
            cells[0], cells[1] = percent(found["dense_top1"]), f"**{percent(row['top1'])}**"
            cells[3] = f"{100 * row['params_ratio']:.0f} %"
        if drawn and found:  # by its own distance from the default on the same splits
            behind = sum(one["top1"] - one["random_top1"] for one in drawn["seeds"]) / len(drawn["seeds"])
            cells[2] = percent(found["budgets"][LEFT]["top1"] - behind)
        if timed:
            dense, slim = timed["files"]["dense"], timed["files"][LEFT]
            cells[4] = f"{dense['ms']:.0f} → {slim['ms']:.0f} ms ({slim['speedup']:.1f} ×)"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture() -> str:
    """Top-1 against speed of the pretrained model, dense to a tenth of its multiply-adds, as SVG."""
    whole, speed = read("whole-dinov2_small_fashion"), read("speed-dinov2_small")
    control = read("controls-dinov2_small_fashion")
    assert whole is not None and speed is not None
    points = [(1.0, whole["dense_top1"], "dense")]
    points += [
        (speed["files"][name]["speedup"], whole["budgets"][name]["top1"], f"{100 * float(name):.0f} %")
        for name in ("0.5", "0.25", "0.2", "0.1")
    ]
    fastest = max(x for x, _, _ in points)

    def x_of(x: float) -> float:
        return 70 + 600 * (x - 0.5) / fastest

    def y_of(y: float) -> float:
        return 300 - 260 * (y - 0.5) / 0.5

    parts = [
        f'<line class="grid" x1="70" x2="680" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text class="tick" x="62" y="{y_of(y) + 4:.1f}" text-anchor="end">{100 * y:.0f} %</text>'
        for y in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    parts += [
        f'<text class="tick" x="{x_of(x):.1f}" y="320" text-anchor="middle">{x} ×</text>'
        for x in range(1, int(fastest) + 1)
    ]
    road = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y, _ in points)
    parts.append(f'<polyline class="road" points="{road}"/>')
    for x, y, label in points:
        parts.append(f'<circle class="point" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="6"/>')
        parts.append(f'<text x="{x_of(x):.1f}" y="{y_of(y) - 14:.1f}" text-anchor="middle">{label}</text>')
    if control:
        behind = sum(one["top1"] - one["random_top1"] for one in control["seeds"]) / len(control["seeds"])
        x, y = speed["files"][LEFT]["speedup"], whole["budgets"][LEFT]["top1"] - behind
        parts.append(f'<circle class="other" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="6"/>')
        parts.append(
            f'<text class="tick" x="{x_of(x) + 12:.1f}" y="{y_of(y) + 4:.1f}">the same sizes at random, same repair</text>'
        )
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 360" role="img" font-family="system-ui, sans-serif">
<title>DINOv2-S on Fashion-MNIST: top-1 against speed, from the dense model to a tenth of its multiply-adds</title>
<style>
text {{ fill: #222; font-size: 14px }} .tick {{ font-size: 12px; fill: #666 }} .grid {{ stroke: #ddd }}
.road {{ fill: none; stroke: #0b6e99; stroke-width: 2.5 }} .point {{ fill: #0b6e99 }}
.other {{ fill: none; stroke: #b35900; stroke-width: 2.5 }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #eee }} .tick {{ fill: #aaa }} .grid {{ stroke: #444 }}
.road {{ stroke: #5bc0eb }} .point {{ fill: #5bc0eb }} .other {{ stroke: #f0a04b }} }}
</style>
{body}
{AXIS}
<text class="tick" x="70" y="22">top-1 on images that nobody chose with</text>
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something differs")
    check = parser.parse_args().check
    page = ROOT / "README.md"
    text = page.read_text()
    before, rest = text.split(START)
    made = {page: f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}", PICTURE: picture()}
    stale = [path.name for path, content in made.items() if not path.is_file() or path.read_text() != content]
    if check:
        sys.exit(f"stale: {', '.join(stale)}" if stale else 0)
    for path, content in made.items():
        path.write_text(content)


if __name__ == "__main__":
    main()
