"""What the models of a folder answer to one image, how long they take, and where they look."""

from __future__ import annotations

import base64
import statistics
import threading
import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.deploy import predict, runtime
from vitprune.images import decode

FILES = {
    "dense": "stages/export/dense.onnx",
    "slim": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
ROUNDS = 5  # passes that are timed, in turn
TOP = 5
GRID = 7  # parts of a side that are covered one after the other
BATCH = 8
LOOKED_AT = ("dense", "slim")  # whose heat maps are made


@dataclass(frozen=True, slots=True)
class Answering:
    """The classifiers of a folder by name, the dense one first where it is there."""

    models: dict[str, predict.Classifier]
    one_by_one: threading.Lock = field(default_factory=threading.Lock)  # times are of one image alone

    @classmethod
    def of(cls, folder: Path) -> Answering:
        """Those of a run, or of a group's folder in it. Raises UserError where there is no ONNX file."""
        root = folder if (folder / FILES["dense"]).is_file() else folder.parent
        slim = predict.open_model(folder)
        found = {name: folder / file for name, file in FILES.items() if name not in ("dense", "slim")}
        made = {"slim": slim} | {name: predict.open_model(file) for name, file in found.items() if file.is_file()}
        dense = root / FILES["dense"]
        return cls(({"dense": predict.open_model(dense)} if dense.is_file() else {}) | made)

    def answer(self, content: bytes, name: str) -> Json:
        """For every model its best classes, milliseconds of one image, and its heat map. Raises UserError for what is no
        image."""
        image = decode.read_bytes(lambda: content, name, "choose another")
        pixels: dict[str, np.ndarray] = {}
        for model, one in self.models.items():
            mode = decode.as_mode(image, "L" if one.preprocessing.channels == 1 else "RGB")
            try:
                pixels[model] = one.preprocessing(mode)[None]
            except ValueError as error:
                raise UserError(f"{name}: {image.width} x {image.height} pixels cannot be resized ({error})") from error
        with self.one_by_one:
            times = self._timed(pixels)
            return {"models": [_told(model, one, pixels[model], times[model]) for model, one in self.models.items()]}

    def _timed(self, pixels: dict[str, np.ndarray]) -> dict[str, list[float]]:
        """Milliseconds of one image in ROUNDS passes, rising, by name; taken in turn after one that is not counted."""
        taken: dict[str, list[float]] = {name: [] for name in pixels}
        for round_ in range(ROUNDS + 1):
            for name, x in pixels.items():
                started = time.perf_counter()
                runtime.predict(self.models[name].session, x)
                if round_:
                    taken[name].append(1e3 * (time.perf_counter() - started))
        return {name: sorted(spent) for name, spent in taken.items()}


def _told(name: str, one: predict.Classifier, x: np.ndarray, spent: list[float]) -> Json:
    shares = predict.softmax(runtime.predict(one.session, x))[0]
    eligible = range(len(shares)) if one.outputs is None else one.outputs
    order = sorted(eligible, key=lambda i: -shares[i])
    best = [{"label": one.labels[i], "probability": float(shares[i])} for i in order[:TOP]]
    known = one.outputs is None or float(shares[one.outputs].max()) >= one.threshold
    made: Json = {
        "name": name,
        "milliseconds": statistics.median(spent),
        "range": [spent[0], spent[-1]],
        "known": known,
    }
    made |= {"top": best, "seen": seen(one, x)}
    return made | {"heat": heat_map(one, x, order[0]).tolist() if name in LOOKED_AT else None}


def seen(one: predict.Classifier, x: np.ndarray) -> str:
    """What the model sees, [1, C, H, W] as it was before its mean and deviation, as the data URL of a PNG."""
    mean, std = (
        np.array(values, np.float32).reshape(-1, 1, 1) for values in (one.preprocessing.mean, one.preprocessing.std)
    )
    pixels = np.clip(255 * (x[0] * std + mean), 0, 255).round().astype(np.uint8).transpose(1, 2, 0)
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def heat_map(one: predict.Classifier, x: np.ndarray, output: int) -> np.ndarray:
    """[GRID, GRID]: how much of the probability of `output` is lost where a part of the image [1, C, H, W] is covered by its
    mean, a square of two parts a side around it (occlusion: Zeiler and Fergus, 2014); below zero where it gains."""
    _, _, height, width = x.shape
    mean = x.mean((2, 3), keepdims=True)[0]
    rows, columns = (np.linspace(0, side, GRID + 1).astype(int) for side in (height, width))
    covered = np.repeat(x, GRID * GRID, 0)
    for place in range(GRID * GRID):
        i, j = divmod(place, GRID)
        top, left = (rows[i] + rows[max(i - 1, 0)]) // 2, (columns[j] + columns[max(j - 1, 0)]) // 2
        bottom, right = (
            (rows[i + 1] + rows[min(i + 2, GRID)] + 1) // 2,
            (columns[j + 1] + columns[min(j + 2, GRID)] + 1) // 2,
        )
        covered[place, :, top:bottom, left:right] = mean
    parts = [runtime.predict(one.session, covered[n : n + BATCH]) for n in range(0, len(covered), BATCH)]
    shares = predict.softmax(np.concatenate(parts))[:, output]
    whole = predict.softmax(runtime.predict(one.session, x))[0, output]
    return (whole - shares).reshape(GRID, GRID)
