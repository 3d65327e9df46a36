"""Torch model → one ONNX file with a dynamic batch, checked, with preprocessing and labels inside.

The only file that imports onnx.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitprune import models, runtime
from vitprune.files import replacing

OPSET = 20
PARITY_BATCHES = (1, 2, 7)


def export(model: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """Write `model` to `path`; `metadata` values go to metadata_props as text or JSON."""
    example = torch.zeros(2, *models.input_shape(model), device=models.device_of(model))
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    with replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
        proto = onnx.load(str(temporary))
        for key, value in metadata.items():
            entry = proto.metadata_props.add()
            entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
        onnx.save(proto, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)


def metadata(path: Path) -> dict[str, str]:
    """metadata_props of a file."""
    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


def parity(model: nn.Module, path: Path, images: Tensor) -> dict[int, float]:
    """Largest |logit difference| between torch and onnxruntime at batch 1, 2 and 7 of real images [≥7, C, H, W]."""
    made = runtime.session(path)
    differences = {}
    for batch in PARITY_BATCHES:
        part = images[:batch]
        with torch.inference_mode():
            expected = model(part.to(models.device_of(model))).float().cpu().numpy()
        differences[batch] = float(np.abs(runtime.predict(made, part.numpy()) - expected).max())
    return differences


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own chatter is not for our users; its errors still are."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")}
    with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
