"""Progress: a bar with rate and ETA on a terminal, a plain line now and then in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
LOG_EVERY = 15.0


class Reporter:
    """Where progress goes; always standard error, so that standard output stays for results."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """One line, the first time."""
        if text not in self._noted:
            self._noted.add(text)
            self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    def track(self, items: Iterable[T], label: str, total: int, step: int = 1) -> Iterator[T]:
        """Pass the items through, `step` units of `total` each."""
        if self.quiet:
            yield from items
        elif self.console.is_terminal:
            yield from self._bar(items, label, total, step)
        else:
            yield from self._lines(items, label, total, step)

    def _bar(self, items: Iterable[T], label: str, total: int, step: int) -> Iterator[T]:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task, start = progress.add_task(label, total=total, rate=""), time.monotonic()
            for n, item in enumerate(items, 1):
                yield item
                done = min(n * step, total)
                rate = f"{done / max(time.monotonic() - start, 1e-9):.0f}/s"
                progress.update(task, completed=done, rate=rate)

    def _lines(self, items: Iterable[T], label: str, total: int, step: int) -> Iterator[T]:
        start = last = time.monotonic()
        done = 0
        for n, item in enumerate(items, 1):
            yield item
            done, now = min(n * step, total), time.monotonic()
            if now - last > LOG_EVERY:
                last, spent = now, now - start
                left = spent / done * (total - done)
                print(f"{label}: {done}/{total}, {done / spent:.1f}/s, ETA {left:.0f} s", file=sys.stderr, flush=True)
        print(f"{label}: {done}/{total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
