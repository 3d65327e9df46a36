"""vitprune: class-specific structured pruning of Vision Transformers, with repair, ONNX and an honest report.

The short public API; everything is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Recipe", "UserError", "declare", "discover", "evaluate", "export", "load", "path_scores", "prune", "run"]

if TYPE_CHECKING:
    from vitprune.api import declare, discover, evaluate, export, path_scores, prune, run
    from vitprune.core.errors import UserError
    from vitprune.model.load.opening import load
    from vitprune.recipe.recipe import Recipe

_HOMES = {
    "load": "checkpoint",
    "UserError": "errors",
    "Recipe": "recipe",
    **dict.fromkeys(("declare", "discover", "evaluate", "export", "path_scores", "prune", "run"), "library"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitprune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vitprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
