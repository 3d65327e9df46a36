"""Two sources of the user's own: one to choose with, one to judge with."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vitprune.errors import UserError
from vitprune.sources import Source


class ProbeAndTest:
    """The images of both, those of the probe first; classes are the union, by name.

    `probes` is how many images belong to the probe.
    """

    def __init__(self, probe: Source, test: Source) -> None:
        self.parts = (probe, test)
        if (probe.numbers is None) != (test.numbers is None):
            raise UserError(
                "data.probe and data.test: one labels by name and the other by number; use one way for both"
            )
        self.probes = len(probe.names)
        union = set(probe.classes) | set(test.classes)
        self.classes = sorted(union, key=int if probe.numbers is not None else str)
        self.numbers = None if probe.numbers is None else [int(name) for name in self.classes]
        position = {name: c for c, name in enumerate(self.classes)}
        of = [np.array([position[name] for name in part.classes], np.int64)[part.class_of] for part in self.parts]
        self.class_of = np.concatenate(of)
        self.names = [f"probe/{name}" for name in probe.names] + [f"test/{name}" for name in test.names]

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming one that cannot be decoded."""
        return self.parts[0].image(i) if i < self.probes else self.parts[1].image(i - self.probes)

    def fingerprint(self) -> str:
        """Digest of both."""
        return hashlib.sha256("\0".join(part.fingerprint() for part in self.parts).encode()).hexdigest()
