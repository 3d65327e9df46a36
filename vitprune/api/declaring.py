"""A model of one's own, made fit for the other verbs.

Legend: N images [N, C, H, W] as the model takes them (already normalised), labels [N] output indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import door, families
from vitprune.model.declared import Foreign
from vitprune.model.inside import hooks
from vitprune.model.sites.base import TokenLayout
from vitprune.model.sites.ffn import FfnSite
from vitprune.pruning import surgery
from vitprune.pruning.plan import Plan

TRUE_ENOUGH = 1e-3  # largest difference of logits between masked and sliced, as a share of the largest logit


def declare(
    model: nn.Module,
    ffns: Sequence[tuple[str, ...]],
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    prefix_tokens: int = 0,
    class_token: bool = False,
) -> nn.Module:
    """A model of one's own, fit for the other verbs, from the paths of its FFNs' layers in the order of the pass.

    An FFN is (fc1, act, fc2), or (fc1, act, fc2, gate) where fc2 reads act(gate(x))·fc1(x). `prefix_tokens` of the
    tokens come before the patches; with `class_token` the head reads the first of them alone. Raises UserError naming
    the FFN for which leaving out hidden units is not the same as setting them to zero.
    """
    net = door.bare("declare", model)
    layout = TokenLayout(prefix_tokens, class_token, 0, 1 if class_token else None)
    made = Foreign(net, ffns, input_shape, num_classes, layout)
    sites = families.ffn_sites(made)
    like = next(net.parameters())
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape, generator=draw).to(like)
    half = {site.name: torch.arange(site.size) % 2 == 0 for site in sites}
    with door.Inside(made):
        _check_pass(made, sites, images, num_classes)
        if not _sliced_as_masked(made, half, images):
            for site, paths in zip(sites, ffns, strict=True):
                alone = {name: keep if name == site.name else torch.ones_like(keep) for name, keep in half.items()}
                if not _sliced_as_masked(made, alone, images):
                    raise UserError(f"{paths[0]}: its outputs are not the hidden units that {paths[2]} reads")
    return made


@torch.no_grad()
def _check_pass(model: nn.Module, sites: Sequence[FfnSite], images: Tensor, num_classes: int) -> None:
    """A pass gives that many logits and goes through every declared FFN once, in their order."""
    seen: list[int] = []
    try:
        with hooks.hidden_units(model, sites, lambda position, _: seen.append(position)):
            logits = model(images)
    except Exception as error:  # whatever a model may raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"declare: the model cannot run images {list(images.shape)} ({reason}); see input_shape"
        ) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != [len(images), num_classes]:
        raise UserError(f"declare: for {len(images)} images the model gives {found}, not logits [N, {num_classes}]")
    if seen != list(range(len(sites))):
        order = ", ".join(sites[i].fc2.partition(".")[2] for i in seen[:12])
        raise UserError(
            f"declare: a pass calls {order or 'none of the FFNs'}; each has to be called once, in the order given"
        )


def _sliced_as_masked(model: nn.Module, keep: dict[str, Tensor], images: Tensor) -> bool:
    """Whether leaving units out is the same as zeroing them; shapes that no longer fit tell that it is not."""
    try:
        return surgery.masked_vs_sliced(model, Plan(keep), images) < TRUE_ENOUGH
    except RuntimeError:
        return False
