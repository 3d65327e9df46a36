"""A backbone's ONNX files held against the slim model's own features, on the whole test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitprune.core.reading import Json
from vitprune.deploy import runtime
from vitprune.deploy.onnx import exporting, feature_checks
from vitprune.exam import features
from vitprune.exam.logits import test_indices
from vitprune.runs.state.run import Run


def examined(run: Run, slim: nn.Module, path: Path, precision: str, provider: str, real: torch.Tensor) -> Json:
    """How far a file's features are from those of the reloaded checkpoint, and the checks of its precision."""
    made, tell = runtime.session(path, provider, exact=True), features.teller(slim)
    of_names = [one.name for one in made.get_outputs()]
    found: dict[str, list[np.ndarray]] = {}
    for x, _ in run.images.batches(test_indices(run.images, run.split), run.batching.batch):
        told, written = tell(x), runtime.outputs(made, x.numpy())
        for name, expected, given in zip(of_names, (told.pooled, told.tokens), written, strict=False):
            for key, value in feature_checks.compare(expected.numpy(), given).items():
                found.setdefault(f"{name}.{key}", []).append(value)
    every = {name: np.concatenate(parts) for name, parts in found.items()}
    agreement = feature_checks.summary(every)
    row: Json = {"agreement": agreement, "cosine": agreement["cosine"]}
    if precision in feature_checks.LIMITS:
        relative, floor = path.relative_to(run.folder.root).as_posix(), run.recipe.export.int8_floor_points
        batches = feature_checks.batches_differ(made, real.numpy(), exporting.PARITY_BATCHES)
        row["checks"] = feature_checks.checks(precision, relative, agreement, batches, floor)
    return row
