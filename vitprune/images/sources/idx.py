"""Reading IDX files (the format of MNIST and Fashion-MNIST)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes as an array, [N] or [N, H, W]. Raises ValueError for anything else."""
    with gzip.open(path, "rb") as f:
        _, kind, ndim = struct.unpack(">HBB", f.read(4))
        if kind != 8:
            raise ValueError(f"{path}: not an IDX file of unsigned bytes")
        shape = struct.unpack(">" + "I" * ndim, f.read(4 * ndim))
        return np.frombuffer(f.read(), dtype=np.uint8).reshape(shape)
