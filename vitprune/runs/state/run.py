"""An open run: the recipe with its model, images, folder and device at hand, each opened when first needed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from vitprune.core import claims
from vitprune.core.device import resolve_device
from vitprune.core.errors import UserError
from vitprune.core.files import explain, write_text
from vitprune.core.progress import Reporter
from vitprune.core.reading import digest, read_json
from vitprune.criteria import catalog
from vitprune.images import class_names as labels
from vitprune.images import decode_pool
from vitprune.images.batches import Images
from vitprune.images.class_names import Match
from vitprune.images.decode_pool import Job, Processes
from vitprune.images.mapping import Mapping
from vitprune.images.names import Spellings, called, some
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.base import Source
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.opening import open_source
from vitprune.images.split import Split
from vitprune.model import classifier, families
from vitprune.model.inside import pieces
from vitprune.model.load import opening
from vitprune.model.load.loaded import Loaded
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import require_class_token
from vitprune.pruning import masks
from vitprune.pruning.repair import repair
from vitprune.pruning.repair.names import Recovery
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.recipe import paths
from vitprune.recipe.parse import dump
from vitprune.recipe.parts import BY_ORDER
from vitprune.recipe.recipe import Recipe
from vitprune.runs import defaults, told
from vitprune.runs.engine import worker
from vitprune.runs.engine.base import Executor
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.pool import Pool
from vitprune.runs.state.workspace import Workspace

CONTENTS = "contents.safetensors"  # of the split: a digest of every image's pixels
REPAIR_IMAGES = 64  # of one part of a repair, at most


@dataclass
class Run:
    """What the stages share; nothing here changes a result. `choice` is why `criterion: auto` became what it is.

    `shared`: its jobs may go to the `workers`; a run that is sent to one is opened there, once. `notes`: which defaults
    became others.
    """

    recipe: Recipe
    device: torch.device
    reporter: Reporter
    folder: Workspace
    workers: int = 1
    choice: dict[str, Any] | None = None
    shared: bool = True
    notes: list[str] = field(default_factory=list, init=False)
    _streams: tuple[tuple[bytes, int], DenseStreams] | None = field(default=None, init=False, repr=False)

    @classmethod
    @contextmanager
    def open(cls, recipe: Recipe, device: str, reporter: Reporter, workers: int = 1) -> Iterator[Run]:
        """Lock the run's folder and hand out the run. Raises UserError where the run would replace what is not its
        own, and says in one line when a disk is full or may not be written, whoever wrote."""
        run = cls.join(recipe, device, reporter, workers)
        root = run.folder.root
        claims.refuse_inputs(root, recipe.model.folders())
        with run.folder.locked():
            claims.refuse_strangers(root, recipe.groups or (), recipe.file)
            try:
                yield run
            except OSError as error:
                raise explain(error, Path(error.filename) if isinstance(error.filename, str) else root) from error
            finally:
                run.close()

    def write_recipe(self, folder: Path) -> None:
        """The recipe as resolved, beside what it makes; the file that it was read from stays as it is."""
        path = folder / "recipe.yaml"
        if not claims.same(path, self.recipe.file):
            write_text(path, dump(told.recipe(self.recipe, folder)))

    @classmethod
    def join(cls, recipe: Recipe, device: str, reporter: Reporter, workers: int = 1) -> Run:
        """The run of a process that does not hold the folder."""
        folder = Workspace(recipe.out / recipe.name)
        return cls(recipe, resolve_device(device), reporter, folder, workers)

    def close(self) -> None:
        """End the workers and the decoding processes, if any were started."""
        for name in ("executor", "processes"):
            started = self.__dict__.get(name)
            if started is not None:
                started.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, the run is opened there from what it is made of; nothing of this process goes along."""
        assert self.shared, "what is inside a run stays in its process"
        return _in_worker, (self.recipe, self.device.type, self.folder, self.workers)

    @cached_property
    def executor(self) -> Executor:
        """Who computes this run's jobs."""
        if not self.shared or self.workers == 1:
            return Local()
        share = max(1, torch.get_num_threads() // self.workers)
        return Pool(self.workers, functools.partial(worker.begin, share))

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model."""
        return opening.open_model(self.recipe.model, self.device)

    @cached_property
    def sites(self) -> list[FfnSite]:
        return families.ffn_sites(self.loaded.model)

    @cached_property
    def source(self) -> Source:
        return open_source(self.recipe.data)

    @cached_property
    def mapping(self) -> Mapping | None:
        """The images' class names against the model's, where the recipe gives a file."""
        file = self.recipe.data.labels
        return Mapping(file) if isinstance(file, Path) else None

    @cached_property
    def processes(self) -> Processes | None:
        """The decoding processes; None where threads do it."""
        count = self.recipe.data.workers
        count = decode_pool.automatic(self.source, self.workers) if count is None else count
        preprocessing = Preprocessing.of(self.loaded.data_config)
        mode = "L" if preprocessing.channels == 1 else "RGB"
        return Processes(Job(self.source, preprocessing, mode), count) if count else None  # type: ignore[arg-type]

    @cached_property
    def match(self) -> Match:
        """The model's output of each of the images' classes."""
        given, source, loaded = self.recipe.data, self.source, self.loaded
        where, by_order = str(given.dataset or given.path or given.probe or "bundled images"), given.labels == BY_ORDER
        known = (source.classes, loaded.outputs, loaded.labels)
        return labels.match(*known, where, source.numbers, self.mapping, by_order=by_order)

    @cached_property
    def images(self) -> Images:
        """The source through the model's transform; class folders matched to the model's outputs."""
        loaded, outputs = self.loaded, self.match.outputs
        channels = families.input_shape(loaded.model)[0]
        return Images(self.source, loaded.transform(), channels, outputs, self.processes)

    @cached_property
    def split_record(self) -> dict[str, Any]:
        """stages/split/split.json."""
        return dict(read_json(self.folder.stage_folder("split") / "split.json"))

    @cached_property
    def contents(self) -> dict[int, bytes]:
        """Digests of the pixels of every image that can be read, by position, as the split found them."""
        return decode_pool.unpacked(load_file(self.folder.stage_folder("split") / CONTENTS)["content"])

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
        """Digest of the images and labels; contents decide, and no time of a file."""
        contents = Contents(self.folder.root / "stages" / "seen")
        found = self.source.fingerprint(contents)
        contents.keep()
        if self.recipe.data.labels == BY_ORDER:
            return digest(found, BY_ORDER)
        return found if self.mapping is None else digest(found, self.mapping.fingerprint())

    def targets(self, names: list[str] | None) -> list[int]:
        """Output indices of class names (None: every class of the images). Raises UserError for one that is not there."""
        if names is None:
            return sorted(int(i) for i in self.images.output_of_class)
        own = list(zip(self.source.classes, map(int, self.images.output_of_class), strict=True))
        theirs = [(name, i) for _, i in own if self.loaded.labels for name in self.loaded.labels[i].split("\t")]
        tiers = [Spellings(own), Spellings((self.class_name(i), i) for _, i in own), Spellings(theirs)]

        def known(name: str) -> set[int]:
            looks = [tier.exact for tier in tiers] + [tier.find for tier in tiers]
            return next((found for look in looks if (found := look(name))), set())

        made = set()
        for name in names:
            found = known(name)
            if not found and self.mapping and (entry := self.mapping.entry(name)):
                found = set().union(*map(known, entry.names))
            if len(found) > 1:
                raise UserError(f"classes: `{name}` is a name of more than one class; use another of its names")
            if not found:
                shown = some(self.source.classes)
                raise UserError(f"classes: `{name}` is not a class of these images; they are {shown}")
            made |= found
        return sorted(made)

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
        return repair.chosen(asked, self.loaded.model) if asked == "auto" else asked

    def dense_streams(self, index: np.ndarray, batch: int) -> DenseStreams | None:
        """Room for the dense model's streams on the images of `index`, for repairs that go block by block; filled by the
        first of them. That of the last call is kept. None where there is not room enough."""
        key = (index.tobytes(), batch)
        if self._streams is None or self._streams[0] != key:
            self._streams = None  # what it holds is free again before the room is measured
            made = DenseStreams.if_room(self.loaded.model, len(index))
            self._streams = None if made is None else (key, made)
        return self._streams[1] if self._streams else None

    def adapt(self) -> None:
        """Defaults that the model does not allow become others, and it is said; what the recipe asks for stays."""
        self.recipe, notes = defaults.adapted(self.recipe, self.loaded.model, self.sites)
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                self.reporter.say(f"note: {note}")

    def preflight(self) -> None:
        """What can be refused before any work and before any file: paths, classes, budget, criteria, units per path."""
        paths.require(self.recipe)
        self.adapt()
        self.every_target()
        if not all(self.keeps_head(targets) for targets in self.class_sets().values()):
            classifier.layers_of(self.loaded.model)
        self.fits()

    def fits(self) -> None:
        """Raises UserError where the model does not allow what the recipe asks for."""
        for site in self.sites:
            masks.width(self.recipe.keep, site.size, self.recipe.round_to)
        own = self.recipe.criterion
        protocol = self.recipe.paper_protocol
        for name in [own.name, *self.recipe.baselines, *(["jas"] if self.recipe.clusters else [])]:
            catalog.applies(name, own.tokens, self.loaded.model)
        if protocol is not None:
            require_class_token(self.loaded.model, "jas` of `paper_protocol")
        masks.check_t(max([self.recipe.criterion.t, *(protocol.t if protocol else ())]), self.sites)

    @cached_property
    def class_names(self) -> list[str]:
        """What every output is called in reports, tables and exported files: as the model does, else as the images do."""
        images = {int(i): name for name, i in zip(self.source.classes, self.images.output_of_class, strict=True)}
        return called(self.loaded.outputs, None if self.labels_by_order else self.loaded.labels, images)

    @property
    def labels_by_order(self) -> bool:
        """Whether the names of the outputs are the images' in their order, and no word of the model's."""
        return self.match.how == "order"

    def class_name(self, output: int) -> str:
        """One of `class_names`."""
        return self.class_names[output]

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


_opened: dict[str, Run] = {}  # in a worker: the run it works for


def _in_worker(recipe: Recipe, device: str, folder: Workspace, workers: int) -> Run:
    key = digest(dump(recipe), device, str(folder.root))
    if key not in _opened:
        for former in _opened.values():
            former.close()
        _opened.clear()
        own = torch.device(worker.own_device(device))
        _opened[key] = Run(recipe, own, Reporter(quiet=True), folder, workers)
    return _opened[key]
