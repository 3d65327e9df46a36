"""The curves of attentions: written beside the scores of FFN units, and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from vitprune.core.files import replacing
from vitprune.criteria.catalog import covers_attention
from vitprune.criteria.heads.coordinates import Coordinates
from vitprune.criteria.heads.scores import random
from vitprune.criteria.statistics.attention_curve import AttentionCurve
from vitprune.model.sites.attention import attention_sites
from vitprune.runs.state.run import Run


def write(run: Run, name: str, group: str | None, found: Sequence[Mapping[str, Tensor]]) -> None:
    """Leave the curves of a criterion for a class set in `file_of`, given as the tensors of every attention."""
    columns: dict[str, Tensor] = {}
    for site, tensors in zip(attention_sites(run.loaded.model), found, strict=True):
        columns |= {f"{site.name}.{key}": value.contiguous() for key, value in tensors.items()}
    with replacing(file_of(run, name, group)) as temporary:
        temporary.write_bytes(to_bytes(columns))


def file_of(run: Run, name: str, group: str | None) -> Path:
    """Where a criterion's curves for a class set are."""
    before = "" if name == "fisher-obs" else f"{name}-"
    return run.folder.stage_folder("discover") / f"{before}attention-of-{group or 'all'}.safetensors"


def of_file(run: Run, group: str | None) -> list[AttentionCurve]:
    """The curves of the run's own criterion."""
    return curves_of(run, run.recipe.criterion.name, run.recipe.criterion.seed, group)


def curves_of(run: Run, name: str, seed: int, group: str | None) -> list[AttentionCurve]:
    """The curves of a criterion; none of one that chooses hidden units alone, or where attention is not pruned."""
    if not run.recipe.prunes_attention or not covers_attention(name):
        return []
    sites = attention_sites(run.loaded.model)
    if name == "random":
        return [one.curve for one in random(sites, seed=seed)]
    columns, made = load_file(file_of(run, name, group)), []
    for site in sites:
        own = {key.removeprefix(f"{site.name}."): x for key, x in columns.items() if key.startswith(f"{site.name}.")}
        of = Coordinates.from_tensors(site, own).curve if "pairs" in own else AttentionCurve.from_tensors(site, own)
        made.append(of)
    return made
