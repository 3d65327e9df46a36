"""A process that helps another: it makes its own shards of that one's discoveries, and nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable

import torch

from vitprune.core.errors import UserError
from vitprune.core.progress import Reporter
from vitprune.recipe import parse
from vitprune.runs import choose
from vitprune.runs.engine.parts import Manifest
from vitprune.runs.engine.processes import POLL, Team, device_of_rank
from vitprune.runs.order import STAGES, stage_digest
from vitprune.runs.stages import score
from vitprune.runs.state.context import Context


def serve(context: Context, rank: int, size: int, gone: Callable[[], bool] = lambda: False) -> None:
    """Make this process's shards of every discovery; the first process has the folder's lock and everything else.

    Returns early when `gone()` says that nobody waits for them any more.
    """
    context.adapt()
    split = stage_digest(STAGES[0], context, {})
    if not _until(lambda: context.folder.is_current("split", split), gone):
        return
    if context.recipe.criterion.name == "auto":
        if not _until(lambda: choose.settled(context) is not None, gone):
            return
        context.recipe = choose.settled(context) or context.recipe
    me = Team(rank, size)
    for found in score.discoveries(context):
        plan: list[Manifest] = []
        if not _until(lambda found=found, plan=plan: score.planned(context, found, plan), gone):  # type: ignore[misc]
            return
        for start in me.order(plan[0])[: len(range(rank, len(plan[0].starts), size))]:
            if gone():
                return
            plan[0].ensure(start, score.scorer(context, found), score.keeps(found), context.room(found.nodes))


def _until(done: Callable[[], bool], gone: Callable[[], bool]) -> bool:
    while not done():
        if gone():
            return False
        time.sleep(POLL)
    return True


def main() -> None:
    """A helper of `--workers`: rank, size, threads, device; the recipe on standard input."""
    rank, size, threads, device = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    parent = os.getppid()
    torch.set_num_threads(threads)
    made = parse.parse(sys.stdin.read(), "recipe of the first process")
    chosen = device_of_rank("cuda" if device.startswith("cuda") else device, rank)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            serve(Context.join(made, chosen, Reporter(quiet=True)), rank, size, lambda: os.getppid() != parent)
        except UserError as error:
            print(f"worker {rank}: {error}; the others go on", file=sys.stderr)


if __name__ == "__main__":
    main()
