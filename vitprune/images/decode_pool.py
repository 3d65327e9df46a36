"""Decoding in processes of their own: N of them, each behind a thread, so that results come in the order asked for.

A process reads requests from its standard input and ends when that closes: with its parent, however the parent ends.
It ignores Ctrl-C, which is for the parent to handle. One that dies over an image (a decoder's crash, no memory) is
replaced, and the image counts as unreadable. numpy and Pillow, never torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.decode import Mode, as_mode
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.base import Source

ENOUGH = 5000  # images from which processes of their own are worth their start
MOST = 8
AHEAD = 256  # images asked for before their turn
TRIES = 2
CONTENT = 16  # bytes of a picture's digest
Prepare = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True, slots=True)
class Job:
    """What a decoding process needs: the images, and how the model wants them."""

    source: Source
    prepare: Prepare
    mode: Mode

    def pixels(self, i: int) -> np.ndarray:
        """Image i as the model takes it, [C, H, W]: uint8 that is not normalised yet, where that is a step of its own."""
        return self._prepared(self.source.image(i))

    def content(self, i: int) -> bytes:
        """Digest of image i's pixels, whatever file holds them."""
        return content(self.source.image(i))

    def both(self, i: int) -> tuple[bytes, np.ndarray]:
        """`content` and `pixels` of image i, decoded once."""
        image = self.source.image(i)
        return content(image), self._prepared(image)

    def _prepared(self, image: Image.Image) -> np.ndarray:
        image = as_mode(image, self.mode)
        return self.prepare.pixels(image) if isinstance(self.prepare, Preprocessing) else self.prepare(image)


def content(image: Image.Image) -> bytes:
    """Digest of an image's size and pixels; grey pixels in a file of colours count as the grey ones."""
    pixels = np.asarray(image.convert("RGB"))
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=CONTENT).digest()


def automatic(source: Source, share: int = 1) -> int:
    """Processes for a source that nobody said a number for, when `share` runs use this machine; 0: threads do it."""
    from vitprune.images.sources.bundled import Bundled

    cores = (os.cpu_count() or 1) // share
    if isinstance(source, Bundled) or len(source.names) < ENOUGH or cores < 4:
        return 0
    return min(cores, MOST)


