"""What a class specialist is worth, told honestly: beside the dense model with the same classes closed on its head.

Per group, on the test split: the dense model, the model pruned once for the classes of all groups (`generic`), and the
group's own (`specialist`), with the whole head and with the other outputs closed (`masked`, which costs nothing and is
most of what a specialist gains); top-1 on the group's classes and on every class; and whether images of other classes are
told apart by the largest softmax or by the energy (log-sum-exp) of the group's own logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from vitprune.exam.logits import predictor, test_logits
from vitprune.exam.open_set import open_set
from vitprune.model import classifier
from vitprune.runs import contenders
from vitprune.runs.contenders import Contender
from vitprune.runs.stages.prune import main_mask
from vitprune.runs.state.run import Run


def table(run: Run) -> list[dict[str, Any]]:
    """Five rows per group, six where the specialist kept its whole head; none where a group has every class."""
    rows: list[dict[str, Any]] = []
    sets = {g: t for g, t in run.classes.sets().items() if g is not None and len(t) < run.loaded.outputs}
    if not sets:
        return rows
    own = contenders.own(run, run.recovery)
    generic = contenders.make(run, own, main_mask(run, None, run.classes.every()))
    logits = {
        name: _every_logit(run, made.model)
        for name, made in (("dense", contenders.make(run, Contender.dense(own.seed))), ("generic", generic))
    }
    labels = run.images.labels[run.split.test]
    for group, targets in run.reporter.track(sets.items(), "specialists", len(sets)):
        special = contenders.exported(run, group).model
        for name, found in {**logits, "specialist": _every_logit(run, special)}.items():
            found = classifier.widen(found, targets, run.loaded.outputs)
            narrowed = name == "specialist" and not run.classes.keeps_head(targets)
            for head in ("masked",) if narrowed else ("all", "masked"):
                about = {
                    "group": group,
                    "classes": [run.classes.name(i) for i in targets],
                    "model": name,
                    "head": head,
                }
                rows.append(about | figures(found, labels, targets, masked=head == "masked"))
    return rows


def _every_logit(run: Run, model: nn.Module) -> np.ndarray:
    return test_logits(predictor(model), run.images, run.split, run.batching.batch)[0]


def figures(logits_NC: np.ndarray, labels_N: np.ndarray, targets: list[int], *, masked: bool) -> dict[str, Any]:
    """Top-1 on the target classes and on all of them, and the open-set figures; fractions."""
    inside = np.isin(labels_N, targets)
    own = logits_NC[:, targets].astype(np.float64)
    if masked:
        predicted = np.array(targets)[own.argmax(1)]
        highest = own.max(1)
        certain = np.exp(highest - _logsumexp(own))
    else:
        predicted = logits_NC.argmax(1)
        certain = np.exp(own.max(1) - _logsumexp(logits_NC.astype(np.float64)))
    hit = predicted == labels_N
    made: dict[str, Any] = {"top1": float(hit[inside].mean()), "top1_all_classes": float(hit.mean())}
    made |= {"n": int(inside.sum()), "n_other": int((~inside).sum())}
    for name, score in (("max_softmax", certain), ("energy", _logsumexp(own))):
        auroc, fpr = open_set(score[inside], score[~inside])
        made |= {f"auroc_{name}": auroc, f"fpr95_{name}": fpr}
    return made


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
