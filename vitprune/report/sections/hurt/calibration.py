"""Whether the probabilities may be believed: expected calibration error and reliability of both models."""

from __future__ import annotations

from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Columns, Heading, Row, Text, figure, missing, table
from vitprune.report.plots import matrices
from vitprune.report.reading.predictions import BINS, Predictions, reliability

CAPTION = "Share right against the probability of the answer; on the diagonal a model is as often right as it is sure"


def calibration_blocks(key: str, predictions: Predictions | None) -> list[Block]:
    """The picture and a line per model."""
    heading = Heading("Can its probabilities be believed?")
    if predictions is None or not predictions.confidence:
        return [heading, missing("the probabilities of both models' answers, so calibration is not known")]
    found = {name: reliability(sure, predictions.right(name)) for name, sure in predictions.confidence.items()}
    means = {name: float(sure.mean()) for name, sure in predictions.confidence.items()}
    rows = [
        Row(
            (
                Cell(name),
                Cell(f"{made.ece:.3f}", made.ece),
                Cell(f"{made.chance:.3f}", made.chance),
                Cell(numbers.share(means[name]), means[name]),
                Cell(numbers.share(right := float(predictions.right(name).mean())), right),
            )
        )
        for name, made in found.items()
    ]
    columns = ("Model", ">ECE", ">By chance", ">Mean confidence", ">Right")
    slim = found["slim"]
    text = (
        f"Expected calibration error of the slim model: {slim.ece:.3f} in {BINS} bins; a perfectly calibrated model would "
        f"show about {slim.chance:.3f} on so many images."
    )
    drawn = figure(matrices.reliability(key, found, CAPTION), CAPTION)
    return [heading, Text(text), Columns(drawn, (table("Calibration on the test split", columns, rows),))]
