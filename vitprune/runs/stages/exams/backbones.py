"""The exam of a backbone: how near every contender's features are to the dense model's on the test split, no label needed.

With class folders also the vote of the nearest probe images and a linear probe trained on them, dense beside slim. Every
contender sees the same images, so all is paired with the exported model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprune.core.files import write_json
from vitprune.core.least_squares import Sums
from vitprune.core.reading import Json
from vitprune.criteria.catalog import allocation_of
from vitprune.exam import features, metrics, probes
from vitprune.runs import contenders
from vitprune.runs.contenders import Contender, Made
from vitprune.runs.engine.base import Columns, Job
from vitprune.runs.engine.parts import packed, unpacked
from vitprune.runs.stages.exams import features as dense_features
from vitprune.runs.stages.exams import predicted
from vitprune.runs.stages.moments import refit_index
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

Make = Callable[[Run, Contender], Made]
FIGURES = (
    "cosine", "centred_cosine", "fvu", "tokens_cosine", "tokens_centred_cosine", "tokens_fvu", "neighbours", "knn_top1",
    "probe_top1", "cosine_loss", "output_fvu",
)  # fmt: skip
LIKE = {
    "cosine": "pooled.cosine",
    "tokens_cosine": "tokens.cosine",
}  # figures that are paired, and their images' values
HITS = {"knn": "hits.knn", "probe": "hits.probe"}


def evaluate(run: Run, every: list[Contender], make: Make, about: Any) -> list[Path]:
    """The file with a row for every contender, each beside the exported model's on the same images."""
    order = sorted(every, key=lambda one: one.repair == "none")  # repairs first: none is waited for alone
    job = Job("evaluate", [asdict(one) for one in order], functools.partial(_examined, run, make), about)
    parts = run.executor.run(job, run.folder.stage_folder("evaluate") / PARTS / "features")
    found = dict(zip(order, run.reporter.track(parts, "evaluate", len(order)), strict=True))
    own = contenders.own(run, run.recovery)
    rows = []
    for one in every:
        paired = None if one == own else _paired(found[one], found[own])
        rows.append(unpacked(found[one]) | {"exported": one == own, "paired": paired})
    path = run.folder.stage_folder("evaluate") / "rows.json"
    write_json(path, {"rows": rows, "predicted": _predicted(run, own, make)})
    run.folder.clear(run.folder.stage_folder("evaluate") / PARTS, set())
    return [path]


def _predicted(run: Run, own: Contender, make: Make) -> Json:
    """What the costs said of the exported model's features."""
    plan = make(run, own).plan
    assert plan is not None
    told = predicted.told(run, plan, None)
    return {name: told[name] for name in ("cosine_loss", "fvu")}


def _examined(run: Run, make: Make, item: Json) -> Columns:
    """One contender's row, and its values image by image."""
    contender = Contender(**item)
    made = make(run, contender)
    seen = _seen(run, made.model)
    columns: Columns = {name: seen[name].numpy() for name in LIKE.values()}
    figures = _figures(run, seen) | {"knn_top1": None, "probe_top1": None}
    if len(run.source.classes) > 1:
        for name, hits in _used(run, made.model, seen["slim"]).items():
            columns[HITS[name]] = hits
            figures[f"{name}_top1"] = float(hits.mean())
    return columns | packed(_about(run, contender, made, len(seen["slim"])) | {name: figures[name] for name in FIGURES})


@torch.inference_mode()
def _seen(run: Run, model: nn.Module) -> Sums:
    """The dense model's and this one's pooled features of the test images [N, D], and `features.compared` of them."""
    assert run.backbone is not None
    tells = features.teller(run.loaded.model), features.teller(model)
    spread, parts = dense_features.spread(run), list[Sums]()
    for x, _ in run.images.batches(run.split.test, run.batching.batch):
        dense, slim = (tell(x) for tell in tells)
        both = {"dense": dense.pooled.clone(), "slim": slim.pooled.clone()}
        patches = torch.full((len(x),), dense.tokens.shape[1] - run.backbone.prefix)
        parts.append(features.compared(run.backbone, dense, slim, spread) | both | {"patches": patches})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _figures(run: Run, seen: Sums) -> Json:
    patches = int(seen["patches"][0])
    return {
        "cosine": float(seen["pooled.cosine"].mean()),
        "centred_cosine": float(seen["pooled.centred"].mean()),
        "fvu": contenders.number(features.fvu(seen["pooled.error"], seen["pooled.square"], seen["pooled.sum"], 1)),
        "tokens_cosine": float(seen["tokens.cosine"].mean()),
        "tokens_centred_cosine": float(seen["tokens.centred"].mean()),
        "tokens_fvu": contenders.number(
            features.fvu(seen["tokens.error"], seen["tokens.square"], seen["tokens.sum"], patches)
        ),
        "neighbours": contenders.number(features.overlap(seen["dense"], seen["slim"])),
        "cosine_loss": float(seen["output.lost"].mean()),
        "output_fvu": dense_features.spread(run).unexplained(float(seen["output.error"].mean())),
    }


def _used(run: Run, model: nn.Module, queries_ND: torch.Tensor) -> dict[str, np.ndarray]:
    """Which test images a vote of the nearest probe images and a linear probe get right, from this model's features alone."""
    bank, tell = np.sort(refit_index(run, run.classes.every())), features.teller(model)
    told = torch.cat([tell(x).pooled.clone() for x, _ in run.images.batches(bank, run.batching.batch)])
    labels, classes = torch.from_numpy(run.images.labels[bank]), len(run.source.classes)
    found = {
        "knn": probes.vote(told, labels, queries_ND, classes),
        "probe": probes.probe(told, labels, queries_ND, classes),
    }
    truth = run.images.labels[run.split.test]
    return {name: np.asarray(given.numpy() == truth) for name, given in found.items()}


def _about(run: Run, contender: Contender, made: Made, images: int) -> Json:
    """Which model a row is of, and what it costs."""
    params, macs, of_budget = made.costs(run)
    kinds = ["ffn"] if contender.budget is None else run.recipe.prune or ["ffn", "attention"]
    whole = contender.keep is None
    return {
        "criterion": contender.criterion,
        "keep": contender.keep,
        "kept": made.kept,
        "allocation": contenders.WHOLE if whole else allocation_of(contender.criterion, run.recipe.allocation),
        "recovery": contender.repair,
        "protocol": "honest",
        "group": None,
        "classes": [run.classes.name(i) for i in run.classes.every()],
        "head": None,
        "seed": contender.seed,
        "sites": [] if contender.is_dense else [kind for kind in kinds if kind != "depth"],
        "budget": None if contender.budget is None else dict([contender.budget]),
        "params": params,
        "macs": macs,
        "macs_ratio": of_budget / run.dense_macs,
        "macs_ratio_checkpoint": macs / run.dense_macs,
        "n": images,
    }


def _paired(mine: Columns, own: Columns) -> Json:
    """What the exported model has more than another, image by image, with 95 % intervals; and McNemar's p of both uses."""
    made: Json = {}
    for name, column in LIKE.items():
        mean, interval = features.difference(own[column], mine[column])
        made |= {name: mean, f"{name}_ci95": None if interval is None else list(interval)}
    for name, column in HITS.items():
        made[f"{name}_p"] = metrics.mcnemar(own[column], mine[column]) if column in own else None
    return made
