"""Two plain uses of features, trained on some images and judged on others: the nearest neighbours' vote, and a linear probe.

Legend: M images to learn from, N to judge, D width of a feature, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitprune.exam.features import nearest

K = 20  # neighbours that vote
SHARPNESS = 0.07  # of the vote: exp(cosine / 0.07), as for DINO's features
STRENGTH = 1e-3  # of the probe's ridge, on standardised features
STEPS = 200


def vote(bank_MD: Tensor, labels_M: Tensor, queries_ND: Tensor, classes: int, k: int = K) -> Tensor:
    """The class [N] that the k nearest of the bank vote for, each by exp(cosine / 0.07)."""
    which, alike = nearest(queries_ND, bank_MD, min(k, len(bank_MD)))
    votes = torch.zeros(len(queries_ND), classes, dtype=torch.float64)
    weight = ((alike - alike[:, :1]) / SHARPNESS).exp()
    votes.scatter_add_(1, labels_M[which], weight)
    return votes.argmax(1)


def probe(bank_MD: Tensor, labels_M: Tensor, queries_ND: Tensor, classes: int) -> Tensor:
    """The class [N] that a linear probe gives: multinomial logistic regression on features standardised by the bank,

    min over W, b of   mean CE(W f + b) + r/2 ‖W‖²,   r = 1e-3
    """
    bank, queries = bank_MD.double(), queries_ND.double()
    mean, sd = bank.mean(0), bank.std(0, correction=0)
    scale = torch.where(sd > 1e-6 * sd.max(), sd, torch.inf)
    weight = fitted((bank - mean) / scale, labels_M, classes)
    found: Tensor = ((queries - mean) / scale) @ weight[:-1] + weight[-1]
    return found.argmax(1)


@torch.enable_grad()
def fitted(x_MD: Tensor, labels_M: Tensor, classes: int) -> Tensor:
    """[D + 1, C]: the weights, and below them the biases."""
    weight = torch.zeros(x_MD.shape[1] + 1, classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        lost = F.cross_entropy(x_MD @ weight[:-1] + weight[-1], labels_M) + STRENGTH / 2 * weight[:-1].square().sum()
        lost.backward()
        return lost

    search.step(loss)
    return weight.detach()
