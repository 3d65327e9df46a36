"""How an int8 file came to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vitprune.core.reading import Json


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the int8 file came to be. Top-1 are fractions of the probe images that were looked at; of a backbone
    (`measure`) they are mean cosines to the fp32 file's features.

    `effects`: mean squared logit error with one product alone in int8, most harmful first; empty when all of them in
    int8 held the floor at once. `tried`: (products left in fp32, top-1).
    """

    floor_points: float
    top1_fp32: float
    top1: float
    images: int
    calibration_images: int
    quantized: int
    excluded: list[str]
    effects: dict[str, float]
    tried: list[tuple[int, float]]
    measure: str = "top-1"

    @property
    def why(self) -> str:
        """One sentence for a report."""
        drop = (self.top1_fp32 - self.tried[0][1]) * 100
        if not self.excluded:
            found = f"every product in int8 changes the probe {self.measure} by {-drop:+.2f} points"
            return f"{found}, within {self.floor_points:g}"
        of = "logit error" if self.measure == "top-1" else "error of features"
        return (
            f"with every product in int8 the probe {self.measure} fell by {drop:.2f} points, more than {self.floor_points:g}; "
            f"the {len(self.excluded)} with the largest {of} of their own stay in fp32"
        )

    def as_json(self) -> Json:
        found = {key: value for key, value in asdict(self).items() if key != "measure" or value != "top-1"}
        return found | {"why": self.why}
