"""The engines' contract: the same parts in order, whoever computed them; a death costs its part; a mistake is one line."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from vitprune.core.errors import UserError
from vitprune.runs.engine.base import Columns, Executor, Job
from vitprune.runs.engine.dispatch import AHEAD
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.parts import Parts
from vitprune.runs.engine.pool import Pool


def begin(rank: int) -> None:
    os.environ["RANK_OF_TEST"] = str(rank)


def squares(folder: Path, item: int) -> Columns:
    """Squares of a range; dies once where a file asks for it, complains of 99."""
    if item == 99:
        raise UserError("item 99: not allowed; take another")
    asked = folder / f"die-{item}"
    if asked.exists():
        asked.write_text(asked.read_text()[1:])
        if not asked.read_text():
            asked.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    values = np.arange(item, item + 4, dtype=np.float64)
    return {"square": values**2, "sum": np.float64([values.sum()])}


def job(folder: Path, items: list[int], about: Any = None) -> Job:
    return Job("squares", items, functools.partial(squares, folder), about)


ENGINES: dict[str, Callable[[], Executor]] = {
    "local": Local, "1": lambda: Pool(1, begin), "2": lambda: Pool(2, begin), "3": lambda: Pool(3, begin),
}  # fmt: skip


@pytest.fixture(params=list(ENGINES), scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = ENGINES[request.param]()
    yield made
    made.close()


def same(one: list[Columns], other: list[Columns]) -> bool:
    return len(one) == len(other) and all(
        set(a) == set(b) and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_every_engine_gives_the_same_parts_in_order(engine: Executor, tmp_path: Path) -> None:
    items = [7, 1, 5, 3, 2, 11]
    found = list(engine.run(job(tmp_path, items), tmp_path / "parts"))
    assert same(found, [squares(tmp_path, item) for item in items])
    assert same(found, list(Local().run(job(tmp_path, items), tmp_path / "parts")))


def test_what_is_there_is_taken_and_what_is_damaged_is_made_again(engine: Executor, tmp_path: Path) -> None:
    work = job(tmp_path, [1, 2, 3, 4])
    expected = list(Local().run(work, tmp_path / "parts"))
    parts = Parts(tmp_path / "parts", work)
    kept = parts.path(0).stat().st_mtime_ns
    parts.path(1).write_bytes(parts.path(1).read_bytes()[:-1])
    parts.path(2).unlink()
    assert same(list(engine.run(work, tmp_path / "parts")), expected)
    assert parts.path(0).stat().st_mtime_ns == kept and parts.read(1) is not None and parts.read(2) is not None


def test_parts_of_another_job_are_not_taken(engine: Executor, tmp_path: Path) -> None:
    list(Local().run(job(tmp_path, [1, 2], {"seed": 0}), tmp_path / "parts"))
    assert Parts(tmp_path / "parts", job(tmp_path, [1, 2], {"seed": 1})).read(0) is None
    found = list(engine.run(job(tmp_path, [5, 2], {"seed": 0}), tmp_path / "parts"))
    assert same(found, [squares(tmp_path, 5), squares(tmp_path, 2)])


def test_a_mistake_in_a_worker_is_the_same_one_line(engine: Executor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="item 99: not allowed; take another"):
        list(engine.run(job(tmp_path, [1, 99, 2]), tmp_path / "parts"))


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.sample(1)
def test_a_worker_killed_in_the_middle_costs_its_part_only(workers: int, tmp_path: Path) -> None:
    items = list(range(10))
    for item in (0, 4, 9):
        (tmp_path / f"die-{item}").write_text("x")
    pool = Pool(workers, begin)
    found = list(pool.run(job(tmp_path, items), tmp_path / "parts"))
    pool.close()
    assert same(found, [squares(tmp_path, item) for item in items])


def test_a_part_that_always_kills_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "die-1").write_text("x" * 50)
    pool = Pool(2, begin)
    with pytest.raises(UserError, match=r"ended 3 times over part 2 of 3; if memory is short"):
        list(pool.run(job(tmp_path, [0, 1, 2]), tmp_path / "parts"))


# ---- pinned, and not kept

_held: dict[int, int] = {}


def holding(folder: Path, item: list[int]) -> Columns:
    """Who made it, the sum of what this process made for the item's number before, and whether it had to make that again.

    `item`: number, job. What is held is a function of the number, so that it can be made again.
    """
    number, at = item
    again = number not in _held
    if again:
        _held[number] = number**3
    asked = folder / f"die-{at}-{number}"
    if asked.exists():
        asked.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": np.int64([_held[number] + at]), "who": np.int64([os.getpid()]), "again": np.array([again])}


def holding_jobs(folder: Path, kept: bool, start: int = 0) -> list[Job]:
    items = [[[n, at] for n in range(start, start + 5)] for at in range(3)]
    return [
        Job(f"hold-{at}-{kept}", items[at], functools.partial(holding, folder), None, True, kept) for at in range(3)
    ]


def values(found: list[list[Columns]], name: str = "value") -> list[list[int]]:
    return [[int(part[name][0]) for part in job] for job in found]


def expected(start: int = 0) -> list[list[int]]:
    return [[n**3 + at for n in range(start, start + 5)] for at in range(3)]


def test_a_pinned_part_goes_to_the_worker_of_its_position(engine: Executor, tmp_path: Path) -> None:
    _held.clear()
    for kept in (True, False):
        start = 10 * kept
        found = [list(engine.run(job, tmp_path / job.name)) for job in holding_jobs(tmp_path, kept, start)]
        who = values(found, "who")
        assert values(found) == expected(start)
        assert who[0] == who[1] == who[2] and len(set(who[0])) == engine.workers
        assert all(who[0][n] == who[0][n % engine.workers] for n in range(5))
        assert values(found, "again") == [[1] * 5, [0] * 5, [0] * 5]
        assert len(list(tmp_path.rglob("*.safetensors"))) == 15  # of the kept ones, which come first


def test_a_worker_that_dies_is_followed_by_another_of_its_rank(tmp_path: Path) -> None:
    for name in ("die-0-2", "die-1-1", "die-1-4"):
        (tmp_path / name).touch()
    pool = Pool(2, begin)
    found = [list(pool.run(job, tmp_path / job.name)) for job in holding_jobs(tmp_path, False)]
    pool.close()
    who = values(found, "who")
    assert values(found) == expected()
    assert who[2][0] == who[2][2] == who[2][4] != who[2][1] == who[2][3] and not set(who[0][:2]) & set(who[2])


def waiting(folder: Path, item: int) -> Columns:
    """A part that takes until the one after the next is done, if it is the first."""
    (folder / f"began-{item}").touch()
    until = time.monotonic() + 20
    while item == 0 and not (folder / "began-2").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return {"in_time": np.array([time.monotonic() < until]), "big": np.zeros(300_000)}


def test_a_free_worker_takes_what_waits_and_none_runs_far_ahead(tmp_path: Path) -> None:
    pool = Pool(2, begin)
    items = list(range(20))
    parts = pool.run(Job("waiting", items, functools.partial(waiting, tmp_path), None, kept=False), tmp_path)
    first = next(parts)
    time.sleep(0.5)
    assert first["in_time"][0] and len(list(tmp_path.glob("began-*"))) <= AHEAD * 2
    assert len(list(parts)) == 19
    pool.close()


def slow(item: str) -> Columns:
    Path(item).touch()
    time.sleep(60)
    return {}


SCRIPT = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
from test_engines import Job, Pool, begin, slow
print("started", flush=True)
list(Pool(2, begin).run(Job("slow", {items!r}, slow, None), Path({folder!r})))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death")
def test_no_worker_outlives_its_run(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *sys.path]
    items = [str(tmp_path / "one"), str(tmp_path / "two")]
    code = SCRIPT.format(paths=paths, items=items, folder=str(tmp_path / "parts"))
    run = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ":".join(paths)})
    until = time.monotonic() + 60
    while not all(Path(item).exists() for item in items) and time.monotonic() < until:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert len(children) >= 2 and not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


_locks: list[Any] = []  # in a worker, which is killed with them


def locking(item: int) -> Columns:
    """A part whose library makes a lock of multiprocessing's, as tqdm does."""
    _locks.append(multiprocessing.RLock())
    return {"item": np.array([item])}


LOCKING = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
from test_engines import Job, Pool, begin, locking
pool = Pool(2, begin)
print(len(list(pool.run(Job("locking", [1, 2, 3], locking, None), Path({folder!r})))))
pool.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks without names are there on POSIX")
def test_the_end_is_not_followed_by_a_line_about_semaphores(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), *sys.path]
    code = LOCKING.format(paths=paths, folder=str(tmp_path / "parts"))
    env = os.environ | {"PYTHONPATH": ":".join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
