"""The library's verbs on tensors and modules; none of them writes a file but `run`, `save` and `export`."""

from vitprune.api.compressing import compress
from vitprune.api.declaring import declare
from vitprune.api.outcome import evaluate, export, run
from vitprune.api.saving import save
from vitprune.api.scoring import discover, path_scores
from vitprune.api.slimming import prune

__all__ = ["compress", "declare", "discover", "evaluate", "export", "path_scores", "prune", "run", "save"]
