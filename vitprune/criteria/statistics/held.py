"""How large what a criterion sums over images is, before any image is looked at: what no smaller batch makes smaller."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vitprune.core import memory
from vitprune.core.device import device_of
from vitprune.core.errors import UserError
from vitprune.core.least_squares import packed_size
from vitprune.criteria.catalog import CRITERIA
from vitprune.model import families
from vitprune.model.inside import pieces
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.ffn import FfnSite

DOUBLE, SINGLE = 8, 4
WITH_GRADIENTS = "fisher"  # begins the names of sums that have second moments of gradients too


def sums(criterion: str, model: nn.Module, ffns: Sequence[FfnSite], attention: bool = False) -> int:
    """Bytes of a criterion's sums, all blocks at once, float64: C [N, N] of every site, packed; in the Fisher metric G [D, D].

    0 for a criterion without any. `attention`: of attentions too, where the criterion chooses in them.
    """
    row = CRITERIA.get(criterion)
    asked = row.sums(attention) if row else None
    if row is None or asked is None:
        return 0
    gradients = asked.name.startswith(WITH_GRADIENTS)
    numbers = sum(packed_size(site.size) + gradients * _outputs(model, site.fc2) ** 2 for site in ffns)
    if attention and row.attention is not None:
        numbers += sum(_of_attention(model, site, gradients) for site in attention_sites(model))
    return DOUBLE * numbers


def _of_attention(model: nn.Module, site: AttentionSite, gradients: bool) -> int:
    """Numbers of one attention: what proj reads, its gradients, the queries and keys of every head."""
    of_heads = 2 * site.heads * (site.queries or site.dim) ** 2 if site.query_keys else 0
    return packed_size(site.heads * site.dim) + gradients * _outputs(model, site.proj) ** 2 + of_heads


def _outputs(model: nn.Module, path: str) -> int:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def require(criterion: str, model: nn.Module, attention: bool = False) -> None:
    """Raises UserError where the sums, the model and a single image cannot be in memory together on the model's device, or the
    sums on the machine itself, which leaves them on disk; it says the figures. What others use now is not counted."""
    ffns = families.ffn_sites(model)
    held, device = sums(criterion, model, ffns, attention), device_of(model)
    if not held:
        return
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    beside = weights + pieces.footprint(model, ffns)
    whole = memory.whole(device)
    lacks = held + beside > whole
    if not lacks:
        machine = memory.whole(None)
        if held <= machine:
            return
        raise UserError(
            f"criterion `{criterion}`: its sums take {_gb(held)}, and this machine has {_gb(machine)} of memory; {_OTHER}"
        )
    way = "" if device.type == "cpu" else ", or --device cpu"
    raise UserError(
        f"criterion `{criterion}`: its sums take {_gb(held)} beside {_gb(beside)} for the model and one image, and "
        f"`{device}` has {_gb(whole)} of memory; {_OTHER}{way}"
    )


_OTHER = "take a criterion without them (activation, jas, magnitude-l2)"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
