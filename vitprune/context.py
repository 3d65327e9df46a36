"""An open run: the recipe with its model, images, folder and device at hand, each opened when first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vitprune import checkpoint, criteria, decoding, heads, labels, masks, memory, models, pieces, recovery
from vitprune.checkpoint import Loaded
from vitprune.data import Images
from vitprune.decoding import Job, Processes
from vitprune.errors import UserError
from vitprune.files import digest, read_json
from vitprune.labels import Mapping
from vitprune.preprocess import Preprocessing
from vitprune.progress import Reporter
from vitprune.recipe import Recipe
from vitprune.sequential import Kept
from vitprune.sources import Source, open_source
from vitprune.types import FfnSite, Recovery, Split
from vitprune.workspace import Workspace

KEPT_SHARE = 0.5  # of the free memory, for the dense streams between two repairs
REPAIR_IMAGES = 64  # of one part of a repair, at most


@dataclass
class Context:
    """What the stages share; nothing here changes a result. `choice` is why `criterion: auto` became what it is.

    `shared`: other processes may take part in this context's discovery.
    """

    recipe: Recipe
    device: torch.device
    reporter: Reporter
    folder: Workspace
    workers: int = 1
    choice: dict[str, Any] | None = None
    shared: bool = True
    _streams: tuple[tuple[bytes, int], Kept] | None = field(default=None, init=False, repr=False)

    @classmethod
    @contextmanager
    def open(cls, recipe: Recipe, device: str, reporter: Reporter, workers: int = 1) -> Iterator[Context]:
        """Lock the run's folder and hand out the context."""
        context = cls.join(recipe, device, reporter, workers)
        with context.folder.locked():
            try:
                yield context
            finally:
                context.close()

    @classmethod
    def join(cls, recipe: Recipe, device: str, reporter: Reporter, workers: int = 1) -> Context:
        """The context of a process that helps the one that holds the folder."""
        folder = Workspace(recipe.out / recipe.name)
        return cls(recipe, models.resolve_device(device), reporter, folder, workers)

    def close(self) -> None:
        """End the decoding processes, if any were started."""
        started = self.__dict__.get("processes")
        if started is not None:
            started.close()

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model."""
        return checkpoint.open_model(self.recipe.model, self.device)

    @cached_property
    def sites(self) -> list[FfnSite]:
        return models.ffn_sites(self.loaded.model)

    @cached_property
    def source(self) -> Source:
        return open_source(self.recipe.data)

    @cached_property
    def mapping(self) -> Mapping | None:
        """The images' class names against the model's, where the recipe gives a file."""
        return Mapping(self.recipe.data.labels) if self.recipe.data.labels else None

    @cached_property
    def processes(self) -> Processes | None:
        """The decoding processes; None where threads do it."""
        count = self.recipe.data.workers
        count = decoding.automatic(self.source, self.workers) if count is None else count
        preprocessing = Preprocessing.of(self.loaded.data_config)
        mode = "L" if preprocessing.channels == 1 else "RGB"
        return Processes(Job(self.source, preprocessing, mode), count) if count else None  # type: ignore[arg-type]

    @cached_property
    def images(self) -> Images:
        """The source through the model's transform; class folders matched to the model's outputs."""
        given, source, loaded = self.recipe.data, self.source, self.loaded
        where = str(given.dataset or given.path or given.probe or "bundled images")
        outputs = labels.output_indices(
            source.classes, loaded.outputs, loaded.labels, where, source.numbers, self.mapping
        )
        channels = models.input_shape(loaded.model)[0]
        return Images(source, loaded.transform(), channels, outputs, self.processes)

    @cached_property
    def split_record(self) -> dict[str, Any]:
        """stages/split/split.json."""
        return dict(read_json(self.folder.stage_folder("split") / "split.json"))

    @cached_property
    def split(self) -> Split:
        r = self.split_record
        return Split(r["seed"], r["probe_share"], np.array(r["probe"], np.int64), np.array(r["test"], np.int64))

    @cached_property
    def model_digest(self) -> str:
        """Digest of the dense model: architecture, weights, labels, and how its images are prepared."""
        known = (self.loaded.architecture, self.loaded.model_args, self.loaded.labels, self.loaded.data_config)
        result = hashlib.sha256(digest(*known).encode())
        for key, value in self.loaded.model.state_dict().items():
            result.update(key.encode())
            result.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return result.hexdigest()

    @cached_property
    def data_digest(self) -> str:
        found = self.source.fingerprint()
        return found if self.mapping is None else digest(found, self.mapping.fingerprint())

    def targets(self, names: list[str] | None) -> list[int]:
        """Output indices of class names (None: every class of the images). Raises UserError for one that is not there."""
        if names is None:
            return sorted(int(i) for i in self.images.output_of_class)
        known = {name: int(i) for name, i in zip(self.source.classes, self.images.output_of_class, strict=True)}
        for output, label in enumerate(self.loaded.labels or []):
            if output in known.values():
                known |= dict.fromkeys(label.split("\t"), output)
        for name in names if self.mapping else ():
            entry = self.mapping.entry(name)  # type: ignore[union-attr]
            found = {known[other] for other in entry.names if other in known} if entry else set()
            if len(found) == 1:
                known.setdefault(name, found.pop())
        for name in names:
            if name not in known:
                shown = ", ".join(self.source.classes[:12]) + (", …" if len(self.source.classes) > 12 else "")
                raise UserError(f"classes: `{name}` is not a class of these images; they are {shown}")
        return sorted({known[name] for name in names})

    def class_sets(self) -> dict[str | None, list[int]]:
        """Group name (None without groups) → output indices."""
        return {group: self.targets(names) for group, names in self.recipe.class_sets().items()}

    def sets_and_their_union(self) -> dict[str | None, list[int]]:
        """The class sets, and under groups also all of their classes together (None): what a generic model is made for."""
        return {**self.class_sets(), None: self.every_target()}

    def keeps_head(self, targets: list[int]) -> bool:
        """Whether a slim model for these classes keeps the dense model's every output; one for a single class does."""
        return not self.recipe.own_head or len(targets) in (1, self.loaded.outputs)

    def every_target(self) -> list[int]:
        """Union of the class sets."""
        return sorted(set().union(*self.class_sets().values()))

    @cached_property
    def recovery(self) -> Recovery:
        """The recipe's repair, `auto` decided by the model."""
        asked = self.recipe.recovery
        return recovery.chosen(asked, self.loaded.model) if asked == "auto" else asked

    def dense_streams(self, index: np.ndarray, batch: int) -> Kept | None:
        """The dense model's streams on the images of `index`, for repairs that go block by block; filled by the first of
        them. Those of the last call are kept. None where they would take more than half of the memory that is free now."""
        key = (index.tobytes(), batch)
        if self._streams is None or self._streams[0] != key:
            self._streams = None
            tokens = models.tokens_per_site(self.loaded.model, self.sites)
            widths = [models.stream_width(self.loaded.model, site) for site in self.sites]
            halves = 2 * len(self.sites) + 1
            size = 4 * len(index) * halves * max(t * w for t, w in zip(tokens, widths, strict=True))
            if size <= KEPT_SHARE * memory.free(self.device):
                self._streams = key, {}
        return self._streams[1] if self._streams else None

    def preflight(self) -> None:
        """What can be refused before any work and before any file: classes, budget, units per path."""
        self.every_target()
        for site in self.sites:
            masks.width(self.recipe.keep, site.width, self.recipe.round_to)
        if not all(self.keeps_head(targets) for targets in self.class_sets().values()):
            heads.layers_of(self.loaded.model)
        own = self.recipe.criterion
        for name in {own.name, *self.recipe.baselines}:
            criteria.applies(name, own.tokens, self.loaded.model)
        protocol = self.recipe.paper_protocol
        masks.check_t(max([self.recipe.criterion.t, *(protocol.t if protocol else ())]), self.sites)

    def class_name(self, output: int) -> str:
        """The images' own name of an output (the model's where the images lack it)."""
        mine = np.flatnonzero(self.images.output_of_class == output)
        if len(mine):
            return self.source.classes[int(mine[0])]
        return self.loaded.labels[output] if self.loaded.labels else str(output)

    def images_per_batch(self, nodes: int) -> int:
        """Images of one part, each at so many nodes: the model and the kind of device say it, not the free memory."""
        return pieces.size(self._footprint, self.device, nodes)

    def room(self, nodes: int) -> int:
        """Images of a part that the memory which is free now has room for; the others come after them, in pieces."""
        here = self.workers if self.device.type == "cpu" else 1
        return pieces.room(self._footprint, self.device, nodes, pieces.SHARE / here)

    @cached_property
    def _footprint(self) -> int:
        return pieces.footprint(self.loaded.model, self.sites)

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        return max(1, self.images_per_batch(1) // 2 * 2)

    @cached_property
    def repair_batch(self) -> int:
        """Images of one part of a repair, which keeps no gradient."""
        footprint = pieces.footprint(self.loaded.model, self.sites, gradient=False)
        return min(REPAIR_IMAGES, pieces.size(footprint, self.device))
