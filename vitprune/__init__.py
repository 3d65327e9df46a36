"""vitprune: class-specific structured pruning of Vision Transformers, with repair, ONNX and an honest report.

The short public API; everything is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitprune.core.version import __version__ as __version__

_VERBS = ("compress", "declare", "discover", "evaluate", "export", "path_scores", "prune", "run", "save")
__all__ = [
    "Recipe",
    "UserError",
    "compress",
    "declare",
    "discover",
    "evaluate",
    "export",
    "load",
    "path_scores",
    "prune",
]
__all__ += ["run", "save"]

if TYPE_CHECKING:
    from vitprune.api import compress, declare, discover, evaluate, export, path_scores, prune, run, save
    from vitprune.core.errors import UserError
    from vitprune.model.load.opening import load
    from vitprune.recipe.recipe import Recipe

_HOMES = {
    "load": "model.load.opening",
    "UserError": "core.errors",
    "Recipe": "recipe.recipe",
    **dict.fromkeys(_VERBS, "api"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitprune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vitprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
