"""What the parts of `see` share: the run, its images, which units are kept, and what has been found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from torch import nn

from vitprune.core import places
from vitprune.core.errors import UserError
from vitprune.core.files import replacing
from vitprune.core.reading import Json
from vitprune.images.split import first_per_class
from vitprune.model import families
from vitprune.model.load import opening
from vitprune.model.sites.attention import AttentionSite, attention_sites
from vitprune.model.sites.base import TokenLayout
from vitprune.model.sites.ffn import FfnSite
from vitprune.recipe.seeing import See, Site
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.state.run import Run

FOLDER = "see"  # in the run's folder


@dataclass(frozen=True, slots=True)
class Heads:
    """What is left of an attention: which heads of the dense one, and how many dimensions of their values."""

    kept: tuple[int, ...]
    dim: int


@dataclass
class Looking:
    """One stage `see` at work. `told` is what becomes see.json, by part; `columns` what becomes units.csv: a value for every
    unit, block by block in the dense model's numbering, `of_attention` the same of attention.csv; `left` what a part keeps
    for the parts after it, by name."""

    run: Run
    see: See
    told: Json = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    of_attention: dict[str, list[Any]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where what people look at goes."""
        return self.run.folder.root / FOLDER

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return self.run.loaded.model

    @property
    def sites(self) -> list[FfnSite]:
        """The dense model's FFNs; a unit `5:17` is unit 17 of the FFN at position 5."""
        return self.run.sites

    @cached_property
    def directions(self) -> list[AttentionSite]:
        """The dense model's attentions, where the recipe asks for them; `5:h2.17` is dimension 17 of the values of head 2 of
        the attention at position 5. Raises UserError for a model whose attention is not known."""
        if "attention" not in self.see.sites:
            return []
        try:
            if found := attention_sites(self.model):
                return found
        except UserError as error:
            raise UserError(
                f"see.sites: attention: {str(error).removeprefix('model: ')}; take `sites: [ffn]`"
            ) from error
        raise UserError("see.sites: attention: this model has none left; take `sites: [ffn]`")

    def widths(self, of: Site = "ffn") -> list[int]:
        """How many units every FFN has, or directions every attention."""
        return [s.size for s in self.sites] if of == "ffn" else [s.heads * s.dim for s in self.directions]

    @cached_property
    def layout(self) -> TokenLayout:
        """Which tokens are what."""
        return families.token_layout(self.model)

    @cached_property
    def index(self) -> np.ndarray:
        """Positions in the source of the images that are looked at, class by class: of each class at most `images.per_class`
        of the probe split, as it was shuffled; of equal pixels one."""
        run, seen, found = self.run, set[Any](), []
        for i in run.split.probe.tolist():
            content = run.contents.get(i, i)
            if content not in seen:
                seen.add(content)
                found.append(i)
        labels = run.images.labels
        mine = np.array(found, np.int64)
        mine = mine[np.isin(labels[mine], self.run.classes.every())]
        chosen = first_per_class(mine, labels, self.see.images.per_class)
        if not len(chosen):
            raise UserError("see: no class of the run has probe images; nothing to look at")
        return chosen[np.lexsort((chosen, labels[chosen]))]

    @cached_property
    def _left(self) -> dict[str | None, tuple[list[np.ndarray], dict[str, Heads]]]:
        """Per class set which units its slim model kept, and what it left of each attention that became smaller."""
        found: dict[str | None, tuple[list[np.ndarray], dict[str, Heads]]] = {}
        for group, targets in self.run.classes.sets().items():
            plan = exported_mask(self.run, group, targets)
            smaller = {name: cut for name, cut in plan.attention.items() if not cut.whole}
            heads = {
                name: Heads(tuple(cut.curve.values[cut.heads - 1].heads) if cut.heads else (), cut.dim)
                for name, cut in smaller.items()
            }
            found[group] = [plan.keep[site.name].numpy() for site in self.sites], heads
        return found

    @property
    def kept(self) -> dict[str | None, list[np.ndarray]]:
        """Per class set and block which units its slim model kept, bool [H]."""
        return {group: masks for group, (masks, _) in self._left.items()}

    @property
    def heads(self) -> dict[str | None, dict[str, Heads]]:
        """Per class set what is left of each attention that became smaller, by its name."""
        return {group: heads for group, (_, heads) in self._left.items()}

    def slim(self, group: str | None) -> nn.Module:
        """The model that was exported for a class set."""
        return opening.load(self.run.folder.root / (group or ""), self.run.device)

    def name(self, output: int) -> str:
        """A class's name, as the report has it."""
        return self.run.classes.name(int(output))

    @cached_property
    def image_names(self) -> list[str]:
        """The source's names of its images."""
        return places.names(self.run.source.names)

    def column(self, name: str, blocks: list[Any], of: Site = "ffn") -> None:
        """A column of units.csv, or of attention.csv, from its values block by block; NaN of arrays is left empty."""
        flat = [value for block in blocks for value in (block.tolist() if hasattr(block, "tolist") else block)]
        table = self.columns if of == "ffn" else self.of_attention
        table[name] = [None if isinstance(v, float) and v != v else v for v in flat]

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays as a safetensors file beside see.json."""
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as temporary:
            temporary.write_bytes(save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
        self.files.append(path)
