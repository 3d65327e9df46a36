"""Thousands of seeded broken inputs through the command line: one line and exit code 2, or success; nothing else.

    PYTHONPATH=tests/helpers python tests/hostile/fuzz.py [--cases 5000] [--seed 0] [--only CASE]

Every case damages one recipe, model folder, report, ONNX file or stage file and calls `vitprune.cli.main` on it. It
fails when the exit code says that the fault is ours, when a trace or more than one line is said, when it takes longer
than HANG seconds, when a file outside the output folder is written, or when a program or a connection is started. Case
i of a seed is always the same: `--only i` runs it alone and shows the trace. Ends with `N passed, M failed`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

HANG = 30  # seconds
MEMORY = 12 << 30  # address space beyond what is in use at the start
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pty.spawn")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Case:
    """One command on damaged input; `out` is where it may write, `missed` whether exit code 1 may be its answer."""

    args: list[str]
    out: Path | None = None
    missed: bool = False


@dataclass
class Watch:
    """What a command does to the world, by Python's audit events; a hook cannot be removed, so it is switched."""

    on: bool = False
    out: Path | None = None
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {args[0]!r}")
        elif event == "open":
            path, mode, flags = args
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES):
                self._touched(event, path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self._touched(event, args[0])
        elif event in ("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"):
            self._touched(event, args[1])

    def _touched(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        self.on = False  # resolving a path opens nothing, but asks
        with contextlib.suppress(OSError, ValueError):
            place = Path(os.path.realpath(os.fsdecode(path)))
            allowed = [Path("/dev"), Path("/proc")] + ([self.out.resolve()] if self.out else [])
            if not any(place.is_relative_to(a) for a in allowed) and "__pycache__" not in place.parts:
                self.seen.append(f"{event} {place}")
        self.on = True


_watch = Watch()
_watching: list[bool] = []


@contextmanager
def watched(out: Path | None) -> Iterator[list[str]]:
    """Yields the list that fills with everything done outside `out`."""
    if not _watching:
        sys.addaudithook(_watch)
        _watching.append(True)
    _watch.seen, _watch.out, _watch.on = [], out, True
    try:
        yield _watch.seen
    finally:
        _watch.on = False


class Hang(BaseException):
    """A case that takes too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises Hang inside after some seconds; if even that is not heard, ends the process with every trace."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def call(case: Case, debug: bool = False) -> tuple[int | str, str, str, list[str]]:
    """Exit code (or what else ended the command), standard output, standard error, and what was done outside `out`."""
    from vitprune.cli import app

    pipes = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    argv = sys.argv
    sys.argv = ["vitprune", *["--debug"] * debug, *case.args]
    code: int | str = "returned"
    with contextlib.redirect_stdout(pipes[0]), contextlib.redirect_stderr(pipes[1]), warnings.catch_warnings():
        try:
            with watched(case.out) as outside, limited(HANG):
                app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else str(end.code)
        except Hang:
            code = f"more than {HANG} s"
        except BaseException as error:
            code = f"raised {type(error).__name__}: {error}"
        finally:
            sys.argv = argv
    said = []
    for pipe in pipes:
        pipe.flush()
        said.append(pipe.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return code, said[0], said[1], list(outside)


def fault(case: Case, code: int | str, out: str, err: str, outside: list[str]) -> str | None:
    """Why a case failed, or None."""
    if outside:
        return f"touched {outside[0]}"
    if "Traceback" in out + err:
        return "a trace"
    lines = [line for line in err.splitlines() if line.startswith("vitprune: ")]
    if code == 2:
        good = len(lines) == 1 and err.endswith(lines[0] + "\n") and "internal error" not in lines[0]
        return None if good else f"exit 2 with {err[-300:]!r}"
    if code == 0:
        return f"exit 0 with {lines[0]!r}" if lines else None
    if code == 1 and case.missed and ("MISSED" in out or '"passed": false' in out) and not err:
        return None
    return f"exit {code}: {err.strip().splitlines()[-1] if err.strip() else ''}"


def attempt(
    lab: Any, make: Callable[..., Case], seed: int, number: int, debug: bool = False
) -> tuple[int | str, str | None]:
    """Build case `number` in a folder of its own, run it there, judge it, and remove the folder: exit code and fault."""
    place = lab.base / f"case-{number}"
    place.mkdir()
    before = os.getcwd()  # noqa: PTH109
    try:
        os.chdir(place)
        case = make(lab, place, Random(f"{seed}/{number}"))
        *answer, outside = call(case, debug)
        why = fault(case, *answer, outside)  # type: ignore[arg-type]
        if debug:
            print(case.args, answer[0], *answer[1:], outside, sep="\n")
        return answer[0], why
    finally:
        os.chdir(before)
        shutil.rmtree(place, ignore_errors=True)


def campaign(cases: int, seed: int, base: Path, only: int | None = None) -> Counter[Any]:
    """Run the cases; prints each failure and answers how many passed and failed."""
    import fuzz_cases

    lab = fuzz_cases.Lab.build(base)
    gc.freeze()  # every stage collects garbage first: what the libraries hold is none
    found: Counter[Any] = Counter(passed=0, failed=0)
    spent: Counter[str] = Counter()
    for number in range(cases) if only is None else [only]:
        kind = fuzz_cases.kind(seed, number)
        started = time.monotonic()
        code, why = attempt(lab, fuzz_cases.KINDS[kind], seed, number, debug=only is not None)
        spent[kind] += time.monotonic() - started
        found["failed" if why else "passed"] += 1
        found[kind] += 1
        found[kind, code == 2] += 1
        if why:
            print(f"case {number} ({kind}): {why[:400]}", flush=True)
    gc.unfreeze()
    for kind in fuzz_cases.KINDS:
        print(f"{kind:<16}{found[kind]:>6} cases,{found[kind, True]:>6} refused {spent[kind]:>8.1f} s")
    return found


def main() -> None:
    """The command."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--cases", type=int, default=5000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", type=int)
    given = asked.parse_args()
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="fuzz-mpl-"))
    import torch

    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.name == "posix" else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        found = campaign(given.cases, given.seed, Path(base), given.only)
    print(f"seed {given.seed}, {time.monotonic() - started:.0f} s")
    print(f"{found['passed']} passed, {found['failed']} failed")
    sys.exit(found["failed"] > 0)


if __name__ == "__main__":
    main()
