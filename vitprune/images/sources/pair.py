"""Two sources of the user's own: one to choose with, one to judge with."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.names import in_order, merged, numbers_of
from vitprune.images.sources.base import Source
from vitprune.images.sources.contents import Contents


class ProbeAndTest:
    """The images of both, those of the probe first; classes are the union, by name
    (equal but for their spelling, as the probe writes them).

    `probes` is how many images belong to the probe.
    """

    def __init__(self, probe: Source, test: Source) -> None:
        self.parts = (probe, test)
        own = merged(probe.classes, test.classes)  # the test's names as the probe writes them
        if (probe.numbers is None) != (test.numbers is None) and not set(own.values()) & set(probe.classes):
            raise UserError(
                "data.probe and data.test: one labels by name and the other by number; use one way for both"
            )
        self.probes = len(probe.names)
        self.classes = in_order([*probe.classes, *own.values()])
        self.numbers = numbers_of(self.classes)
        self.left_out = probe.left_out + test.left_out
        position = {name: c for c, name in enumerate(self.classes)}
        places = (
            np.array([position[name] for name in probe.classes], np.int64),
            np.array([position[own[name]] for name in test.classes], np.int64),
        )
        of = [place[part.class_of] for place, part in zip(places, self.parts, strict=True)]
        self.class_of = np.concatenate(of)
        self.names = [f"probe/{name}" for name in probe.names] + [f"test/{name}" for name in test.names]

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming one that cannot be decoded."""
        return self.parts[0].image(i) if i < self.probes else self.parts[1].image(i - self.probes)

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of both."""
        return hashlib.sha256("\0".join(part.fingerprint(contents) for part in self.parts).encode()).hexdigest()
