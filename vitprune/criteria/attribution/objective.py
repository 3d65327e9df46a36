"""What an attribution differentiates: probability, logit or log-probability of the label."""

from __future__ import annotations

from torch import Tensor


def objective(logits_RC: Tensor, labels_R: Tensor, of: str) -> Tensor:
    """What is attributed, per row [R]."""
    if of == "probability":
        logits_RC = logits_RC.softmax(-1)
    elif of == "log-probability":
        logits_RC = logits_RC.log_softmax(-1)
    return logits_RC.gather(1, labels_R[:, None])[:, 0]
