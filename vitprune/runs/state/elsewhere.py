"""What a worker on another machine has to see of a run: its folder, and the images."""

from __future__ import annotations

import socket
from pathlib import Path

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.recipe import paths
from vitprune.recipe.inputs import Model
from vitprune.recipe.recipe import Recipe


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
