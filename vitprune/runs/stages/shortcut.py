"""The fp32 ONNX file with its last block for the class token alone, where that is asked for, possible and proven."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vitprune.core.reading import Json
from vitprune.deploy.onnx import exporting
from vitprune.model import size
from vitprune.model.inside import first_token
from vitprune.recipe.exports import Export, priced_by_file
from vitprune.recipe.parts import Whole
from vitprune.runs.state.run import Run

PROVEN = 1e-4  # of a logit, what every exported file is held to
KEY = "shortcut"  # in the file's metadata


def write(run: Run, model: nn.Module, path: Path, about: Json, images: Tensor) -> None:
    """Nothing; writes the file with what tells `about` it. Where its logits on `images` are not the model's at every batch
    size, it is written again without the shortcut."""
    if run.recipe.export.shortcut and first_token.why_not(model) is None:
        told = about | size.size(model, shortcut=True) | {KEY: "last block for the class token alone"}
        exporting.export(first_token.of(model), path, told)
        gap = max(exporting.parity(model, path, images).values())
        if gap <= PROVEN:
            return
        run.reporter.say(f"export: {path.name}: logits differ by {gap:.2g} with the shortcut; written without it")
    exporting.export(model, path, about | size.size(model))


def macs_of(exported: Json | None) -> int | None:
    """Multiply-adds of an image in the fp32 file of a class set, from the record of its export; None without one."""
    files = exported["files"] if exported else []
    return next((row.get("macs") for row in files if row["precision"] == "fp32"), None)


def note(whole: Whole | None, export: Export, model: Json) -> list[str]:
    """What a budget in multiply-adds is a budget of, where file and checkpoint have different numbers of them."""
    found, dense = model.get("macs_exported"), model["macs_dense"]
    if whole is None or found in (None, model["macs_slim"]) or not priced_by_file(whole, export):
        return []
    return [
        f"Budget: {whole.words()} is that of the ONNX files, whose last block is there for the class token alone: "
        f"{100 * found / dense:.1f} %; the checkpoint's is {100 * model['macs_slim'] / dense:.1f} %."
    ]
