"""The fp32 ONNX file with its last block for the class token alone, where that is asked for, possible and proven."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vitprune.core.reading import Json
from vitprune.deploy.onnx import exporting
from vitprune.model import size
from vitprune.model.inside import first_token
from vitprune.recipe.exports import Export, of_file
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state.run import Run

PROVEN = 1e-4  # of a logit, what every exported file is held to
KEY = "shortcut"  # in the file's metadata


def used(export: Export, model: nn.Module) -> bool:
    """Whether the ONNX files of a model are to have the shortcut."""
    return export.onnx and export.shortcut and first_token.why_not(model) is None


def of(export: Export, model: nn.Module) -> tuple[nn.Module, Json]:
    """The model as it is exported, and what its file tells of that."""
    if not used(export, model):
        return model, size.size(model)
    return first_token.of(model), size.size(model, shortcut=True) | {KEY: "last block for the class token alone"}


def write(run: Run, model: nn.Module, path: Path, about: Json, images: Tensor) -> None:
    """Nothing; writes the file with what tells `about` it. Where its logits on `images` are not the model's at every batch
    size, it is written again without the shortcut."""
    short, told = of(run.recipe.export, model)
    exporting.export(short, path, about | told)
    if short is not model and (gap := max(exporting.parity(model, path, images).values())) > PROVEN:
        run.reporter.say(f"export: {path.name}: logits differ by {gap:.2g} with the shortcut; written without it")
        exporting.export(model, path, about | size.size(model))


def macs_of(exported: Json | None) -> int | None:
    """Multiply-adds of an image in the fp32 file of a class set, from the record of its export; None without one."""
    files = exported["files"] if exported else []
    return next((row.get("macs") for row in files if row["precision"] == "fp32"), None)


def check(recipe: Recipe, exported: Json, dense: int, label: str) -> list[Json]:
    """Whether the fp32 file is within a budget in multiply-adds of the `dense` model's."""
    whole, macs = recipe.whole, macs_of(exported)
    if whole is None or whole.of != "macs" or len(whole.each) > 1 or not of_file(whole, recipe.export) or macs is None:
        return []
    share, detail = macs / dense, "multiply-adds of the fp32 file, of the dense model's without the shortcut"
    found = {"name": f"budget of the ONNX file{label}", "passed": share <= whole.amount, "value": share}
    return [found | {"limit": whole.amount, "detail": detail}]


def note(recipe: Recipe, model: Json) -> list[str]:
    """What a budget in multiply-adds is a budget of, where file and checkpoint have different numbers of them."""
    found, dense, whole = model.get("macs_exported"), model["macs_dense"], recipe.whole
    if whole is None or whole.of != "macs" or found in (None, model["macs_slim"]) or not of_file(whole, recipe.export):
        return []
    return [
        f"Budget: {whole.words()} is that of the ONNX files, whose last block is there for the class token alone: "
        f"{100 * found / dense:.1f} %; the checkpoint's is {100 * model['macs_slim'] / dense:.1f} %."
    ]
