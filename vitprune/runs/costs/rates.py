"""How fast this machine does the run's own work: a few batches of it, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprune.core.errors import UserError
from vitprune.criteria.catalog import CRITERIA
from vitprune.criteria.statistics.elimination import eliminate
from vitprune.exam.logits import predictor
from vitprune.images import decode_pool
from vitprune.runs.costs.formulas import elimination
from vitprune.runs.stages.image_scores import Discovery
from vitprune.runs.state.run import Run

FEW = 32  # images that are decoded
SECONDS = 0.3  # of one batch, about; a single image may take longer
PASS = 2.0  # of a forward pass, which most of a run is made of: a batch of few images is slower an image
DEAR = 1.0  # seconds of a batch that is not timed as a whole
COLD = 4.0  # seconds of a first call below which it is made once more
SMALL = 384  # units of the elimination that is timed


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds an image: to open and digest it (`read`), to prepare it for the model, of a forward pass, with the way back,
    and of a criterion's own work by `name_of`. Arithmetic a second: products in float32 and in float64, and the elimination's
    (see `formulas.eliminated`). `alone`: how much faster a process is that has all threads than one of several workers."""

    read: float
    prepare: float
    forward: float
    gradient: float
    product: float
    double: float
    eliminated: float
    alone: float = 1.0
    criteria: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is timed of criteria: those that score single images, and the names of those that are sums over images; and of a
    look at the units, by what its rates are filed under, given images and their labels."""

    scored: Sequence[Discovery] = ()
    summed: Sequence[tuple[str, bool]] = ()  # criterion, and whether of attention too
    looks: Mapping[str, Callable[[Tensor, Tensor], float]] = field(default_factory=dict)


def name_of(found: Discovery) -> str:
    """What the rate of a discovery is filed under: one node of one t."""
    return f"{found.criterion} {getattr(found.how, 'tokens', '')}".strip()


def sums_of(criterion: str, attention: bool) -> str:
    """What the rate of a criterion's sums is filed under: those of several criteria can be the same."""
    found = CRITERIA[criterion].sums(attention)
    assert found is not None
    return f"sums {found.name}"


