"""What the exam leaves behind of single test images: every prediction, confusions that changed, the worst images.

Legend: N test images, C outputs. Probabilities are softmax over the whole head.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from vitprune.core import places
from vitprune.core.files import replacing
from vitprune.images.decode import as_mode
from vitprune.runs.state.run import Run

WORST = 20
CONFUSIONS = 20
OF_GROUP = ("per_class", "confusions", "worst", "predictions", "outputs")  # what rows.json has by class set
EDGE = 96  # longest side of a thumbnail, pixels


def predictions(index: np.ndarray, labels: np.ndarray, dense: np.ndarray, slim: np.ndarray) -> dict[str, np.ndarray]:
    """Columns [N]: position in the source, true output, and of both models the predicted output, its p and p(true class).

    `dense` and `slim` are logits [N, C] of the same images.
    """
    found = {"image": index.astype(np.int64), "label": labels.astype(np.int64)}
    for name, logits in (("dense", dense), ("slim", slim)):
        shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        true = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
        found |= {name: logits.argmax(1), f"{name}_true_probability": true.astype(np.float32)}
        found[f"{name}_confidence"] = (1 / shifted.sum(1)).astype(np.float32)
    return found


def write(run: Run, group: str | None, found: dict[str, np.ndarray]) -> list[Path]:
    """The columns, and a thumbnail of each of the worst images."""
    columns = run.folder.stage_folder("evaluate") / f"{group or 'all'}.safetensors"
    with replacing(columns) as temporary:
        temporary.write_bytes(save(found))
    files = [columns]
    for rank, row in enumerate(worst_of(found)):
        files.append(_thumbnail(run, group, rank, int(found["image"][row])))
    return files


def worst_of(found: dict[str, np.ndarray]) -> np.ndarray:
    """Rows of the images that only the dense model gets right, then of others; by the loss of the true class's
    probability, the greatest first; none that lost nothing."""
    loss = found["dense_true_probability"] - found["slim_true_probability"]
    flipped = (found["dense"] == found["label"]) & (found["slim"] != found["label"])
    order = np.lexsort((-loss, ~flipped))
    return order[loss[order] > 0][:WORST]


def outputs(run: Run, found: dict[str, np.ndarray]) -> dict[str, str]:
    """The names of the outputs that are a label or an answer of either model, by their number."""
    seen = np.unique(np.concatenate([found[name] for name in ("label", "dense", "slim")])).tolist()
    return {str(output): run.classes.name(output) for output in seen}


def worst(run: Run, files: list[Path], found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What report.json says of the worst images; `files` as `write` made them."""
    rows = []
    names = places.names(run.source.names)
    for row, path in zip(worst_of(found), files[1:], strict=True):
        made: dict[str, Any] = {"image": names[int(found["image"][row])]}
        made["class"] = run.classes.name(int(found["label"][row]))
        for name in ("dense", "slim"):
            made[f"{name}_class"] = run.classes.name(int(found[name][row]))
            for column in ("true_probability", "confidence"):
                made[f"{name}_{column}"] = round(float(found[f"{name}_{column}"][row]), 6)
        rows.append(made | {"thumbnail": path.relative_to(run.folder.root).as_posix()})
    return rows


def confusions(run: Run, found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The pairs (true class, other class) whose number of test images changed the most, the largest change first."""
    before, after = (_mistakes(found["label"], found[name]) for name in ("dense", "slim"))
    both = [(pair, before[pair], after[pair]) for pair in before | after]
    changed = sorted(
        (row for row in both if row[1] != row[2]), key=lambda row: (-abs(row[2] - row[1]), row[1] - row[2], row[0])
    )
    return [
        {"class": run.classes.name(true), "taken_for": run.classes.name(other), "dense": dense, "slim": slim}
        | {"change": slim - dense}
        for (true, other), dense, slim in changed[:CONFUSIONS]
    ]


def _mistakes(labels: np.ndarray, predicted: np.ndarray) -> Counter[tuple[int, int]]:
    wrong = predicted != labels
    return Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))


def _thumbnail(run: Run, group: str | None, rank: int, position: int) -> Path:
    """The image as it is stored, at most EDGE pixels wide and high: small ones as PNG, shrunk ones as JPEG."""
    image = as_mode(run.source.image(position), "L" if run.images.channels == 1 else "RGB")
    small = max(image.size) <= EDGE
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    path = run.folder.root / "report-data" / (group or "all") / f"worst-{rank:02d}.{'png' if small else 'jpg'}"
    with replacing(path) as temporary:
        image.save(temporary, "PNG" if small else "JPEG", quality=85)
    return path
