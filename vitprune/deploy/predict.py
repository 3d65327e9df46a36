"""Names and probabilities for image files from one ONNX file: its graph, and its metadata_props for everything else.

numpy, Pillow and onnxruntime; never torch, timm or the library. What is read from the metadata:

- `labels`: one name per output (else the outputs' numbers are shown); `labels_by_order`: whether they are the sorted class
  names of the images that the model was pruned with, as the model had no names of its own.
- `preprocessing`: timm's data_config.
- `open_set`, in a specialist's file: {"score": "max-softmax", "outputs": [...], "threshold": τ, "true_positive_rate": 0.95,
  "images": n}. Its score is the largest softmax probability, over all outputs, among its own `outputs`; an image below
  τ is none of its classes. τ is where that share of n probe images of its classes is accepted.

Legend: N images, C outputs.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.deploy import runtime
from vitprune.images import decode
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.found import Found, below, is_housekeeping, note, sort_in

TRUE_POSITIVE_RATE = 0.95
FEATURES = "features"  # a backbone's first output


@dataclass(frozen=True, slots=True)
class Classifier:
    """An ONNX file ready for images; `outputs` are a specialist's own, with the `threshold` of its score, else None."""

    session: Any
    labels: list[str]
    preprocessing: Preprocessing
    outputs: list[int] | None = None
    threshold: float = 0.0
    labels_by_order: bool = False

    def logits(self, paths: Sequence[Path]) -> np.ndarray:
        """[N, C] float32. Raises UserError naming an image that cannot be read."""
        return runtime.predict(self.session, pixels(self.preprocessing, paths))


def pixels(preprocessing: Preprocessing, paths: Sequence[Path]) -> np.ndarray:
    """Images as a file takes them, [N, channels, H, W] float32. Raises UserError naming one that cannot be read."""

    def of(path: Path) -> np.ndarray:
        image = decode.as_mode(decode.read(path), "L" if preprocessing.channels == 1 else "RGB")
        try:
            return preprocessing(image)
        except ValueError as error:  # resized, its shorter side has no pixel left
            raise UserError(f"{path}: {image.width} x {image.height} pixels cannot be resized ({error})") from error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.stack(list(pool.map(of, paths)))


def open_model(model: Path) -> Classifier:
    """The classifier in an ONNX file or in an exported folder. Raises UserError for one that does not say what it is."""
    path, session, preprocessing = opened(model)
    if session.get_outputs()[0].name == FEATURES:
        raise UserError(
            f"{path}: is a backbone's, which gives features: `vitprune predict` with `--out FILE.npz` or `--out FILE.csv` "
            "writes them"
        )
    known, outputs = session.get_modelmeta().custom_metadata_map, session.get_outputs()[0].shape[-1]
    entries = {key: _entry(known, key, path) for key in ("labels", "labels_by_order", "open_set")}
    labels = entries["labels"] if entries["labels"] is not None else [str(i) for i in range(outputs)]
    if not isinstance(labels, list) or len(labels) != outputs:
        raise UserError(f"{path}: its metadata does not name its {outputs} outputs; export it again")
    own = _open_set(entries["open_set"], outputs, path)
    return Classifier(session, [str(n) for n in labels], preprocessing, *own, entries["labels_by_order"] is True)


def opened(model: Path) -> tuple[Path, Any, Preprocessing]:
    """An ONNX file, or that of an exported folder, its session and how it says that images are prepared. Raises UserError for
    one that does not say it."""
    path = model / "model.onnx" if model.is_dir() else model
    if not path.is_file():
        groups = sorted(p.parent.name for p in model.glob("*/model.onnx")) if model.is_dir() else []
        advice = f"its groups are {', '.join(groups)}" if groups else "`vitprune export RECIPE` writes one"
        raise UserError(f"{path}: no such ONNX file; {advice}")
    session = runtime.session(path)
    prepared = _entry(session.get_modelmeta().custom_metadata_map, "preprocessing", path)
    shape, outputs = runtime.image_shape(session, path), session.get_outputs()[0].shape[-1]
    if not isinstance(prepared, dict):
        raise UserError(
            f"{path}: has no `preprocessing` in its metadata; `vitprune export RECIPE` writes a file that has"
        )
    try:
        preprocessing = Preprocessing.of(prepared)
    except ValueError as error:
        raise UserError(f"{path}: its preprocessing {error} cannot be used; export it again") from error
    wanted = [preprocessing.channels, *preprocessing.size]
    if preprocessing.channels not in (1, 3) or shape != wanted or not isinstance(outputs, int):
        raise UserError(f"{path}: takes {shape}, its metadata prepares images of {wanted}; export it again")
    return path, session, preprocessing


