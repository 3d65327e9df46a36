"""The road of a vision-language model: pairs to types, costs, a smaller model, its exam. A step whose inputs and files are
what they were is not done again; a road that was stopped goes on behind its last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vitprune.api.vlm import tables
from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.core import files, places
from vitprune.core.device import device_of, resolve_device
from vitprune.core.errors import UserError
from vitprune.core.ledger import Ledger
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json, digest, read_json
from vitprune.core.version import __version__
from vitprune.criteria.curves import Curve
from vitprune.exam import by_modality
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import dead, opening, saving, sites, tokens
from vitprune.model.vlm.opening import Vlm
from vitprune.model.vlm.pairs import Pair, read_pairs
from vitprune.model.vlm.tokens import Batch, Sample
from vitprune.pruning.plan import Plan
from vitprune.pruning.vlm import choosing, costs, repair
from vitprune.see.types import rules, typing

VERSION = 1  # of what a step leaves; a higher one has every step done again
MADE_BY = "vitprune"


@dataclass
class Road:
    """A recipe under way: what it needs is opened when first asked for."""

    recipe: VlmRecipe
    device: str = "auto"
    force: bool = False
    reporter: Reporter = field(default_factory=Reporter)

    @cached_property
    def folder(self) -> Path:
        """Where results go, ours from now on. Raises UserError for a folder with other people's files."""
        folder = self.recipe.folder
        made = Ledger(folder)
        if folder.exists() and not made.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: holds files that vitprune did not make; choose another name or --out")
        folder.mkdir(parents=True, exist_ok=True)
        made.create()
        content = self.recipe.model_dump(mode="json", exclude_none=True)
        content["model"]["name"] = f"transformers:{places.place(self.recipe.model.folder, folder)}"
        content["data"]["pairs"] = places.place(self.recipe.data.pairs, folder)
        content["out"] = places.place(self.recipe.out)
        files.write_text(folder / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return folder

    @cached_property
    def vlm(self) -> Vlm:
        """The model, on its device."""
        self.reporter.say(f"opening {self.recipe.model.folder}")
        made = opening.open_vlm(self.recipe.model.folder)
        made.model.to(resolve_device(self.device))
        return made

    @cached_property
    def split(self) -> tuple[list[Pair], list[Pair]]:
        """The pairs to choose with and those of the exam; pairs of one image are on one side."""
        every = read_pairs(self.recipe.data.pairs)[: self.recipe.data.most]
        images = sorted({str(pair.image) for pair in every})
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.recipe.split.seed)).tolist()
        count = round(self.recipe.split.probe * len(images))
        chosen = {images[i] for i in order[:count]}
        probe = [pair for pair in every if str(pair.image) in chosen]
        exam = [pair for pair in every if str(pair.image) not in chosen]
        if len(probe) < typing.LEAST or len(exam) < 2:
            raise UserError(
                f"{self.recipe.data.pairs}: {len(probe)} pairs to choose with and {len(exam)} for the exam are too few"
            )
        return probe, exam

    @cached_property
    def samples(self) -> list[Sample]:
        """The probe pairs as samples."""
        probe = self.split[0]
        return [self.vlm.preparer.sample(p) for p in self.reporter.track(probe, "preparing", len(probe))]

    def batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Samples as batches on the model's device."""
        found = tokens.batches(samples, self.vlm.config, self.recipe.batch)
        return [batch.to(device_of(self.vlm.model)) for _, batch in found]

    @cached_property
    def dead(self) -> list[int]:
        """Vision blocks that no logit depends on."""
        return dead.dead_blocks(self.vlm.model, self.batches(self.samples[:1])[0])

    @cached_property
    def sites(self) -> list[FfnSite]:
        """The FFNs of the towers that are pruned; those of dead vision blocks are not ranked."""
        of_vision = [site for site in sites.ffns(self.vlm.model, "vision") if site.block not in self.dead]
        of_language = sites.ffns(self.vlm.model, "language")
        return [
            *(of_language if "language" in self.recipe.prune else []),
            *(of_vision if "vision" in self.recipe.prune else []),
        ]

    @cached_property
    def inputs(self) -> str:
        """What every step depends on: the model's files, the pairs, the split."""
        r = self.recipe
        model = [_stamp(path) for path in sorted(r.model.folder.iterdir()) if path.is_file()]
        images = [_stamp(pair.image) for part in self.split for pair in part]
        pairs = [[pair.text, pair.prompt] for part in self.split for pair in part]
        split = r.split.model_dump() | {"most": r.data.most, "batch": r.batch}
        return digest({"version": VERSION, "model": model, "images": images, "pairs": pairs, "split": split})

    def once(self, name: str, of: Json, make: Callable[[], Json], needs: Sequence[str] = ()) -> Json:
        """What a step leaves, from its file where inputs and files are what they were; else `make` is called."""
        path, key = self.folder / "steps" / f"{name}.json", digest({"inputs": self.inputs, "of": of})
        if not self.force and path.is_file():
            known = read_json(path)
            if (
                isinstance(known, dict)
                and known.get("key") == key
                and all((self.folder / need).exists() for need in needs)
            ):
                found: Json = known["content"]
                return found
        self.reporter.say(f"{name}")
        made = make()
        files.write_json(path, {"made_by": MADE_BY, "key": key, "content": made})
        return made

    @cached_property
    def types(self) -> typing.Types:
        """The language units' types."""
        how = self.recipe.see.types
        every = sites.ffns(self.vlm.model, "language")
        batch, say = self.recipe.batch, self.reporter.say
        return typing.types_of(
            self.vlm.model, every, self.samples, how=how.settings, of=how.of, batch=batch, progress=say
        )

    def see(self) -> Json:
        """The types written to see/: a table of units, a picture, and types.json, which is returned."""
        how, place = self.recipe.see.types, self.folder / "see"
        names = ("see/types.csv", "see/types.svg", "see/types.json", "see/types.safetensors")

        def make() -> Json:
            every = sites.ffns(self.vlm.model, "language")
            found = tables.summary(self.types, every, how.rule, sites.ffns(self.vlm.model, "vision"), self.dead)
            files.write_text(place / "types.csv", tables.units(self.types, every, how.rule))
            files.write_text(place / "types.svg", tables.picture(found))
            _write(place / "types.safetensors", self.types.labels[how.rule])
            files.write_json(place / "types.json", found)
            return found

        return self.once("types", how.model_dump(), make, names)

    def labels(self) -> dict[str, Tensor]:
        """By site the types under the recipe's rule."""
        self.see()
        return load_file(self.folder / "see" / "types.safetensors")

    def curves(self) -> dict[str, Curve]:
        """By site its curve on the next token."""
        of = {"seed": self.recipe.criterion.seed, "prune": sorted(self.recipe.prune)}

        def make() -> Json:
            every = self.sites
            found = costs.fisher_obs(self.vlm.model, every, self.batches(self.samples), self.recipe.criterion.seed)
            parts = {f"order.{s.name}": c.order for s, c in zip(every, found, strict=True)}
            _write(
                self.folder / "steps" / "costs.safetensors",
                parts | {f"costs.{s.name}": c.costs for s, c in zip(every, found, strict=True)},
            )
            return {"sites": [site.name for site in every]}

        names = self.once("costs", of, make, ["steps/costs.safetensors"])["sites"]
        parts = load_file(self.folder / "steps" / "costs.safetensors")
        return {n: Curve(parts[f"order.{n}"], parts[f"costs.{n}"], "nats per image") for n in names}

    def plan(self) -> Plan:
        """What every FFN keeps."""
        r, curves = self.recipe, self.curves()
        if r.keep_types is not None:
            return choosing.by_share(curves, self.labels(), {str(k): v for k, v in r.keep_types.items()})
        assert r.keep is not None
        if r.criterion.name == "modality-types":
            return choosing.by_type(curves, self.labels(), r.keep, r.criterion.protect)
        plan = choosing.by_cost(curves, r.keep, r.allocation)
        return choosing.at_random(plan, r.criterion.seed) if r.criterion.name == "random" else plan

    def made(self, plan: Plan) -> nn.Module:
        """The model cut by a plan and repaired."""
        model = choosing.cut(self.vlm.model, plan)
        repair.repair(self.vlm.model, model, plan, self.batches(self.samples), self.recipe.recovery)
        return model

    def run(self) -> Json:
        """The whole road; the record that is written to report.json."""
        recipe = self.recipe
        record: Json = {"made_by": MADE_BY, "version": __version__, "kind": "vision-language", "name": recipe.name}
        record |= {"model": self.vlm.architecture, "types": self.see(), "pairs": [len(part) for part in self.split]}
        exam = by_modality.prepared(self.vlm.preparer, self.split[1])
        rows = [self.once("exam-dense", {}, lambda: self._row("dense", self.vlm.model, exam))]
        if recipe.prunes:
            plan, of = self.plan(), self._choice()
            rows.append(self.once("pruned", of, lambda: self._pruned(plan, exam), ["model/config.json"]))
            for seed in range(recipe.controls):
                name, control = f"random {seed}", choosing.at_random(plan, 1000 + seed)
                row = lambda n=name, c=control: self._row(n, self.made(c), exam)  # noqa: E731
                rows.append(self.once(f"control-{seed}", of, row))
        record |= {"exam": rows, "said": verdict(rows)}
        files.write_json(self.folder / "report.json", record)
        return record

    def _choice(self) -> Json:
        keys = ("criterion", "keep", "keep_types", "prune", "allocation", "recovery", "drop_dead")
        return self.recipe.model_dump(mode="json", include=set(keys)) | {"types": self.recipe.see.types.model_dump()}

    def _row(self, name: str, model: nn.Module, exam: dict[str, list[Sample]]) -> Json:
        found = by_modality.examine(model, exam, self.recipe.batch).mean
        return {"model": name, "nll": found, "parameters": sum(p.numel() for p in model.parameters())}

    def _pruned(self, plan: Plan, exam: dict[str, list[Sample]]) -> Json:
        model, vlm = self.made(plan), self.vlm
        if self.recipe.drop_dead and self.dead:
            cut = Vlm(model, vlm.folder, vlm.architecture, vlm.processor)
            model = dead.without(cut, self.dead, self.batches(self.samples[:2])[0]).model
        row = self._row(self.recipe.criterion.name, model, exam)
        widths: dict[str, Any] = {"kept": plan.widths}
        if "language" in self.recipe.prune:
            types = self.labels()
            of = {n: [int((plan.keep[n] & (types[n] == k)).sum()) for k in range(4)] for n in plan.keep if n in types}
            widths["kept_by_type"] = {word: sum(v[k] for v in of.values()) for k, word in enumerate(rules.TYPES)}
        plain = saving.save(vlm, model, self.folder / "model", {"criterion": self.recipe.criterion.name})
        return row | widths | {"plain_from_pretrained": plain}


def verdict(rows: Sequence[Json]) -> str:
    """One sentence: whether the pruned model is ahead of every control, by NLL with the right image."""
    if len(rows) < 3:
        return "nothing was removed, or no control was asked for: no claim"
    best = min(row["nll"]["right"] for row in rows[2:])
    own, name = rows[1]["nll"]["right"], rows[1]["model"]
    way = "is ahead of" if own < best else "does not beat"
    d = next((d for d in range(3, 7) if f"{own:.{d}f}" != f"{best:.{d}f}"), 3)  # digits: as many as tell the two apart
    return f"{name} ({own:.{d}f} nats) {way} random units at the same widths under the same repair (best {best:.{d}f})"


def _write(path: Path, content: dict[str, Tensor]) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(to_bytes({k: v.contiguous() for k, v in content.items()}))


def _stamp(path: Path) -> list[Any]:
    """A file's name, size and time of change: reading the weights of a large model to tell whether they are the same takes
    as long as opening it."""
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]
