"""Integrated gradients of one unit at a time: the paper's Appendix B, after Dai et al. 2022 ("knowledge neurons").

w̄_j · ∫ ∂p/∂w_j dα with unit j alone at α·w̄_j, every other unit of every block live; no path. With enough nodes it is
p(clean) − p(unit removed). The engine of `jas.py` with `candidates: each` and an empty path; a `shortlist` limits it to
the best of the parallel pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor, nn

from vitprune.criteria.attribution.jas import alone
from vitprune.criteria.attribution.settings import Alone, Jas
from vitprune.model.sites.ffn import FfnSite


def knowledge_attribution(
    model: nn.Module,
    sites: Sequence[FfnSite],
    images: Tensor,
    labels: Tensor,
    *,
    ts: Sequence[int],
    how: Alone,
) -> dict[int, list[Tensor]]:
    """Scores per block [B, N], the same for every t; images and labels as in `jas`."""
    settings = Jas(formula="joint-ig", candidates="each", **asdict(how))
    return dict.fromkeys(ts, alone(model, sites, images, labels, settings))
