"""Where progress goes: bars on a terminal, plain lines in a log, a file on request; nothing on standard error when quiet."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vitprune.core.errors import UserError
from vitprune.core.progress import words
from vitprune.core.progress.ahead import Ahead

T = TypeVar("T")
LOG_EVERY = 15.0  # seconds between two lines of one piece of work
FIRST = 0.8  # seconds after which a command that said nothing says what it does
SILENT = 20.0  # seconds after which work that said nothing says that it goes on
REFRESH = 4  # times a second, of bars
_open: weakref.WeakSet[Reporter] = weakref.WeakSet()


@dataclass(slots=True)
class _Work:
    """Items that are passed through."""

    label: str
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds to the end of these items."""
        return self.seconds / self.done * max(0, self.total - self.done) if self.done else 0.0


class Reporter:
    """Progress goes to standard error, so that standard output stays for results, and as plain lines to `log`, if given.

    Raises UserError for a log that cannot be written.
    """

    def __init__(self, quiet: bool = False, log: Path | None = None) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.ahead: Ahead | None = None
        self.resting = False  # somebody is asked a question
        self._noted: set[str] = set()
        self._stage, self._began = "", 0.0
        self.phase = "opening the model"  # what is done outside of stages
        self._works: list[_Work] = []
        self._live: Live | None = None
        self._last, self._doing, self._first = time.monotonic(), "", ""
        self._log = _opened(log) if log is not None else None
        _open.add(self)

    # ---- what is said

    def note(self, text: str) -> None:
        """One line, the first time."""
        if text not in self._noted:
            self._noted.add(text)
            self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """One line; none where it is the first one, which `watch` has said already."""
        self._doing, self._last = "", time.monotonic()
        if text == self._first:
            self._first = ""
            return
        self.to_log(text)
        if not self.quiet:
            self._line_of(text)

    def begin(self, text: str) -> None:
        """Nothing; outside of stages a long silence is broken by these words from now on."""
        self.phase = text

    def to_log(self, text: str) -> None:
        """One line of the log alone, with the time before it."""
        with contextlib.suppress(OSError):  # a full disk ends a run by what the run itself writes
            if self._log is not None:
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def track(self, items: Iterable[T], label: str, total: int, step: int = 1, stage: str = "") -> Iterator[T]:
        """Pass the items through, `step` units of `total` each; `stage`: the stage of the run that they are all of."""
        if (self.quiet and self._log is None) or not total:
            yield from items
            return
        work, last = _Work(label, total), time.monotonic()
        self._works.append(work)
        try:
            with self._shown(), self.stage(stage) if stage else contextlib.nullcontext():
                for n, item in enumerate(items, 1):
                    yield item
                    work.done = min(n * step, total)
                    if time.monotonic() - last > LOG_EVERY:
                        last = time.monotonic()
                        self._plain(self._line(work))
            self.say(f"{label}: {work.done}/{total} in {work.seconds:.1f} s")
        finally:
            self._works.remove(work)

    # ---- the whole run

    def expect(self, seconds: Mapping[str, float], times: Mapping[str, int] | None = None) -> None:
        """What the stages of the run are estimated to take, in order, for its ETA; `times`: how often each is done."""
        self.ahead = Ahead(dict(seconds), dict(times or {}))

    def repeats(self, times: int) -> None:
        """Every stage that is expected is done so often, as for the seeds of a comparison."""
        if self.ahead is not None:
            self.ahead.times = dict.fromkeys(self.ahead.seconds, times)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the run, from begin to end; one inside another is a part of it."""
        if self._stage:
            yield
            return
        self._stage, self._began = name, time.monotonic()
        try:
            with self._shown():
                yield
            if self.ahead is not None:
                self.ahead.finished(name, time.monotonic() - self._began)
        finally:
            self._stage = ""

    def skipped(self, name: str) -> None:
        """A stage of the run was found done."""
        if self.ahead is not None:
            self.ahead.finished(name, 0.0, worked=False)

    def remaining(self) -> float | None:
        """Seconds until the whole run ends; None where nothing was expected of it."""
        if self.ahead is None:
            return None
        running = time.monotonic() - self._began if self._stage else 0.0
        own = max((work.left for work in list(self._works)), default=0.0)
        return self.ahead.left(self._stage or None, running, own)

    def watch(self, doing: str) -> None:
        """Nothing; from now on a silence is broken: after FIRST seconds by `doing`, later on every SILENT seconds by what is
        at work. It ends with the reporter."""
        if not self.quiet or self._log is not None:
            self._doing, self._last = doing, time.monotonic()
            threading.Thread(target=_beat, args=(weakref.ref(self),), name="vitprune-progress", daemon=True).start()

    def beat(self) -> None:
        """Say that work goes on, if nothing was said for too long."""
        silent = time.monotonic() - self._last
        if self.resting or silent < (FIRST if self._doing else SILENT):
            return
        if self._doing:
            self.say(first := self._doing)
            self._first = first
        elif works := list(self._works):
            self._plain(self._line(works[-1]))
        else:
            since = f", for {words.clock(time.monotonic() - self._began)}" if self._stage else ""
            self._plain(f"{self._stage or self.phase}: at work{since}{self._until()}")

    # ---- how it looks

    def _line(self, work: _Work) -> str:
        own = "" if self.ahead is not None or not work.done else f", ETA {words.clock(work.left)}"
        rate = words.rate(work.done, work.seconds)
        return f"{work.label}: {work.done}/{work.total}{rate and f', {rate}'}{own}{self._until()}"

    def _until(self) -> str:
        left = self.remaining()
        return "" if left is None else f", run ETA {words.clock(left)}"

    def _plain(self, text: str) -> None:
        """A line of a log, which a terminal with bars has no need of."""
        self._last = time.monotonic()
        self.to_log(text)
        if not self.quiet and self._live is None:
            self._line_of(text)

    def _line_of(self, text: str) -> None:
        """Print a line; on a terminal it is broken between words, so that no number is cut, and a path stays whole."""
        if self.console.is_terminal:
            text = words.broken(text, self.console.width)
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Bars on a terminal, as long as the outermost piece of work goes on."""
        if self.quiet or self._live is not None or not self.console.is_terminal:
            yield
            return
        view = Live(
            get_renderable=self._view, console=self.console, refresh_per_second=REFRESH, transient=True,
            redirect_stdout=False,
        )  # fmt: skip
        with view:
            self._live = view
            try:
                yield
            finally:
                self._live = None

    def _view(self) -> Text:
        """The stage and its place in the run, and a bar for each piece of work."""
        width, plain = max(20, self.console.width - 1), not self.console.encoding.startswith("utf")
        lines = [words.bar(width, w.label, w.done, w.total, w.seconds, plain) for w in list(self._works)]
        if self._stage:
            place = self.ahead.place(self._stage) if self.ahead is not None else None
            which = f" ({place[0]} of {place[1]})" if place else ""
            spent = words.clock(time.monotonic() - self._began)
            lines.insert(0, f"{self._stage}{which}, {spent}{self._until()}"[:width])
        elif lines and (until := self._until()):
            lines.append(until.removeprefix(", "))
        return Text("\n".join(lines), no_wrap=True, overflow="crop")


def rest() -> None:
    """Nothing is said any more by itself: the command has ended."""
    for reporter in list(_open):
        reporter.resting = True


def _beat(of: weakref.ref[Reporter]) -> None:
    """Look after a reporter five times a second, until there is none."""
    while (reporter := of()) is not None:
        reporter.beat()
        del reporter
        time.sleep(0.2)


def to_logs(text: str) -> None:
    """A last line, such as the error that ended the command, in every log that is open."""
    for reporter in list(_open):
        reporter.to_log(text)


def _opened(log: Path) -> TextIO:
    try:
        return log.open("a", buffering=1, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--log {log}: cannot be written ({error})") from error
