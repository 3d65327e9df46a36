"""The saved checkpoints as PyTorch models, for `bench --torch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.errors import UserError, one_line
from vitprune.deploy.bench import Facts


def torch_runners(folder: Path, threads: int | None = None) -> dict[str, tuple[Callable[[np.ndarray], object], Facts]]:
    """Dense and slim torch models of a run, eager and compiled, on the processor."""
    import torch

    from vitprune.model import size as onnx_export
    from vitprune.model.load import opening
    from vitprune.recipe import parse
    from vitprune.runs.state import told

    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: has no recipe.yaml; --torch needs the folder of a run")
    if threads:
        torch.set_num_threads(threads)
    dense = opening.open_model(told.found(parse.load(folder / "recipe.yaml").model, folder)).model
    found: dict[str, tuple[Callable[[np.ndarray], object], Facts]] = {}
    for name, model in (("dense", dense), ("slim", opening.load(folder))):
        size = onnx_export.size(model)
        facts = {"macs": size["macs"]["total"], "ffn_macs": size["macs"]["ffn"], "widths": size["widths"]}
        for how, made in (("eager", model), ("compiled", torch.compile(model, dynamic=False))):

            def run(images: np.ndarray, made: Any = made, how: str = how) -> object:
                try:
                    with torch.inference_mode():
                        return made(torch.from_numpy(images))
                except Exception as error:
                    if how == "eager":
                        raise
                    raise UserError(f"torch.compile failed ({one_line(error)}); it needs a C++ compiler") from error

            found[f"torch {how} {name}"] = run, facts | {"precision": "fp32"}
    return found
