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
from vitprune.model.sites.base import TokenLayout
from vitprune.model.sites.ffn import FfnSite
from vitprune.recipe.seeing import See
from vitprune.runs.stages.prune import exported_mask
from vitprune.runs.state.run import Run

FOLDER = "see"  # in the run's folder


@dataclass
class Looking:
    """One stage `see` at work. `told` is what becomes see.json, by part; `columns` what becomes units.csv: a value for every
    unit, block by block in the dense model's numbering; `left` what a part keeps for the parts after it, by name."""

    run: Run
    see: See
    told: dict[str, Json] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
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
    def kept(self) -> dict[str | None, list[np.ndarray]]:
        """Per class set and block which units its slim model kept, bool [H]."""
        found = {}
        for group, targets in self.run.classes.sets().items():
            plan = exported_mask(self.run, group, targets)
            found[group] = [plan.keep[site.name].numpy() for site in self.sites]
        return found

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

    def column(self, name: str, blocks: list[Any]) -> None:
        """A column of units.csv from its values block by block; arrays may hold NaN, which is left empty."""
        flat = [value for block in blocks for value in (block.tolist() if hasattr(block, "tolist") else block)]
        self.columns[name] = [None if isinstance(v, float) and v != v else v for v in flat]

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays as a safetensors file beside see.json."""
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as temporary:
            temporary.write_bytes(save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
        self.files.append(path)
