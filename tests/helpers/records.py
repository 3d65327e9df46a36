"""A complete record of a run, the files it names, and a reader of the pages made from it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

Record = dict[str, Any]


def row(criterion: str, top1: float, **changed: Any) -> Record:
    """One honest measurement on two classes."""
    made: Record = {
        "criterion": criterion, "keep": 0.25, "kept": 0.2512, "allocation": "uniform", "recovery": "none",
        "protocol": "honest", "t": None, "group": None, "classes": ["shirt", "boot"], "head": "all", "seed": 0,
        "top1": top1, "top1_ci95": [round(top1 - 0.0123, 4), round(top1 + 0.0117, 4)],
        "mean_true_probability": round(top1 - 0.0567, 4), "params": 302346, "macs": 14123000, "n": 1983,
        "top1_change_points": round(100 * (top1 - 0.8735), 4),
        "mcnemar_p": 0.0313, "only_right": [61, 38], "dense_p": 0.0644, "dense_only_right": [29, 46],
    }  # fmt: skip
    return made | changed


def made_record() -> Record:
    """A complete record with every optional part."""
    itself = {"mcnemar_p": None, "only_right": None}
    dense = row(
        "dense", 0.8735, keep=1.0, kept=1.0, params=677386, macs=35480000, mcnemar_p=0.0644, only_right=[46, 29]
    )
    dense |= {f"dense_{key.removeprefix('mcnemar_')}": None for key in itself}
    honest = [row("jas", 0.8312), row("jas", 0.8649, recovery="affine", **itself), row("taylor", 0.8477, keep=96)]
    random = [row("random", top1, seed=seed) for seed, top1 in enumerate((0.53, 0.55, 0.60))]
    random += [row("random", 0.8633, recovery="affine", mcnemar_p=0.6127), row("noise", 0.5011)]
    oracle = [row("jas", 0.91 + t / 1e4, protocol="oracle", t=t) for t in (1, 5, 50)]
    return {
        "schema": 1, "name": "demo", "created": "2026-11-21T08:00:00Z", "complete": True, "missing": [],
        "command": "vitprune run recipes/demo.yaml", "recipe": {"seed": 0}, "recipe_yaml": "seed: 0\n",
        "hashes": {"data": "da7a", "split": "5911", "model": "30de"}, "versions": {"vitprune": "0.1.0"},
        "machine": {"cpu": "some", "cores": 2, "device": "cpu"},
        "classes": ["shirt", "boot", "bag"], "target_classes": ["shirt", "boot"],
        "split": {"seed": 7, "probe_share": 0.8, "probe": 8000, "test": 1983,
                  "skipped": [{"path": "a.jpg", "reason": "truncated"}],
                  "per_class": [{"class": "shirt", "probe": 4000, "test": 990}]},
        "model": {"name": "bundled", "architecture": "vit_tiny", "params_dense": 677386, "params_slim": 302346,
                  "macs_dense": 35480000, "macs_slim": 14123000, "bytes_dense": 2735274,
                  "widths_dense": [384, 384], "widths_slim": [96, 97]},
        "rows": [dense, *honest, *random, *oracle],
        "result": honest[1] | {"latency_ratio": 0.62, "latency_batch": 1},
        "per_class": [{"class": "shirt", "n": 990, "dense_top1": 0.8, "slim_top1": 0.79, "change_points": -1.0},
                      {"class": "boot", "n": 993, "dense_top1": 0.9, "slim_top1": 0.91, "change_points": 1.0}],
        "predictions": {"": "report-data/all.safetensors"}, "outputs": {"": {"0": "shirt", "1": "boot", "4": "bag"}},
        "labels": ["shirt", "boot", "bag"],
        "preprocessing": {"input_size": [1, 28, 30], "mean": [0.286], "std": [0.353], "interpolation": "bilinear",
                          "crop_pct": 0.9, "said_by": {"mean": "the recipe"}},
        "confusions": {"": [{"class": "shirt", "taken_for": "boot", "dense": 4, "slim": 14, "change": 10}]},
        "worst": {"": [{"image": f"images/{i:05d}.png", "class": "shirt", "dense_class": "shirt", "slim_class": "boot",
                        "dense_true_probability": 0.931 - i / 7, "slim_true_probability": 0.0213 + i / 30,
                        "dense_confidence": 0.931 - i / 7, "slim_confidence": 0.877 - i / 9,
                        "thumbnail": f"report-data/all/worst-{i:02d}.png"} for i in range(2)]},
        "discoveries": [{"settings": {"criterion": "jas", "formula": "joint-ig", "quadrature": "left", "nodes": 7,
                                      "tokens": "all"}, "t": 50, "images": 400, "seconds": 80.0, "batch": 16,
                         "smallest_batch": 4, "shards": "s",
                         "completeness": {"mean_abs_gap": 0.00031, "max_abs_gap": 0.002, "images": 16}}],
        "paths": {"t": 50, "images": 80, "most_frequent": {"shirt": [3, 9], "boot": [1, 2]},
                  "shown": ["shirt", "boot"], "file": "report-data/paths.safetensors"},
        "class_similarity": {"classes": ["shirt", "boot"], "matrix": [[1.0, 0.41], [0.41, 1.0]]},
        "checks": [{"name": "probe and test are disjoint", "passed": True, "value": 0, "limit": 0, "detail": "ok"}],
        "latency": [{"batch": 1, "precision": p, "dense_ms": 1.21, "slim_ms": ms, "ratio": ratio,
                     "runtime": "CPUExecutionProvider"} for p, ms, ratio in (("fp32", 0.75, 0.62), ("int8", 0.44, 0.36))],
        "export": {"failed": [], "files": [{"path": f"model.{p}.onnx" if p != "fp32" else "model.onnx", "precision": p,
                                            "top1": top1, "top1_change_points": 0.0, "bytes": size, "opset": 23}
                                           for p, top1, size in (("fp32", 0.8649, 1243112), ("int8", 0.8588, 421007))]},
        "files": [{"path": "model.onnx", "bytes": 1243112, "sha256": "ab" * 32, "what": "ONNX, fp32"}],
        "stages": [{"name": "discover", "seconds": 71.2, "skipped": False}],
        "notes": ["A note."],
    }  # fmt: skip


def files_beside(folder: Path) -> None:
    """What `made_record` names: two thumbnails, the frequencies of two blocks of 384 units, the answers for 1,983 images."""
    generator = np.random.default_rng(0)
    (folder / "report-data" / "all").mkdir(parents=True, exist_ok=True)
    for i in range(2):
        pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "report-data" / "all" / f"worst-{i:02d}.png")
    frequency = {f"frequency.{i}": generator.random((2, 384), np.float32) ** 8 for i in range(2)}
    save_file(frequency, folder / "report-data" / "paths.safetensors")
    save_file(answers(), folder / "report-data" / "all.safetensors")


def answers() -> dict[str, np.ndarray]:
    """Label, both answers, their probabilities: 1,983 images, of which 46 only dense and 29 only slim get right."""
    label = np.repeat([0, 1], [990, 993])
    wrong = {"dense": slice(200, 240), "slim": slice(200, 263)}
    made = {"label": label, "image": np.arange(len(label))}
    for index, (name, places) in enumerate(wrong.items()):
        answer = label.copy()
        answer[places] = 1 if index else 4
        answer[1000 : 1029 if not index else 1000] = 0  # only slim right
        answer[1500 : 1523 if index else 1500] = 4  # only dense right, 23 here and 23 of the places above
        made[name] = answer
        made[f"{name}_confidence"] = np.where(answer == label, 0.97, 0.55).astype(np.float32)
        made[f"{name}_true_probability"] = np.where(answer == label, 0.97, 0.31).astype(np.float32)
    return made


def compare_beside(folder: Path) -> None:
    """A comparison as `vitprune compare` leaves it: two criteria, two budgets, two splits."""
    table = []
    for criterion, worse in (("obs", 0.0), ("jas", 0.004)):
        for keep, loss in ((0.25, 0.0103), (0.125, 0.0307)):
            top1 = 0.9063 - loss - worse
            table.append(
                {"criterion": criterion, "keep": keep, "recovery": "affine", "top1": top1, "top1_sd": 0.0071,
                 "kept": keep, "loss_points": 100 * (loss + worse), "loss_points_sd": 0.37, "best_other": "taylor",
                 "ahead_points": -0.23, "mcnemar_p": 0.0417 if worse else 0.00002}
            )  # fmt: skip
    content = {
        "schema": 1,
        "name": "demo",
        "classes": None,
        "seeds": [0, 1],
        "dense": {"top1": 0.9063, "top1_sd": 0.0091},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(content | {"table": table}), "utf-8")


class Page(HTMLParser):
    """Tags, ids, text and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs)["aria-label"] or "", [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self._rows[-1][-1] += data
