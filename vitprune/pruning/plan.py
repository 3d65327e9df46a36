"""What every site keeps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """By site name bool [n], True keeps; in the order of the sites. `classes` are the outputs it serves."""

    keep: dict[str, Tensor]
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, keep in self.keep.items():
            if not bool(keep.any()):
                raise ValueError(f"{name}: the plan keeps no unit")

    @property
    def masks(self) -> list[Tensor]:
        """What is kept, site by site, without the names."""
        return list(self.keep.values())

    @property
    def widths(self) -> dict[str, int]:
        """Kept units by site name."""
        return {name: int(keep.sum()) for name, keep in self.keep.items()}

    @property
    def kept(self) -> float:
        """Share of all units that is kept."""
        return sum(self.widths.values()) / sum(keep.numel() for keep in self.keep.values())
