"""What a vision-language model's text owes to the image: nats per text token with the right, another and no image.

Lower is better. `reliance` is what another image costs; a model that reads nothing off the image has 0. The text alone has
neither image nor prompt before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.model.vlm import tokens
from vitprune.model.vlm.pairs import Pair
from vitprune.model.vlm.preparing import Preparer
from vitprune.model.vlm.tokens import Sample

WAYS = ("right", "shuffled", "none", "alone")


@torch.no_grad()
def nll(model: nn.Module, samples: Sequence[Sample], batch: int = 16) -> Tensor:
    """Of every sample [S] float64 the mean of −log p over its text's tokens; a sequence's first token is never asked for."""
    device, found = device_of(model), []
    for _, made in tokens.batches(samples, getattr(model, "config", None), batch):
        one = made.to(device)
        logits, said = tokens.text_logits(model, one)
        log_p = logits.float().log_softmax(-1).gather(1, said[:, None])[:, 0].double()
        counts = one.kinds.text[:, 1:].sum(1)
        found.append(
            torch.stack([-part.mean() if len(part) else part.sum() for part in log_p.split(counts.tolist())]).cpu()
        )
    return torch.cat(found)


@dataclass(frozen=True, slots=True)
class Exam:
    """Nats per text token [S] of the same pairs in each of WAYS."""

    nll: dict[str, Tensor]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each, and `reliance`: shuffled − right."""
        found = {way: float(values.mean()) for way, values in self.nll.items()}
        return found | {"reliance": found["shuffled"] - found["right"]}


def prepared(preparer: Preparer, pairs: Sequence[Pair], seed: int = 0) -> dict[str, list[Sample]]:
    """The pairs' samples in each of WAYS; in `shuffled` no pair has an image of its own file or text. Raises UserError where
    the pairs are too alike for that."""
    others = derangement(pairs, seed)
    return {
        "right": [preparer.sample(pair) for pair in pairs],
        "shuffled": [preparer.sample(pair, pairs[i].image) for pair, i in zip(pairs, others, strict=True)],
        "none": [preparer.without_image(pair) for pair in pairs],
        "alone": [preparer.alone(pair) for pair in pairs],
    }


def derangement(pairs: Sequence[Pair], seed: int) -> list[int]:
    """For every pair the place of another whose image and text are both different."""
    draw, found = torch.Generator().manual_seed(seed), []
    for pair in pairs:
        order = torch.randperm(len(pairs), generator=draw).tolist()
        other = next((i for i in order if pairs[i].image != pair.image and pairs[i].text != pair.text), None)
        if other is None:
            raise UserError(f"{pair.where}: no other pair has another image and another text; the exam needs some")
        found.append(other)
    return found


def examine(model: nn.Module, samples: dict[str, list[Sample]], batch: int = 16) -> Exam:
    """The exam of a model on samples that `prepared` made."""
    return Exam({way: nll(model, made, batch) for way, made in samples.items()})
