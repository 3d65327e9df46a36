"""Image sources that misbehave, for decoding processes; without torch, so that those start quickly."""

from __future__ import annotations

import os

from PIL import Image

from vitprune.images.sources.folder import Folder


class Deadly(Folder):
    """One of its images ends the process that reads it."""

    def image(self, i: int) -> Image.Image:
        if self.names[i] == "cross/01.png":
            os._exit(9)
        return super().image(i)


class Printing(Folder):
    """Its reader prints, as libraries do, and fails once in a way nobody foresaw."""

    def image(self, i: int) -> Image.Image:
        print("a library's chatter", flush=True)
        if i == 3:
            raise ZeroDivisionError("unforeseen")
        return super().image(i)
