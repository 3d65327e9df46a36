"""Times in ONNX Runtime on this machine: of many small graphs, and of one file over another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vitprune.core.device import machine
from vitprune.core.reading import Json
from vitprune.deploy import runtime

PASSES = 5  # every graph is opened and timed this often, all in turn, so that no drift of the machine favours one
RUNS = 2, 10  # of a graph in one pass, at least and at most
SPENT = 0.05  # seconds in one pass after which it is timed no further


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Times graphs at batches of this size on the processor, with as many threads as onnxruntime takes."""

    batch: int

    def facts(self) -> Json:
        """What a measured time depends on beside the graph."""
        here = machine(torch.device("cpu"))
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else here["cores"]
        version = str(runtime.onnxruntime().__version__)
        return {"cpu": here["cpu"], "threads": threads, "onnxruntime": version, "batch": self.batch}

    def pieces(self, made: Sequence[Callable[[], bytes]]) -> list[float]:
        """Least milliseconds of each graph: what others do meanwhile only ever adds to a time."""
        least = [float("inf")] * len(made)
        for _ in range(PASSES):
            for i, graph in enumerate(made):
                least[i] = min(least[i], self._least(graph()))
        return least

    def whole(self, path: Path) -> float:
        """Least milliseconds of a file."""
        return min(self._least(path) for _ in range(PASSES))

    def ratio(self, dense: Path, slim: Path) -> float:
        """The slim file's time over the dense one's, in turn."""
        sessions = {"dense": runtime.session(dense, in_turn=True), "slim": runtime.session(slim, in_turn=True)}
        images = self._images(sessions["dense"])
        return float(runtime.interleaved(sessions, images, seconds=2.0)["slim"]["relative"])

    def _least(self, graph: Path | bytes) -> float:
        session = runtime.session(graph, in_turn=True)
        images, times, began = self._images(session), list[float](), time.perf_counter()
        runtime.predict(session, images)
        while len(times) < RUNS[0] or (len(times) < RUNS[1] and time.perf_counter() - began < SPENT):
            started = time.perf_counter()
            runtime.predict(session, images)
            times.append(1e3 * (time.perf_counter() - started))
        return min(times)

    def _images(self, session: object) -> np.ndarray:
        shape = (self.batch, *runtime.image_shape(session, "a graph to be timed"))
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
