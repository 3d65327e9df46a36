"""Small pictures of probe images: strips of a unit's exemplars for the report, sheets of all of them for the atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.core.files import replacing
from vitprune.images.decode import as_mode
from vitprune.runs.seeing.looking import Looking

EDGE = 64  # longest side of a small picture, pixels
GAP = 6  # between the strongest images of a strip and the one drawn at random
ACROSS = 16  # pictures of a sheet, each way
PNG_UP_TO = 32  # pixels: smaller pictures are kept as they are
STRONGEST = 5  # images of a strip, and one at random


@dataclass
class Pictures:
    """The small pictures of a run's images by their position in the source, decoded once."""

    looking: Looking
    _made: dict[int, Image.Image] = field(default_factory=dict)

    def small(self, position: int) -> Image.Image:
        """The image as it is stored, at most `EDGE` pixels wide and high."""
        if position not in self._made:
            run = self.looking.run
            image = as_mode(run.source.image(position), "L" if run.images.channels == 1 else "RGB")
            image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
            self._made[position] = image
        return self._made[position]

    def exemplars(self, lists: Mapping[str, np.ndarray], i: int, j: int, name: str) -> str | None:
        """A strip of the strongest images of unit j of block i and of one that was drawn; None where it has none."""
        top = [int(at) for at in lists[f"top.images.{i}"][j][:STRONGEST] if at >= 0]
        beside = [int(at) for at in lists[f"random.images.{i}"][j][:1] if at >= 0]
        return self.strip(name, top, beside) if top else None

    def strip(self, name: str, top: Sequence[int], drawn: Sequence[int]) -> str:
        """Write the images side by side, the drawn ones after a gap; the file's name from the run's folder."""
        images = [self.small(position) for position in (*top, *drawn)]
        cell = max(max(image.size) for image in images)
        width = cell * len(images) + (GAP if drawn and top else 0)
        strip = Image.new(images[0].mode, (width, cell))
        for place, image in enumerate(images):
            left = place * cell + (GAP if top and place >= len(top) else 0)
            strip.paste(image, (left + (cell - image.width) // 2, (cell - image.height) // 2))
        return self._save(strip, f"units/{name}", cell)

    def sheets(self, positions: Sequence[int], start: str = "") -> list[tuple[str, int]]:
        """Write the pictures in their order on sheets of `ACROSS` by `ACROSS`; the files' names from the atlas, and how many
        pixels wide and high a picture's place is on each."""
        made: list[tuple[str, int]] = []
        for at in range(0, len(positions), ACROSS * ACROSS):
            part = [self.small(position) for position in positions[at : at + ACROSS * ACROSS]]
            cell = max(max(image.size) for image in part)
            sheet = Image.new(part[0].mode, (ACROSS * cell, -(-len(part) // ACROSS) * cell))
            for place, image in enumerate(part):
                row, column = divmod(place, ACROSS)
                sheet.paste(image, (column * cell, row * cell))
            name = self._save(sheet, f"thumbnails/{start}{len(made):04d}", cell)
            made.append((Path(name).relative_to(self.looking.folder.name).as_posix(), cell))
            for position in positions[at : at + ACROSS * ACROSS]:
                self._made.pop(position, None)
        return made

    def _save(self, image: Image.Image, name: str, cell: int) -> str:
        small = cell <= PNG_UP_TO
        path = self.looking.folder / f"{name}.{'png' if small else 'jpg'}"
        with replacing(path) as temporary:
            image.save(temporary, "PNG" if small else "JPEG", quality=80)
        self.looking.files.append(path)
        return path.relative_to(self.looking.run.folder.root).as_posix()
