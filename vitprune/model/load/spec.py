"""What a model is opened from, in whatever object says it; a recipe's `model` section does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

Args = dict[str, Any]  # keyword arguments of an architecture, as a recipe, a config.json or a call of timm gives them


class PreprocessSpec(Protocol):
    """How images are prepared; None where it is left to the weights."""

    @property
    def mean(self) -> list[float] | None: ...
    @property
    def std(self) -> list[float] | None: ...
    @property
    def interpolation(self) -> str | None: ...
    @property
    def crop_pct(self) -> float | None: ...

    def size(self, channels: int) -> tuple[int, ...] | None:
        """(channels, height, width), of a model of so many channels."""
        ...


class ModelSpec(Protocol):
    """A name or folder, its weights, the architecture's arguments, and how images are prepared."""

    @property
    def name(self) -> str: ...
    @property
    def pretrained(self) -> bool: ...
    @property
    def checkpoint(self) -> Path | None: ...
    @property
    def checkpoint_key(self) -> str | None: ...
    @property
    def args(self) -> Args: ...
    @property
    def preprocess(self) -> PreprocessSpec | None: ...
    @property
    def head(self) -> Literal["none"] | None: ...
    @property
    def features(self) -> Literal["pooled", "tokens"] | None: ...
