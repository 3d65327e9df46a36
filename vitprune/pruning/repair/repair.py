"""Repair of a model whose units are gone, from images of the probe split; labels play no part.

`sequential` and `layerwise` go block by block (layerwise.py); `+head` fits the classifier to the dense model's predictions
after that (head.py), `+distill` adds a short training by the dense model (distill.py). `mean` and `affine` need only the
hidden units of the dense model: with S the kept and P the pruned units, μ and C the mean and centred covariance of a block's
hidden units over all tokens of all probe images (in the last block over the tokens that the head reads: what its FFN does to
the others is never seen; on a fold of the probe split leaving them out was worth 0 to 0.9 points), W2 = fc2.weight and
b2 = fc2.bias:

    mean     b2 += W2_P μ_P
    affine   B = C_PS (C_SS + λI)⁻¹;   W2_S += W2_P B;   b2 += W2_P (μ_P − B μ_S)      λ = ridge · mean diag C_SS

Affine is the ridge regression of the pruned units on the kept ones; the centring is what makes it work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.least_squares import RIDGE, Moments
from vitprune.model import families
from vitprune.model.inside import blockwise
from vitprune.model.inside.moments import moments as moments_of
from vitprune.model.sites import ffn
from vitprune.pruning.plan import Plan
from vitprune.pruning.repair import attention, distill, head, layerwise
from vitprune.pruning.repair.fold import _refit_all, _refit_normed
from vitprune.pruning.repair.names import Recovery, closed_form, needs_images, needs_moments
from vitprune.pruning.repair.streams import DenseStreams

DISTILL_EPOCHS = 3
Batches = Callable[[], Iterable[Tensor]]  # of images [B, C, H, W], the same at every call


def chosen(asked: Recovery | Literal["auto"], model: nn.Module, whole: bool = False) -> Recovery:
    """The repair; `auto` is layerwise where the blocks come in halves, affine elsewhere. Under a budget of the whole model
    the classifier is repaired after them, where it can be."""
    if asked != "auto":
        return asked
    if blockwise.halves(model) is None:
        return "affine"
    return "layerwise+head" if whole and head.why_not(model) is None else "layerwise"


@dataclass(frozen=True, slots=True)
class State:
    """What repairs of several slim models share: the dense model, the images, its moments (mean, affine) and, where they are
    kept, its streams (sequential, layerwise). `others` says who helps with a slim model that is ready to be repaired."""

    dense: nn.Module
    images: Batches | None
    moments: Sequence[Moments] = ()
    streams: DenseStreams | None = None
    others: Callable[[nn.Module], layerwise.Others] | None = None


@dataclass(frozen=True, slots=True)
class Repairer:
    """A repair with its settings. `prepare` looks at the dense model, once; `repair` mends as many slim models as there are.

    `ridge` None: 1e-3 for mean and affine, chosen per layer on a fifth of the images by those that go block by block.
    `epochs` are those of distillation. `scratch`: a folder for what does not fit into memory, that of temporary files if
    None; nothing is left there, however this process ends. `track` follows the blocks.
    """

    method: Recovery
    ridge: float | None = None
    epochs: int = DISTILL_EPOCHS
    scratch: Path | None = None
    track: layerwise.Track = iter

    def prepare(
        self,
        dense: nn.Module,
        images: Batches | None = None,
        *,
        moments: Sequence[Moments] | None = None,
        streams: DenseStreams | None = None,
        others: Callable[[nn.Module], layerwise.Others] | None = None,
    ) -> State:
        """What the repair of any slim copy of `dense` needs. `moments` are taken where they are known already; `streams`
        are kept from one repair to the next where room for them is given; `others` as in `State`. Raises UserError where
        images are needed and there are none."""
        lacking = needs_moments(self.method) and moments is None
        if images is None and (needs_images(self.method) or lacking):
            raise UserError(f"recovery `{self.method}`: needs images; pass some or take recovery: none")
        if lacking:
            assert images is not None
            moments = moments_of(dense, families.ffn_sites(dense), images())
        return State(dense, images, moments or (), streams, others)

    @torch.no_grad()
    def repair(self, slim: nn.Module, plan: Plan, state: State) -> None:
        """Repair `slim`, the dense model without the units that the plan drops, in place.

        Raises UserError where a norm stands in front of fc2 and there are no images.
        """
        if plan.whole:
            return  # nothing is gone, so nothing is repaired: every weight stays to the bit
        solved, others = closed_form(self.method), layerwise.Others()
        if solved != "none":
            ffn.add_biases(slim, families.ffn_sites(slim))
        if solved in ("mean", "affine"):
            self._fold(slim, plan, state)
        elif solved != "none":
            assert state.images is not None
            others = others if state.others is None else state.others(slim)
            layerwise.repair(
                slim, state.dense, state.images(), attention=solved == "layerwise", ridge=self.ridge, track=self.track,
                kept=state.streams, scratch=self.scratch, others=others,
            )  # fmt: skip
        if self.method.endswith("head"):
            assert state.images is not None
            head.refit(slim, state.dense, state.images(), others.told and others.told())
        if self.method.endswith("distill"):
            assert state.images is not None
            distill.distill(slim, state.dense, state.images, epochs=self.epochs)

    def _fold(self, slim: nn.Module, plan: Plan, state: State) -> None:
        """`mean` and `affine`, in front of a norm from images."""
        solved, strength = closed_form(self.method), RIDGE if self.ridge is None else self.ridge
        cuts = [cut.curve.site for cut in plan.attention.values() if not cut.whole]
        if cuts and state.images is None:
            raise UserError(f"recovery `{self.method}`: slim attention is mended from images; pass some")
        if cuts and state.images is not None:
            last = families.ffn_sites(state.dense)[-1].block
            attention.refit(slim, state.dense, cuts, last, state.images(), solved, strength)
        _refit_all(slim, state.dense, plan, state.moments, solved, strength)
        normed = [site for site in families.ffn_sites(state.dense) if site.norm is not None]
        if state.images is not None:
            _refit_normed(slim, state.dense, plan, state.images(), solved, strength)
        elif normed:
            raise UserError(f"recovery `{self.method}`: {normed[0].norm} sees the kept units only; images are needed")