class Processes:
    """Decoding processes of one job; `pixels` and `content` answer with futures."""

    def __init__(self, job: Job, count: int) -> None:
        self._job, self.prepare = pickle.dumps(job), job.prepare
        self._names = job.source.names
        self._mine = threading.local()
        self._crew = _Crew(ThreadPoolExecutor(count, "decoding"))
        self._end = weakref.finalize(self, self._crew.end)

    def pixels(self, i: int) -> Future[np.ndarray]:
        """`Job.pixels` of image i."""
        return self._crew.threads.submit(self._ask, "pixels", int(i))

    def content(self, i: int) -> Future[bytes]:
        """`Job.content` of image i."""
        return self._crew.threads.submit(self._ask, "content", int(i))

    def both(self, i: int) -> Future[tuple[bytes, np.ndarray]]:
        """`Job.both` of image i."""
        return self._crew.threads.submit(self._ask, "both", int(i))

    def close(self) -> None:
        """Stop the processes; what is asked for and not yet answered is dropped."""
        self._end()

    def _ask(self, what: str, i: int) -> Any:
        for _ in range(TRIES):
            process = getattr(self._mine, "process", None) or self._start()
            try:
                kind, value = _answer(process, (what, i))
            except (OSError, EOFError, pickle.UnpicklingError):
                self._mine.process = None
                process.kill()
                code = process.wait()
                continue
            if kind == "refused":
                raise UserError(value)
            if kind == "failed":
                raise RuntimeError(f"{self._names[i]}: {value}")
            return value
        raise UserError(
            f"{self._names[i]}: {TRIES} processes that read it died (exit {code}: a damaged image, or no memory left); "
            "remove the image, or set data.workers lower"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._crew.start()
        try:
            _answer(process, self._job)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError("a decoding process could not start; data.workers: 0 does without them") from error
        self._mine.process = process
        return process


class _Crew:
    """The threads and processes themselves, apart so that they can be ended when their owner is forgotten."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._ended = False

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "vitprune.images.decode_pool"]
        with self._lock:
            if self._ended:
                raise RuntimeError("the decoding processes have ended")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
        return process

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _answer(process: subprocess.Popen[bytes], request: Any) -> tuple[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request if isinstance(request, bytes) else pickle.dumps(request))
    process.stdin.flush()
    answer: tuple[str, Any] = pickle.load(process.stdout)  # from our own process
    return answer


def in_order(ask: Callable[[int], Future[Any]], items: Iterable[int]) -> Iterator[Future[Any]]:
    """The futures of items in order, asked for AHEAD of their turn; those left over are cancelled."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(ask(item))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()


@dataclass(frozen=True, slots=True)
class Keep:
    """Who takes over pixels: of the images that are `wanted` [N], `prepare`d; `put` is given the position and the pixels."""

    wanted: np.ndarray
    prepare: Callable[[Image.Image], np.ndarray]
    put: Callable[[int, np.ndarray], None]


@dataclass
class Checked:
    """What looking at every image found: positions and reasons of the unreadable, digests of the others' pixels."""

    bad: list[tuple[int, str]] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)

    def packed(self, count: int) -> np.ndarray:
        """The digests of `count` images, [N, CONTENT] uint8; zeros for those without one."""
        table = np.zeros((count, CONTENT), np.uint8)
        for i, found in self.contents.items():
            table[i] = np.frombuffer(found, np.uint8)
        return table


def unpacked(table: np.ndarray) -> dict[int, bytes]:
    """The digests of a table [N, CONTENT], by position."""
    return {int(i): table[i].tobytes() for i in np.flatnonzero(table.any(1))}


def check(
    source: Source,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    processes: Processes | None = None,
    contents: bool = False,
    keep: Keep | None = None,
    only: range | None = None,
) -> Checked:
    """Decode every image once; `contents`: with digests of their pixels; `only`: those at some positions. In threads, where
    no processes are given.

    `keep`: takes over the pixels of the images it wants, as the model takes them, so that they are decoded no more.
    """
    positions = range(len(source.names)) if only is None else only
    result = Checked()

    def attempt(i: int) -> tuple[bytes | None, np.ndarray | None]:
        image = source.image(i)
        kept = keep.prepare(image) if keep and keep.wanted[i] else None
        return content(image) if contents else None, kept

    def far(i: int) -> Future[Any]:
        assert processes is not None
        return processes.both(i) if keep and keep.wanted[i] else processes.content(i)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        ask = far if processes else lambda i: threads.submit(attempt, i)
        for i, future in zip(progress(positions), in_order(ask, positions), strict=True):
            try:
                found = future.result()
            except UserError as error:
                result.bad.append((i, str(error)))
                continue
            digest, pixels = found if isinstance(found, tuple) else (found, None)
            if contents:
                result.contents[i] = digest
            if keep and pixels is not None:
                keep.put(i, pixels)
    return result


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until they end."""
    try:
        job: Job = pickle.load(requests)  # from the process that started this one
        _say(answers, ("ready", None))
        while True:
            what, i = pickle.load(requests)
            try:
                answer = ("done", getattr(job, what)(i))
            except UserError as error:
                answer = ("refused", str(error))
            except Exception as error:
                answer = ("failed", f"{type(error).__name__}: {error}")
            _say(answers, answer)
    except (EOFError, BrokenPipeError):
        return


def _say(answers: BinaryIO, answer: Any) -> None:
    pickle.dump(answer, answers, protocol=5)
    answers.flush()


def main() -> None:
    """One decoding process: requests on standard input, answers on what was standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    from vitprune.images import decode_pool

    decode_pool.main()
