"""What the rest needs to know of a model, whatever its family: token slices for criteria, shapes, sizes, devices.

Which families there are, and where each keeps its FFNs, is in `families.py`; blocks in two halves are in `halves.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.families import ffn_sites, input_shape, token_layout
from vitprune.model.inside import hooks
from vitprune.model.inside.blockwise import Halves, halves
from vitprune.model.sites.ffn import FfnSite

__all__ = ["Halves", "ffn_sites", "halves", "input_shape", "token_layout"]


def tokens_read(model: nn.Module) -> slice | Tensor:
    """The tokens of the last block that the head reads; what the last FFN does to the others is never seen.

    Of a backbone whose every token is read, positions: the class token as often as there are others, as it weighs as much as
    they do together (see `backbone.Output`).
    """
    layout = token_layout(model)
    if families.reads(model) == "tokens" and layout.class_token:
        count = tokens_per_site(model, ffn_sites(model))[-1]
        return torch.arange(2 - count, count).clamp_min(0) if count > 1 else torch.zeros(1, dtype=torch.int64)
    return slice(layout.start, layout.stop)


def scored_tokens(model: nn.Module, tokens: str, criterion: str) -> slice:
    """Where hidden units are assigned: the class token, the patches, or every token."""
    if tokens == "cls":
        require_class_token(model, criterion)
        return slice(0, 1)
    return slice(0, None) if tokens == "all" else slice(token_layout(model).prefix, None)


def require_class_token(model: nn.Module, criterion: str) -> None:
    """Class-token criteria need a head that reads the class token."""
    if not token_layout(model).class_token:
        raise UserError(f"criterion `{criterion}`: scores the class token, but this model's head does not read one")


@torch.no_grad()
def tokens_per_site(model: nn.Module, sites: Sequence[FfnSite]) -> list[int]:
    """How many tokens of one image each FFN sees, from a pass of an empty image."""
    seen = [0] * len(sites)

    def count(position: int, hidden_BTN: Tensor) -> None:
        seen[position] = hidden_BTN.shape[1]

    with hooks.hidden_units(model, sites, count):
        model(next(model.parameters()).new_zeros(1, *input_shape(model)))
    return seen


def stream_width(model: nn.Module, site: FfnSite) -> int:
    """D: how many numbers the FFN writes for each token."""
    fc2 = model.get_submodule(site.fc2)
    assert isinstance(fc2, nn.Linear)
    return fc2.out_features
