"""The curves of attentions, found beside those of the FFNs in one pass, and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from vitprune.core.files import replacing
from vitprune.criteria.curves import Curve
from vitprune.criteria.statistics import attention
from vitprune.criteria.statistics.attention_curve import AttentionCurve, curve
from vitprune.criteria.statistics.fisher_obs import curves_of
from vitprune.criteria.statistics.ranks import ranks
from vitprune.model.sites.attention import attention_sites
from vitprune.model.sites.ffn import linear
from vitprune.runs.state.run import Run


def find(run: Run, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], seed: int, path: Path) -> list[Curve]:
    """The curves of the FFNs, as `fisher-obs` gives them; those of the attentions are left in the file `path`."""
    model, sites = run.loaded.model, attention_sites(run.loaded.model)
    ffns, of_attention = attention.statistics(model, run.sites, sites, batches, seed)
    measured = ranks(model, sites, of_attention, (x for x, _ in batches()))
    columns: dict[str, Tensor] = {}
    for site, moments, rank in zip(sites, of_attention, measured, strict=True):
        weight = linear(model, site.proj).weight.detach().double().cpu()
        columns |= {f"{site.name}.{name}": x for name, x in curve(site, weight, moments, rank).tensors().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(columns))
    return curves_of(model, run.sites, [(m.covariance, m.fisher, m.tokens) for m in ffns])


def file_of(run: Run, group: str | None) -> Path:
    """Where the curves for a class set are."""
    return run.folder.stage_folder("discover") / f"attention-of-{group or 'all'}.safetensors"


def of_file(run: Run, group: str | None) -> list[AttentionCurve]:
    """The curves that `find` left."""
    columns = load_file(file_of(run, group))
    made = []
    for site in attention_sites(run.loaded.model):
        own = {name.removeprefix(f"{site.name}."): x for name, x in columns.items() if name.startswith(f"{site.name}.")}
        made.append(AttentionCurve.from_tensors(site, own))
    return made
