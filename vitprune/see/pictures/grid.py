"""Where an FFN's patch tokens lie in the image: which tokens are no patches, how many rows and columns, in which order.

Legend: B images, T tokens of a site, P patches among them, k units, g x g' the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models import hiera, naflexvit, swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.sites.ffn import FfnSite

SWIN = (swin_transformer.SwinTransformer, swin_transformer_v2.SwinTransformerV2)
IN_ROWS = ("torchvision", "transformers")  # whose patches are known to come row by row behind the prefix


@dataclass(frozen=True, slots=True)
class Grid:
    """`prefix` tokens are no patches; patch (y, x) is token prefix + `order`[y · columns + x] (None: row by row)."""

    prefix: int
    rows: int
    columns: int
    order: Tensor | None = None

    def arrange(self, hidden_BTk: Tensor) -> Tensor:
        """Values of every token as maps [B, k, g, g'], prefix tokens dropped."""
        patches = hidden_BTk[:, self.prefix :]
        if self.order is not None:
            patches = patches[:, self.order.to(patches.device)]
        return patches.transpose(1, 2).unflatten(2, (self.rows, self.columns))


def grid_of(model: nn.Module, site: FfnSite, tokens: int, image: tuple[int, int]) -> Grid:
    """The grid of an FFN that sees `tokens` tokens of an image of height and width `image`.

    Raises UserError naming the family where the order of its tokens is not known or they are no rectangle.
    """
    prefix = families.token_layout(model).prefix
    if isinstance(model, hiera.Hiera):
        return _rerolled(model, site, tokens)
    if isinstance(model, SWIN):
        stage: Any = model.get_submodule(site.name.rpartition(".")[0])
        rows, columns = stage.input_resolution
        return _checked(model, Grid(0, int(rows), int(columns)), tokens)
    if isinstance(model, Foreign):
        if type(model.net).__module__.partition(".")[0] not in IN_ROWS:
            raise UserError(_refused(model, "the order of its tokens is not known"))
        rows = round(((tokens - prefix) * image[0] / image[1]) ** 0.5)
        return _checked(model, Grid(prefix, rows, (tokens - prefix) // max(rows, 1)), tokens)
    down, across = _patch(model)
    return _checked(model, Grid(prefix, image[0] // down, image[1] // across), tokens)


def _patch(model: nn.Module) -> tuple[int, int]:
    """Height and width of a patch's step."""
    if isinstance(model, naflexvit.NaFlexVit):
        size = model.embeds.patch_size
        return int(size[0]), int(size[1])
    proj: Any = model.get_submodule("patch_embed.proj")
    return int(proj.stride[0]), int(proj.stride[1])


def _rerolled(model: hiera.Hiera, site: FfnSite, tokens: int) -> Grid:
    """Hiera keeps the tokens of a mask unit together; it can say itself where each belongs."""
    numbers = torch.arange(tokens, dtype=torch.float32, device="cpu")
    placed = model.reroll(numbers[None, :, None], site.block)[0, ..., 0]
    if placed.ndim != 2:
        raise UserError(_refused(model, "its tokens have a third direction"))
    return Grid(0, placed.shape[0], placed.shape[1], placed.flatten().long())


def _checked(model: nn.Module, grid: Grid, tokens: int) -> Grid:
    if grid.rows * grid.columns != tokens - grid.prefix:
        what = f"{tokens - grid.prefix} patch tokens are no grid of {grid.rows} x {grid.columns}"
        raise UserError(_refused(model, what))
    return grid


def _refused(model: nn.Module, why: str) -> str:
    kind = type(model.net if isinstance(model, Foreign) else model).__name__
    return f"see: maps: {kind}: {why}; leave `maps`, `masks` and `blocks` out of see.parts"
