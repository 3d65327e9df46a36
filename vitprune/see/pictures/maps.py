"""Heat maps of units: where in an image each fires, on one scale per unit.

A map is the unit's value at every patch, clipped at 0 (of a gated FFN its size, for its sign is free), on the grid of the
patches, then bilinear on the image's pixels. The scale is the 99.9th percentile of the unit's maps over all probe images:
a unit that is silent on an image looks silent. Legend: B images, k units, g x g' the grid, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitprune.model.inside import blockwise, hooks
from vitprune.model.sites.ffn import FfnSite
from vitprune.see.pictures import reading
from vitprune.see.pictures.grid import Grid, grid_of

QUANTILE = 0.999  # of a unit's maps over the probe images: the top of its colour scale
OUTLIER = 5.0  # times the median norm of an image's tokens: a register or an artefact
SILENT, EVEN = "does not fire here", "fires alike everywhere"


def maps(model: nn.Module, site: FfnSite, units: Sequence[int], images: Tensor, side: reading.Side = "post") -> Tensor:
    """The units' maps [B, k, g, g']: clipped after the activation (`post`), as they are before it (`pre`)."""
    return all_maps(model, [site], [units], images, side)[0]


@torch.no_grad()
def all_maps(
    model: nn.Module,
    sites: Sequence[FfnSite],
    units: Sequence[Sequence[int]],
    images: Tensor,
    side: reading.Side = "post",
) -> list[Tensor]:
    """`maps` of several sites from one pass, in the order of the pass.

    Raises UserError for tokens that are on no known grid, and for units that are not finite.
    """
    made = []
    for site, own, found in zip(sites, units, reading.hidden(model, sites, images, side), strict=True):
        grid = grid_of(model, site, found.shape[1], (images.shape[2], images.shape[3]))
        laid = grid.arrange(reading.finite(site, found[..., list(own)]))
        if side == "post":
            laid = laid.abs() if reading.gated(site) else laid.relu()
        made.append(laid)
    return made


def upsample(maps_Bkgg: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps on the pixels of the image, [B, k, H, W]: bilinear, the corners of the pixels not aligned.

    Nowhere beyond the map's own values, not even by a rounding: a flat map stays flat.
    """
    large = F.interpolate(maps_Bkgg, size, mode="bilinear", align_corners=False)
    return large.clamp(maps_Bkgg.amin((2, 3), keepdim=True), maps_Bkgg.amax((2, 3), keepdim=True))


def levels(map_HW: Tensor, scale: float) -> tuple[np.ndarray, str | None]:
    """A map on its unit's scale, 0 to 1, and what is to be said of one without a shape (`SILENT`, `EVEN`)."""
    values = map_HW.double().cpu().numpy()
    if not (values > 0).any() or not scale > 0:
        return np.zeros_like(values), SILENT if not (values > 0).any() else None
    return np.clip(values / scale, 0, 1), EVEN if values.min() == values.max() else None


@torch.no_grad()
def outlier_share(model: nn.Module, site: FfnSite, images: Tensor, maps_Bkgg: Tensor) -> Tensor | None:
    """Per image and unit the share of the map that lies on tokens of outlying norm, [B, k]; 0 for a silent map.

    The norm is that of the stream into the block, outlying above five times the median of the image's patches. None where
    the block's stream is not known.
    """
    block = _block(model, site)
    if block is None:
        return None
    stream = hooks.input_of(block, lambda: model(images))
    norms = stream.flatten(1, -2).norm(dim=-1, keepdim=True)
    grid = grid_of(model, site, norms.shape[1], (images.shape[2], images.shape[3]))
    if norms.shape[1] - grid.prefix != maps_Bkgg[0, 0].numel():
        return None
    laid = grid.arrange(norms)
    outlying = laid > OUTLIER * laid.flatten(1).median(1).values[:, None, None, None]
    mass = maps_Bkgg.clamp(min=0).double()
    return (mass * outlying).sum((2, 3)) / mass.sum((2, 3)).clamp(min=1e-300)


def gradient_map(
    model: nn.Module, site: FfnSite, unit: int, output: int, images: Tensor, std: Sequence[float]
) -> Tensor:
    """Which patches raise the unit at the tokens that speak for a class, [B, g, g'].

    Tokens are ranked by the class's logit of what the FFN writes there, put through norm and head as it is; the gradient
    of Σ_n 0.5ⁿ·h[token_n] at the pixels (0 to 1, channels added up) is clipped to [0, 1] and averaged over each patch. A
    model that does not come in halves has its tokens ranked by the unit itself.
    """
    pixels = images.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        found = reading.hidden(model, [site], pixels)[0]
        ranked = _logits(model, site, found.detach(), output, unit).argsort(stable=True, dim=1, descending=True)
        weights = torch.zeros_like(ranked, dtype=found.dtype)
        halves = 0.5 ** torch.arange(ranked.shape[1], dtype=found.dtype, device=found.device)
        weights.scatter_(1, ranked, halves.expand_as(weights))
        (gradient,) = torch.autograd.grad((weights * found[..., unit]).sum(), pixels)
    per_pixel = (gradient / torch.tensor(list(std)).to(gradient)[:, None, None]).sum(1).clamp(0, 1)
    grid = grid_of(model, site, found.shape[1], (images.shape[2], images.shape[3]))
    return F.adaptive_avg_pool2d(per_pixel[:, None], (grid.rows, grid.columns))[:, 0]


@torch.no_grad()
def _logits(model: nn.Module, site: FfnSite, hidden_BTN: Tensor, output: int, unit: int) -> Tensor:
    """What is ranked: the class's logit of every token's write [B, T], or the unit's own value."""
    parts = blockwise.halves(model)
    if parts is None:
        return hidden_BTN[..., unit]
    written = parts.scaled(site.block, "ffn", parts.fc2(site.block)(hidden_BTN))
    rows = written.flatten(0, 1)[:, None].expand(-1, hidden_BTN.shape[1], -1)
    return torch.cat([parts.logits(part)[:, output] for part in rows.split(64)]).view(hidden_BTN.shape[:2])


def auroc(values_N: np.ndarray, own_N: np.ndarray) -> float | None:
    """How often an image of the own class has the higher value than one of another (ties half): 0.5 is chance.

    None where one of the two has no image.
    """
    own = np.asarray(own_N, bool)
    inside, outside = int(own.sum()), int((~own).sum())
    if not inside or not outside:
        return None
    from scipy.stats import rankdata  # large, and not before it is wanted

    above = rankdata(values_N)[own].sum() - inside * (inside + 1) / 2
    return float(above / (inside * outside))


def pooled(found_BTk: Tensor, grid: Grid) -> Tensor:
    """The largest value among an image's patches, [B, k]."""
    return grid.arrange(found_BTk).amax((2, 3))


def _block(model: nn.Module, site: FfnSite) -> nn.Module | None:
    """The block that an FFN is in, where a family keeps its blocks in a row of them."""
    steps = site.name.split(".")
    if "blocks" not in steps[:-1]:
        return None
    return model.get_submodule(".".join(steps[: steps.index("blocks") + 2]))