def measured(run: Run, asked: Asked) -> Rates:
    """The rates of this machine, in seconds; the threads of the run are as many as before when this returns."""
    threads, share = torch.get_num_threads(), max(1, torch.get_num_threads() // run.workers)
    model, batch = run.loaded.model, run.batching.batch
    index = _readable(run)
    ask = predictor(model)
    with _threads(threads):
        read, prepare, (x, y) = _decoded(run, index)
        whole = timed(lambda n: ask(rows(x, n)), batch, PASS) if share < threads else 0.0
    with _threads(share):
        forward = timed(lambda n: ask(rows(x, n)), batch, PASS)
        found = {sums_of(*one): _summed(run, one, x, y, batch) for one in asked.summed}
        for one in asked.scored:
            if name_of(one) not in found:
                found[name_of(one)] = _scored(run, one, x, y)
        found |= {name: look(x, y) for name, look in asked.looks.items()}
        gradient = timed(lambda n: _gradient(run, rows(x, n)), batch)
        product, double, eliminated = _arithmetic(run)
    alone = max(1.0, forward / whole) if whole else 1.0
    return Rates(read, prepare, forward, gradient, product, double, eliminated, alone, found)


def timed(work: Callable[[int], Any], most: int, seconds: float = SECONDS) -> float:
    """Seconds an item of `work(count)` at the count `most`, from calls of about `seconds`: the largest count that they allow.
    Where that is one, a second item says what a call takes beside its items. The first call pays for what later ones find
    done, and is not counted where another one can be afforded."""
    count, spent = 1, _spent(work, 1)
    spent = _spent(work, 1) if spent < COLD else spent
    while (more := min(most, count * 4)) > count and spent * more / count <= seconds:
        count, spent = more, _spent(work, more)
    if count == 1 < most and spent > SECONDS:
        each = min(max(_spent(work, 2) - spent, spent / 4), spent)
        return each + (spent - each) / most
    return (min(spent, _spent(work, count)) if count > 1 and spent < seconds / 2 else spent) / count


def in_batches(work: Callable[[int, int], Any], batch: int) -> float:
    """Seconds an item of `work(count, batches)` in many batches of `batch`. Where a whole one cannot be afforded, what is done
    once, for each batch and for each item is told apart: by one item, two batches of one, and four items."""
    each = timed(lambda count: work(count, 1), batch)
    if each * batch <= DEAR or batch < 8:
        return each
    one, two, four = (_spent(lambda _: work(n, k), n) for n, k in ((1, 1), (1, 2), (4, 1)))  # noqa: B023
    item = max((four - one) / 3, each / batch)
    return min(each, item + max(0.0, two - one - item) / batch)


def _spent(work: Callable[[int], Any], count: int) -> float:
    started = time.perf_counter()
    work(count)
    return time.perf_counter() - started


def rows(x: Tensor, count: int) -> Tensor:
    """So many rows of `x`, one after the other and again from the first."""
    return x[torch.arange(count) % len(x)]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads inside; the bits of a result hang on their number, so it is set back whatever happens."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _readable(run: Run) -> np.ndarray:
    """A few images, spread over the source; where it is split already, none of the test split. Raises UserError where none of
    them can be read."""
    found, of = [], run.split.probe if run.folder.record("split") else np.arange(len(run.source.names))
    for i in of[np.unique(np.linspace(0, len(of) - 1, FEW).astype(int))]:
        try:
            run.images.tensor(int(i))
        except UserError:  # the split says what is to be done with it
            continue
        found.append(int(i))
    if not found:
        raise UserError("none of a few images can be read")
    return np.array(found, np.int64)


def _decoded(run: Run, index: np.ndarray) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """Seconds to digest an image, seconds to prepare one, by as many threads as the run would take; and the images."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        started = time.perf_counter()
        list(pool.map(lambda i: decode_pool.content(run.source.image(int(i))), index))
        read = time.perf_counter() - started
        started = time.perf_counter()
        images = list(pool.map(lambda i: run.images.tensor(int(i)), index))
        prepare = time.perf_counter() - started
    x, y = torch.stack(images).to(run.device), torch.from_numpy(run.images.labels[index]).to(run.device)
    return read / len(index), prepare / len(index), (x, y)


def _gradient(run: Run, x: Tensor) -> None:
    """A pass forward and back to what enters the model."""
    given = x.clone().requires_grad_()
    with torch.enable_grad():
        torch.autograd.grad(run.loaded.model(given).logsumexp(-1).sum(), given)
    _wait(run)


def _summed(run: Run, asked: tuple[str, bool], x: Tensor, y: Tensor, batch: int) -> float:
    """Seconds an image of a criterion's sums."""
    name, attention = asked
    found, how = CRITERIA[name].sums(attention), run.recipe.criterion.how(name)
    assert found is not None
    of, classes = found.sums, sorted(set(y.tolist())) if len(set(y.tolist())) > 1 else [0, 1]

    def work(count: int, batches: int) -> None:
        given = [(rows(x, count), rows(y, count))] * batches
        of(run.loaded.model, run.sites, lambda: iter(given), classes=classes, how=how, first=None)
        _wait(run)

    return in_batches(work, batch)


def _scored(run: Run, found: Discovery, x: Tensor, y: Tensor) -> float:
    """Seconds an image of a criterion that scores single images, of one node and one t."""
    of, how = CRITERIA[found.criterion].score, found.how
    assert of is not None
    if getattr(how, "candidates", "") == "each":
        how = replace(how, shortlist=None, candidates="parallel")
    elif hasattr(how, "shortlist") and not hasattr(how, "candidates"):
        how = replace(how, shortlist=1)

    def work(count: int) -> None:
        given = replace(how, nodes=min(count, found.nodes)) if found.nodes > 1 else how
        images = max(1, count // found.nodes)
        of(run.loaded.model, run.sites, rows(x, images), rows(y, images), ts=found.ts[:1], how=given)
        _wait(run)

    return timed(work, found.nodes * run.batching.images_per_batch(found.nodes), 3 * SECONDS)


def _arithmetic(run: Run) -> tuple[float, float, float]:
    """Multiply-adds a second, times two: of float32 products where the model is, of float64 ones, of an elimination."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(1024, 1024, generator=draw).to(run.device)

    def product(count: int) -> None:
        for _ in range(count):
            a @ a
        _wait(run)

    def double(count: int) -> None:
        for _ in range(count):
            b @ b

    b = torch.randn(768, 768, generator=draw, dtype=torch.float64)
    flops = 2 * 1024**3 / timed(product, 4, 0.2), 2 * 768**3 / timed(double, 4, 0.2)
    n, width = min(SMALL, max(site.size for site in run.sites)), 192
    c = torch.randn(2 * n, n, generator=draw, dtype=torch.float64)
    weight = torch.randn(width, n, generator=draw, dtype=torch.float64)
    covariance = c.T @ c / len(c)
    spent = timed(lambda count: [eliminate(weight, covariance) for _ in range(count)], 2, 0.2)
    return *flops, elimination(n, width) / spent


def _wait(run: Run) -> None:
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
