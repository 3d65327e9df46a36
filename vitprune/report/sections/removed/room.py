"""Room for the section's pictures: a page that carries them all in itself stays small."""

from __future__ import annotations

from typing import Any

from vitprune.report.reading.beside import Beside

MOST = 2_400_000  # bytes of all pictures of the section, as they stand in the page


class Room(Beside):
    """The same files, until the page is full; `left_out` pictures are in the folder alone."""

    def __init__(self, beside: Beside) -> None:
        super().__init__(beside.folder)
        self.used, self.left_out = 0, 0

    def picture(self, name: Any) -> str:
        """A picture as a `data:` address, empty where there is none or no room for it."""
        found = super().picture(name)
        if self.used + len(found) > MOST:
            self.left_out += 1
            return ""
        self.used += len(found)
        return found
