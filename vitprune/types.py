"""The records that pass between the stages; this file imports nothing of ours.

Legend: N images, C classes, L blocks, n hidden units of a block, t units kept per image and block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # recipes are read, and checked, without either
    pass
