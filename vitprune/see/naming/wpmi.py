"""Soft-WPMI of CLIP-Dissect (Oikarinen & Weng, ICLR 2023): which concept a unit's strongest images have in common.

With S the softmax over concepts of ten times CLIP's cosines, a unit's images from the strongest i = 0 to K − 1, and
p_i from .998 down to .97: Σ_i log(1 + p_i (S_ic − 1)), less what the units of the layer have of it on average,
λ (log Σ_units exp − log units). So a name is relative to the layer: the same unit of a pruned one has another, and the
only unit of a layer has the score 0 for every concept. Legend: N images, C concepts, H units, K images of a unit.
"""

from __future__ import annotations

import numpy as np

SHARP = 10.0  # of the softmax
IMAGES = 100  # of a unit, at most
HIGH, LOW = 0.998, 0.97  # how sure it is that a unit's images show its concept
LAMBDA = 1.0
CHUNK = 1 << 23  # numbers of a table of units by concepts


def soft(cosines_NC: np.ndarray) -> np.ndarray:
    """How probable each concept is for each image, [N, C]."""
    wide = SHARP * cosines_NC.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    np.exp(wide, out=wide)
    made: np.ndarray = wide / wide.sum(1, keepdims=True)
    return made


def scores(soft_NC: np.ndarray, images_HK: np.ndarray) -> np.ndarray:
    """Every unit's score for every concept, [H, C]; `images_HK`: rows of `soft_NC`, the strongest first."""
    count = images_HK.shape[1]
    found = np.zeros((len(images_HK), soft_NC.shape[1]))
    for i in range(count):
        sure = HIGH - (i / count) * (HIGH - LOW)
        found += np.log(1 + sure * (soft_NC[images_HK[:, i]] - 1) + 1e-7)
    high = found.max(0)
    shared = high + np.log(np.exp(found - high).sum(0)) - np.log(len(found))
    made: np.ndarray = found - LAMBDA * shared
    return made


def best(soft_NC: np.ndarray, images_HK: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Per unit its `count` highest concepts and their scores, [H, count]; of equal ones the earlier comes first. Concepts
    are looked at in portions: the layer's average is each concept's own."""
    units, concepts = len(images_HK), soft_NC.shape[1]
    names, values = np.zeros((units, 0), np.int64), np.zeros((units, 0))
    for at in range(0, concepts, max(1, CHUNK // units)):
        part = scores(soft_NC[:, at : at + max(1, CHUNK // units)], images_HK)
        names = np.concatenate([names, np.broadcast_to(at + np.arange(part.shape[1]), part.shape)], 1)
        values = np.concatenate([values, part], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        names, values = np.take_along_axis(names, order, 1), np.take_along_axis(values, order, 1)
    return names, values
