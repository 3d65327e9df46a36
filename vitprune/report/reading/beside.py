"""The files a record names, in the folder it lies in. A record may be anybody's: whatever cannot be read is not there."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from vitprune.core.reading import Json
from vitprune.report.reading.values import mapping

MAX_PICTURE = 100_000  # bytes of one thumbnail; the page carries them all
MAX_BYTES = 1 << 28
_PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


class Beside:
    """Reads files by the names a record gives them, relative to `folder` and nowhere outside it (None: no files)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = None if folder is None else folder.resolve()

    def read(self, name: Any, most: int = MAX_BYTES) -> bytes | None:
        """The bytes of a file of at most `most` bytes."""
        if self.folder is None or not isinstance(name, str) or "\0" in name:
            return None
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.folder) and path.is_file() and path.stat().st_size <= most
            return path.read_bytes() if inside else None
        except (OSError, ValueError, RuntimeError):
            return None

    def json(self, name: Any) -> Json:
        """A JSON object; empty where there is none. Non-finite numbers become None."""
        content = self.read(name)
        try:
            return mapping(json.loads(content or b"null", parse_constant=lambda _: None))
        except (ValueError, RecursionError):
            return {}

    def arrays(self, name: Any) -> dict[str, np.ndarray]:
        """The arrays of a safetensors file; empty where there is none."""
        content = self.read(name)
        try:
            return load(content) if content else {}
        except (SafetensorError, KeyError, ValueError, TypeError):
            return {}

    def picture(self, name: Any) -> str:
        """A PNG or JPEG file as a `data:` address, empty where there is none."""
        content = self.read(name, MAX_PICTURE) or b""
        kind = next((kind for start, kind in _PICTURES.items() if content.startswith(start)), "")
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if kind else ""
