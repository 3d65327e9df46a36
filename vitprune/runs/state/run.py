"""An open run: the recipe with its model, images, folder and device at hand, each opened when first needed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from vitprune.core import claims
from vitprune.core.device import resolve_device
from vitprune.core.files import explain, write_text
from vitprune.core.progress import Reporter
from vitprune.core.reading import digest, read_json
from vitprune.criteria import catalog
from vitprune.criteria.statistics import held
from vitprune.images import decode_pool, kept
from vitprune.images.batches import Images
from vitprune.images.decode_pool import Job, Processes
from vitprune.images.preprocess import Preprocessing
from vitprune.images.sources.base import Source
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.opening import open_source
from vitprune.images.split import Split, beyond_limit
from vitprune.model import classifier, families, size
from vitprune.model.inside import backbone
from vitprune.model.inside.backbone import Backbone
from vitprune.model.load import opening
from vitprune.model.load.loaded import Loaded
from vitprune.model.sites import attention
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.tokens import require_class_token
from vitprune.pruning import masks
from vitprune.pruning.repair import repair
from vitprune.pruning.repair.names import Recovery
from vitprune.pruning.repair.streams import DenseStreams
from vitprune.pruning.whole import reach
from vitprune.recipe import check, paths
from vitprune.recipe.exports import of_file
from vitprune.recipe.parse import dump
from vitprune.recipe.parts import BY_ORDER, Whole
from vitprune.recipe.recipe import Recipe
from vitprune.runs.engine import worker
from vitprune.runs.engine.base import Executor
from vitprune.runs.engine.local import Local
from vitprune.runs.engine.opening import Crew, Workers
from vitprune.runs.state import defaults, elsewhere, told
from vitprune.runs.state.batching import Batching
from vitprune.runs.state.classes import ClassSets
from vitprune.runs.state.workspace import Workspace

CONTENTS = "contents.safetensors"  # of the split: a digest of every image's pixels


@dataclass
class Run:
    """What the stages share; nothing here changes a result. `choice` is why `criterion: auto` became what it is.

    `shared`: its jobs may go to the `workers`; a run that is sent to one is opened there, once. `keeps`: the budgets that its
    scores are for, where it is not the recipe's own alone. `slim`: the folder of its model, where that is no recipe's.
    `notes`: which defaults became others. `dense_logits`: those of the exam's last class set, what every row of it is held
    against.
    """

    recipe: Recipe
    device: torch.device
    reporter: Reporter
    folder: Workspace
    workers: int = 1
    choice: dict[str, Any] | None = None
    shared: bool = True
    keeps: tuple[int | float | None, ...] = ()
    slim: Path | None = None
    notes: list[str] = field(default_factory=list, init=False)
    _classes: ClassSets | None = field(default=None, init=False, repr=False)
    dense_logits: tuple[tuple[int, ...], np.ndarray] | None = field(default=None, init=False, repr=False)
    _streams: tuple[tuple[bytes, int], DenseStreams] | None = field(default=None, init=False, repr=False)

    @classmethod
    @contextmanager
    def open(cls, recipe: Recipe, device: str, reporter: Reporter, workers: Workers = 1) -> Iterator[Run]:
        """Lock the run's folder and hand out the run. Raises UserError where the run would replace what is not its
        own, and says in one line when a disk is full or may not be written, whoever wrote."""
        run = cls.join(recipe, device, reporter, workers)
        root = run.folder.root
        claims.refuse_inputs(root, recipe.model.folders())
        with run.folder.locked():
            below = recipe.groups or [one.folder for one in recipe.frontier]
            claims.refuse_strangers(root, below, recipe.file)
            try:
                yield run
            except OSError as error:
                raise explain(error, Path(error.filename) if isinstance(error.filename, str) else root) from error
            finally:
                run.close()
                kept.clear(root)

    def write_recipe(self, folder: Path) -> None:
        """The recipe as resolved, beside what it makes; the file that it was read from stays as it is."""
        path = folder / "recipe.yaml"
        if not claims.same(path, self.recipe.file):
            write_text(path, dump(told.recipe(self.recipe, folder)))

    @classmethod
    def join(cls, recipe: Recipe, device: str, reporter: Reporter, workers: Workers = 1) -> Run:
        """The run of a process that does not hold the folder."""
        folder, crew = Workspace(recipe.out / recipe.name), Crew.of(workers, recipe)
        run = cls(recipe, resolve_device(device), reporter, folder, crew.workers)
        run.__dict__["executor"] = crew.executor(run.device)
        return run

    def close(self) -> None:
        """End the workers and the decoding processes, if any were started."""
        for name in ("executor", "processes"):
            started = self.__dict__.get(name)
            if started is not None:
                started.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, the run is opened there from what it is made of; nothing of this process goes along."""
        assert self.shared, "what is inside a run stays in its process"
        carried = self.executor.carry(lambda: self._portable)
        return _in_worker, (self.recipe, self.device.type, self.folder, self.workers, carried, self.slim)

    def inside(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        model: nn.Module | None = None,
        split: dict[str, Any] | None = None,
        shared: bool = False,
        slim: Path | None = None,
    ) -> Run:
        """A run inside this one, in a folder of its own and in this process: the same images, the same model and split
        unless others are given. `split` is a record as the split stage writes it, of images of the probe split. `shared`:
        that record is in the folder, and the model is the recipe's or lies in the folder `slim`, so that its jobs may go to
        this run's workers."""
        inner = replace(
            self, recipe=recipe, folder=Workspace(folder, around=self.folder.images),
            shared=shared and self.shared, slim=slim or self.slim,
        )  # fmt: skip
        if inner.shared:
            inner.__dict__["executor"] = self.executor
        same = {name: getattr(self, name) for name in ("source", "images", "data_digest")}
        loaded = self.loaded if model is None else replace(self.loaded, model=model)
        inner.__dict__.update(same, loaded=loaded, split_record=self.split_record if split is None else split)
        return inner

    def beside(self, folder: Path, recipe: Recipe) -> Run:
        """A run of another budget, in a folder inside this one's: split, discovery and statistics are this run's, and so
        are the workers and the dense model's streams."""
        made = self.inside(folder, recipe)
        made.folder, made.shared, made.notes = Workspace(folder, self.folder.root), self.shared, self.notes
        same = {name: getattr(self, name) for name in ("executor", "dense_streams", "model_digest")}
        made.__dict__.update(same)
        return made

    @cached_property
    def executor(self) -> Executor:
        """Who computes this run's jobs: this process, unless others were asked for where the run was opened."""
        return Local()

    @cached_property
    def loaded(self) -> Loaded:
        """The dense model."""
        found = opening.open_model(self.recipe.model, self.device)
        return found if self.slim is None else replace(found, model=opening.load(self.slim, self.device))

    @property
    def backbone(self) -> Backbone | None:
        """The dense model as a backbone; None where it is a classifier."""
        return backbone.of(self.loaded.model)

    @cached_property
    def _portable(self) -> Loaded:
        """The dense model as every machine can take it."""
        if self.device.type == "cpu":
            return self.loaded
        return replace(self.loaded, model=copy.deepcopy(self.loaded.model).cpu())

    @cached_property
    def sites(self) -> list[FfnSite]:
        return families.ffn_sites(self.loaded.model)

    @cached_property
    def source(self) -> Source:
        return open_source(self.recipe.data, lambda: self.backbone is not None)

    @cached_property
    def within_limit(self) -> np.ndarray:
        """Which images the recipe's limit per class lets take part, [N] bool."""
        count = len(self.source.names)
        return ~np.isin(np.arange(count), list(beyond_limit(self.source, self.recipe.data.limit_per_class)))

    @cached_property
    def processes(self) -> Processes | None:
        """The decoding processes; None where threads do it."""
        count = self.recipe.data.workers
        count = decode_pool.automatic(self.source, self.workers) if count is None else count
        preprocessing = Preprocessing.of(self.loaded.data_config)
        mode = "L" if preprocessing.channels == 1 else "RGB"
        return Processes(Job(self.source, preprocessing, mode), count) if count else None  # type: ignore[arg-type]

    @property
    def classes(self) -> ClassSets:
        """The classes of the images and the class sets of the recipe as it is now."""
        if self._classes is None or self._classes.recipe is not self.recipe:
            self._classes = ClassSets(self.recipe, self.source, self.loaded)
        return self._classes

    @cached_property
    def batching(self) -> Batching:
        """The sizes of this run's parts."""
        return Batching(self.loaded.model, self.sites, self.device, self.workers)

    @cached_property
    def images(self) -> Images:
        """The source through the model's transform; class folders matched to the model's outputs."""
        loaded, outputs = self.loaded, self.classes.match.outputs
        channels = families.input_shape(loaded.model)[0]
        return Images(
            self.source, loaded.transform(), channels, outputs, self.processes, self.device,
            self.folder.images, self.workers > 1, self.reporter.note,
        )  # fmt: skip

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
        """Digest of the dense model: architecture, weights, labels, and how its images are prepared. Heads of slim
        attention cannot be told from the weights."""
        known = (self.loaded.architecture, self.loaded.model_args, self.loaded.labels, self.loaded.data_config)
        slim = attention.slim(self.loaded.model)
        result = hashlib.sha256(digest(*known, *([slim] if slim else [])).encode())
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
        return found if self.classes.mapping is None else digest(found, self.classes.mapping.fingerprint())

    @cached_property
    def dense_macs(self) -> int:
        """Multiply-adds of an image in the dense model."""
        return size.macs(self.loaded.model)

    @cached_property
    def recovery(self) -> Recovery:
        """The recipe's repair, `auto` decided by the model."""
        asked = self.recipe.recovery
        return repair.chosen(asked, self.loaded.model, self.recipe.whole is not None) if asked == "auto" else asked

    def dense_streams(self, index: np.ndarray, batch: int) -> DenseStreams | None:
        """Room for the dense model's streams on the images of `index`, for repairs that go block by block; filled by the
        first of them. That of the last call is kept. None where there is not room enough."""
        key = (index.tobytes(), batch)
        if self._streams is None or self._streams[0] != key:
            self._streams = None  # what it holds is free again before the room is measured
            made = DenseStreams.if_room(self.loaded.model, len(index), self.workers, self.folder.root)
            self._streams = None if made is None else (key, made)
        return self._streams[1] if self._streams else None

    def adopt_streams(self, former: Run) -> None:
        """Take over the dense streams of a run of the same model and data."""
        self._streams, former._streams = former._streams, None

    def adapt(self) -> None:
        """Defaults that the model does not allow become others, and it is said; what the recipe asks for stays."""
        for line in self.recipe.advice:
            self.reporter.note(line)
        self.recipe, notes = defaults.adapted(self.recipe, self.loaded.model, self.sites)
        self._tell(notes)

    def _tell(self, notes: list[str]) -> None:
        """What became of defaults, each said once."""
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                self.reporter.say(f"note: {note}")

    def preflight(self) -> None:
        """What can be refused before any work and before any file: paths, classes, budget, criteria, units per path."""
        paths.require(self.recipe)
        if self.backbone is not None:
            check.of_backbone(self.recipe)
            self.recipe, notes = defaults.of_images(self.recipe, len(self.source.classes))
            self._tell(notes)
        self.adapt()
        self.classes.every()
        if not all(self.classes.keeps_head(targets) for targets in self.classes.sets().values()):
            classifier.layers_of(self.loaded.model)
        self.fits()

    def fits(self) -> None:
        """Raises UserError where the model does not allow what the recipe asks for."""
        if self.recipe.whole is not None:
            for one in self.recipe.whole.each:
                self.reaches(one)
        for site in self.sites if self.recipe.whole is None else ():
            masks.width(self.recipe.share, site.size, self.recipe.round_to)
        own = self.recipe.criterion
        protocol = self.recipe.paper_protocol
        for name in [own.name, *self.recipe.baselines, *(["jas"] if self.recipe.clusters else [])]:
            catalog.applies(name, own.tokens, self.loaded.model)
            held.require(name, self.loaded.model, self.recipe.prunes_attention)
        if protocol is not None:
            require_class_token(self.loaded.model, "jas` of `paper_protocol")
        asked = [] if own.t == "auto" else [own.t]
        masks.check_t(max([1, *asked, *(protocol.t if protocol else ())]), self.sites)

    def reaches(self, budget: Whole) -> None:
        """Raises UserError for a budget of the whole model that its sites cannot reach; no cost is worked out for that."""
        model, r = self.loaded.model, self.recipe
        attentions = attention.attention_sites(model) if r.prunes_attention else []
        prices = reach.priced(budget.of, model, of_file(budget, r.export))
        if prices is not None:
            smallest = reach.least(model, attentions, prices, r.round_to, r.floor, r.prunes_depth)
            reach.require(budget.amount, smallest, prices)


_opened: dict[str, Run] = {}  # in a worker: the run it works for


def _in_worker(
    recipe: Recipe,
    device: str,
    folder: Workspace,
    workers: int,
    carried: Callable[[], Loaded] | None = None,
    slim: Path | None = None,
) -> Run:
    key = digest(dump(recipe), device, str(folder.root), str(slim))
    if key not in _opened:
        own = torch.device(worker.own_device(device))
        made = Run(recipe, own, Reporter(quiet=True), folder, workers, slim=slim)
        made.__dict__["executor"] = Local()  # a worker has none of its own
        for former in _opened.values():
            elsewhere.adopt(made, former)
            former.close()
        _opened.clear()
        if carried is not None:
            elsewhere.require(recipe, folder.root)
            if "loaded" not in made.__dict__:
                made.__dict__["loaded"] = carried()
            made.loaded.model.to(own)
        _opened[key] = made
    return _opened[key]
