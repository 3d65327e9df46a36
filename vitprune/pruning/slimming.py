"""The one sentence: a plan and a repairer to a slim, repaired model."""

from __future__ import annotations

from torch import nn

from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair.repair import Repairer, State


def slim(plan: Plan, repairer: Repairer, state: State) -> nn.Module:
    """A copy of the dense model of `state` (see `Repairer.prepare`) without the units that the plan drops, repaired."""
    made = surgery.slim(state.dense, plan)
    repairer.repair(made, plan, state)
    return made
