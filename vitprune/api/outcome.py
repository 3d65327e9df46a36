"""What comes of a model: its exam, its ONNX file, and a whole run by a recipe.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.exam import metrics
from vitprune.exam.logits import predictor
from vitprune.exam.metrics import Metrics
from vitprune.model import classifier, door
from vitprune.recipe import parse, recipe
from vitprune.runs import pipeline


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, head: Sequence[int] | None = None, batch: int = 64
) -> Metrics:
    """Top-1 with its 95 % interval, mean probability of the true class, top-1 per class; `head` masks the rest."""
    model = door.bare("evaluate", model, None)
    door.check_batch("evaluate", batch)
    with door.Inside(model):
        outputs = classifier.outputs(model)
        images = door.images_of("evaluate", model, images)
        labels = door.labels_of("evaluate", images, labels, outputs)
        if head is not None and (not len(head) or not 0 <= min(head) <= max(head) < outputs):
            raise UserError(f"evaluate: head must name at least one of the outputs 0 to {outputs - 1}")
        predict = predictor(model)
        logits = np.concatenate([predict(part).numpy() for part in images.split(batch)])
    if not np.isfinite(logits).all():
        raise UserError("evaluate: the model gave logits that are not finite; check its weights")
    return metrics.metrics(logits, labels.cpu().numpy(), head)


def export(model: nn.Module, path: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write `model` as one checked ONNX file with a dynamic batch."""
    from vitprune.deploy.onnx import exporting

    model = door.bare("export", model, (torch.float32,))
    with door.Inside(model):
        exporting.export(model, Path(path), metadata or {})
    return Path(path)


def run(source: str | Path | Json | recipe.Recipe, **options: Any) -> Json:
    """Run a recipe (a path, a bundled name, its content as a dict, or a Recipe) as `vitprune run` does; returns report.json's
    content. Raises UserError for what is wrong in it, one line."""
    if isinstance(source, dict):
        source = parse.parse(json.dumps(source, default=str))  # JSON is YAML
    made = source if isinstance(source, recipe.Recipe) else parse.load(source)
    return pipeline.run(made, **options)
