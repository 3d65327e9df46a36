"""What an attribution differentiates: probability, logit or log-probability of the label."""

from __future__ import annotations

from torch import Tensor

from vitprune.criteria.settings import Attribution


def objective(logits_RC: Tensor, labels_R: Tensor, how: Attribution) -> Tensor:
    """What is attributed, per row [R]."""
    if how.objective == "probability":
        logits_RC = logits_RC.softmax(-1)
    elif how.objective == "log-probability":
        logits_RC = logits_RC.log_softmax(-1)
    return logits_RC.gather(1, labels_R[:, None])[:, 0]
