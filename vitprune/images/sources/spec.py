"""What images are opened from, in whatever object says it; a recipe's `data` section does."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class ImagesSpec(Protocol):
    """Where the images are; all None: the bundled ones."""

    @property
    def path(self) -> Path | None: ...
    @property
    def dataset(self) -> str | None: ...
    @property
    def dataset_split(self) -> str: ...
    @property
    def probe(self) -> Path | None: ...
    @property
    def test(self) -> Path | None: ...
