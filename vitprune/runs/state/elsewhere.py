"""What a worker has to see of a run on its machine, and what it need not open again for another run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Protocol

import torch

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.recipe import paths
from vitprune.recipe.inputs import Model
from vitprune.recipe.recipe import Recipe
from vitprune.runs.state.workspace import Workspace

OF_MODEL = ("loaded", "sites", "model_digest", "dense_macs")
OF_DATA = ("source", "within_limit", "data_digest")


def require(recipe: Recipe, root: Path) -> None:
    """Raises UserError where the run's folder, or what the recipe reads, is not on this machine."""
    node = socket.gethostname()
    if ledger.of(root / "any") is None:
        raise UserError(
            f"{root}: the run's folder is not there on the machine {node}; every machine of the cluster has to see it "
            "under the same path: choose an --out on a shared disk"
        )
    try:
        paths.require(recipe.model_copy(update={"model": Model()}))  # the model came along
    except UserError as error:
        raise UserError(f"on the machine {node}: {error}") from error


class Opened(Protocol):
    """A run, with what was opened of it among its attributes."""

    recipe: Recipe
    device: torch.device
    folder: Workspace
    slim: Path | None


def adopt(made: Opened, former: Opened) -> None:
    """Nothing; what a new run has in common with a former one of this process is not opened again: the model where it is the
    same, the source where its section of the recipe is, and decoded images where the new run's folder lies in the former's."""
    mine, theirs = made.recipe, former.recipe
    if (mine.model, made.device) != (theirs.model, former.device):
        return
    names: tuple[str, ...] = OF_MODEL if made.slim == former.slim else ()
    if mine.data == theirs.data:
        names += OF_DATA
        images = former.__dict__.get("images")
        if images is not None and images.folder is not None and made.folder.images.is_relative_to(images.folder):
            names += ("images", "processes")
    made.__dict__.update({name: former.__dict__[name] for name in names if name in former.__dict__})
    if "processes" in names:
        former.__dict__.pop("processes", None)  # they work on
