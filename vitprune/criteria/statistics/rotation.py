"""Rotations of a head's values and of its queries and keys, after which its dimensions are in the order of what they do.

With C the covariance of what a head gives, G that of the gradient, Wo the head's columns of proj:

    G^½ Wo C^½ = U S Vᵀ;   values: A = Vᵀ C^-½ in front, its inverse C^½ V behind
    S_q^½ C_k^½ = U Σ Vᵀ;  queries: Σ^½ Uᵀ S_q^-½,  keys: Σ^-½ Uᵀ S_q^½

The first r rows of the latter give the logits of rank r with the least squared error, Σ's tail, for every r.
Legend: H heads, d dimensions of a head, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # of the mean (values) or the largest (queries, keys) eigenvalue: heads are rank-deficient


def roots(matrix_Hdd: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square roots of positive semidefinite matrices and their inverses, eigenvalues clamped."""
    values, vectors = torch.linalg.eigh(matrix_Hdd)
    least = (FLOOR * values.mean(-1, keepdim=True)).clamp_min(1e-30)
    strong = values.clamp_min(0).maximum(least).sqrt()
    return (vectors * strong[..., None, :]) @ vectors.mT, (vectors / strong[..., None, :]) @ vectors.mT


def of_values(weight_DN: Tensor, covariance_NN: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What goes in front [H, d, d] (on the values) and behind (its inverse, on proj's columns), strongest first.

    `weight_DN` is G^½ Wo of all heads.
    """
    d = len(covariance_NN) // heads
    own = torch.stack([covariance_NN[h * d : (h + 1) * d, h * d : (h + 1) * d] for h in range(heads)])
    strong, weak = roots(own)
    columns = weight_DN.unflatten(1, (heads, d)).transpose(0, 1)
    _, _, right = torch.linalg.svd(columns @ strong, full_matrices=False)
    if right.shape[1] < d:  # fewer rows than dimensions: the others do nothing, in any order
        _, _, right = torch.linalg.svd(columns @ strong, full_matrices=True)
    return right @ weak, strong @ right.mT


def of_queries_and_keys(queries_Hdd: Tensor, keys_Hdd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What goes on the queries and on the keys [H, d, d], strongest first, and Σ [H, d]."""
    asked, inverse = roots(queries_Hdd)
    values, vectors = torch.linalg.eigh(keys_Hdd)
    told = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    left, sigma, _ = torch.linalg.svd(asked @ told)
    half = sigma.maximum(FLOOR * sigma[..., :1]).clamp_min(1e-30).sqrt()[..., None]
    return half * (left.mT @ inverse), (left.mT @ asked) / half, sigma
