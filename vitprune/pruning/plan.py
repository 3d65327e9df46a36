"""What every site keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vitprune.pruning.slim_attention import Cut


@dataclass(frozen=True, slots=True)
class Plan:
    """By site name bool [n], True keeps; in the order of the sites. `classes` are the outputs it serves. `attention`: what
    attentions keep, by their names; one that is not there stays whole."""

    keep: dict[str, Tensor]
    classes: tuple[int, ...] = ()
    attention: dict[str, Cut] = field(default_factory=dict)

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
    def whole(self) -> bool:
        """Whether nothing is removed."""
        return all(bool(keep.all()) for keep in self.keep.values()) and all(c.whole for c in self.attention.values())

    @property
    def kept(self) -> float:
        """Share of all units that is kept."""
        return sum(self.widths.values()) / sum(keep.numel() for keep in self.keep.values())
