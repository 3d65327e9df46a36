"""Features of image files from a backbone's ONNX file, written as a table: numpy, Pillow and onnxruntime, never torch.

Legend: N images, D width of a feature.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.core.files import replacing
from vitprune.deploy import runtime
from vitprune.deploy.predict import FEATURES, opened, pixels

KINDS = (".npz", ".csv")


def write(model: Path, images: Sequence[Path], out: Path, batch: int) -> tuple[int, int]:
    """N and D, after writing what the file's `features` are for every image to `out`: an .npz with `paths` [N] and `features`
    [N, D] float32, or a .csv with a row of the path and D numbers each. Raises UserError for a classifier's file, another
    ending, or a file that is already there."""
    if out.suffix.lower() not in KINDS:
        raise UserError(f"--out {out}: features are written as {' or '.join(KINDS)}")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: is there already, and is not replaced; give another name")
    ledger.guard(out)
    path, session, preprocessing = opened(model)
    if session.get_outputs()[0].name != FEATURES:
        raise UserError(f"{path}: is a classifier's, which gives no features; leave --out away")

    def told() -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch):
            yield runtime.predict(session, pixels(preprocessing, images[start : start + batch]))

    names = [str(image).encode(errors="backslashreplace").decode() for image in images]
    if out.suffix.lower() == ".npz":
        features = np.concatenate(list(told()))
        with replacing(out) as temporary, temporary.open("wb") as handle:
            np.savez(handle, paths=np.array(names), features=features)
        return features.shape
    count, width = 0, 0
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text)
        for part in told():
            if not count:
                width = part.shape[1]
                rows.writerow(["path", *range(width)])
            rows.writerows([names[count + i], *map(repr, map(float, row))] for i, row in enumerate(part))
            count += len(part)
    return count, width