def calibrate(logits: np.ndarray, outputs: Sequence[int]) -> Json:
    """The metadata's `open_set` from logits [N, C] of probe images of the classes `outputs`."""
    scores = np.sort(softmax(logits)[:, list(outputs)].max(1))
    threshold = scores[math.floor((1 - TRUE_POSITIVE_RATE) * len(scores) + 1e-9)]
    return {
        "score": "max-softmax",
        "outputs": [int(i) for i in outputs],
        "threshold": float(threshold),
        "true_positive_rate": TRUE_POSITIVE_RATE,
        "images": len(scores),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] float64 over all outputs."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def find_images(arguments: Sequence[str], left_out: Counter[str] | None = None) -> list[Path]:
    """Files as given; folders' images at any depth and globs' matches, by name. Raises UserError for what is not there.

    What is an image is decided as for the images of a run; `left_out` counts what is none, by its kind.
    """
    files: list[Path] = []
    for argument in arguments:
        path, found = Path(argument), Found()
        if path.is_dir():
            found = below(path)
        elif not path.is_file() and glob.has_magic(argument):
            fixed = len(list(takewhile(lambda part: not glob.has_magic(part), path.parts)))
            matches = [Path(p) for p in glob.glob(argument, recursive=True)]  # noqa: PTH207 (patterns may be absolute)
            for match in sorted(matches):
                if not match.is_dir() and not any(map(is_housekeeping, match.parts[fixed:])):
                    sort_in(match, found)
        else:
            found.files.append(path)
        if left_out is not None:
            left_out += found.others
        if not found.files:
            held = note(found.others, "it")
            raise UserError(
                f"{argument}: holds no images" + (f". {held}" if held else "; give files or folders of them")
            )
        files += found.files
    return files


def predict(classifier: Classifier, paths: Sequence[Path], top: int, batch: int) -> Iterator[Json]:
    """One answer per image: its `top` outputs with label, probability and logit, a specialist's among its own only.

    `known` is False where a specialist finds none of its classes; `score` is what decided, None without a threshold.
    """
    for start in range(0, len(paths), batch):
        part = paths[start : start + batch]
        logits_NC = classifier.logits(part)
        if not np.isfinite(logits_NC).all():
            raise UserError(f"{part[0]}: the model gives values that are not finite; export it again")
        for path, logits, shares in zip(part, logits_NC, softmax(logits_NC), strict=True):
            own = classifier.outputs
            eligible = np.arange(len(shares)) if own is None else np.array(own)
            order = eligible[np.argsort(-logits[eligible], kind="stable")].tolist()
            score = None if own is None else float(shares[own].max())
            yield {
                "image": str(path),
                "known": score is None or score >= classifier.threshold,
                "score": score,
                "top": [
                    {
                        "output": i,
                        "label": classifier.labels[i],
                        "probability": float(shares[i]),
                        "logit": float(logits[i]),
                    }
                    for i in order[:top]
                ],
            }


def line(answer: Json) -> str:
    """An answer for people: `PATH: sandal 97.1 %, sneaker 2.0 %`."""
    best = ", ".join(f"{entry['label']} {100 * entry['probability']:.1f} %" for entry in answer["top"])
    text = f"{answer['image']}: {best if answer['known'] else f'not one of my classes (nearest: {best})'}"
    return "".join(c if c.isprintable() else " " for c in text)


def _entry(known: dict[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(known[key]) if key in known else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: `{key}` in its metadata is not JSON; export it again") from error


def _open_set(entry: Any, outputs: int, path: Path) -> tuple[list[int] | None, float]:
    """A specialist's outputs and threshold, checked."""
    if entry is None:
        return None, 0.0
    own, threshold = (entry.get("outputs"), entry.get("threshold")) if isinstance(entry, dict) else (None, None)
    sound = isinstance(own, list) and own and all(type(i) is int and 0 <= i < outputs for i in own)
    if sound and isinstance(threshold, int | float) and type(threshold) is not bool and 0 <= threshold <= 1:
        return own, float(threshold)
    raise UserError(f"{path}: `open_set` in its metadata cannot be used; export it again")
