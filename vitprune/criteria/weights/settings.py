"""The settings of the criteria in this folder; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, StrictInt

from vitprune.criteria.settings import About, Seed


@dataclass(frozen=True, slots=True)
class Slim:
    """ViT-Slim's training: AdamW at `rate`, `pressure` times Σ|ζ| beside the loss, the weights trained along or frozen."""

    epochs: Annotated[StrictInt, Field(ge=1, le=1000), About("vit-slim: passes over the images")] = 10
    rate: Annotated[float, Field(gt=0, le=1), About("vit-slim: AdamW's learning rate")] = 5e-4
    pressure: Annotated[float, Field(ge=0), About("vit-slim: weight of the gates' L1 norm")] = 1e-4
    train_weights: Annotated[bool, About("vit-slim: the weights train along with the gates")] = False
    seed: Seed = 0
