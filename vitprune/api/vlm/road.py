"""The road of a vision-language model: pairs to types, costs, a smaller model, its exam. A step whose inputs and files are
what they were is not done again; a road that was stopped goes on behind its last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vitprune.api.vlm import ahead, record, tables
from vitprune.api.vlm.recipe import VlmRecipe
from vitprune.api.vlm.steps import Steps, claimed, inputs_of, without
from vitprune.api.vlm.units.explaining import explained
from vitprune.api.vlm.units.looked import Looked
from vitprune.core import files
from vitprune.core.device import device_of, resolve_device
from vitprune.core.errors import UserError, one_line
from vitprune.core.progress import Reporter
from vitprune.core.reading import Json, read_text
from vitprune.criteria.curves import Curve
from vitprune.exam import by_modality
from vitprune.model.sites.ffn import FfnSite
from vitprune.model.vlm import dead, opening, saving, sites, tokens
from vitprune.model.vlm.opening import Vlm
from vitprune.model.vlm.pairs import Pair, images_of, read_pairs
from vitprune.model.vlm.tokens import Batch, Sample
from vitprune.pruning.plan import Plan
from vitprune.pruning.vlm import choosing, costs, repair
from vitprune.report import write_report
from vitprune.see.types import rules, shown, typing, watching

VERSION = 3  # of what a step leaves; a higher one has every step done again


@dataclass
class Road:
    """A recipe under way: what it needs is opened when first asked for."""

    recipe: VlmRecipe
    device: str = "auto"
    force: bool = False
    reporter: Reporter = field(default_factory=Reporter)
    command: str = ""

    @cached_property
    def folder(self) -> Path:
        """Where results go, ours from now on. Raises UserError for a folder with other people's files."""
        return claimed(self.recipe)

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
        if count < typing.LEAST or len(images) - count < 2:
            both = f"pairs of {count} images to choose with and of {len(images) - count} for the exam"
            raise UserError(f"{self.recipe.data.pairs}: {both} are too few")
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
        one = self.vlm.preparer.sample(self.split[0][0])
        return dead.dead_blocks(self.vlm.model, self.batches([one])[0])

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
        r, parts = self.recipe, self.split
        about = r.split.model_dump() | {"most": r.data.most, "batch": r.batch, "version": VERSION}
        return inputs_of(r.model.folder, [pair for part in parts for pair in part], about)

    @cached_property
    def steps(self) -> Steps:
        """What was done before."""
        return Steps(self.folder, self.inputs, self.force, self.reporter)

    @cached_property
    def types(self) -> typing.Types:
        """The language units' types."""
        how = self.recipe.see.types
        every = sites.ffns(self.vlm.model, "language")
        batch, say = self.recipe.batch, self.reporter.say
        return typing.types_of(
            self.vlm.model, every, self.samples, how=how.settings, of=how.of, batch=batch, progress=say,
            images=images_of(self.split[0]),
        )  # fmt: skip

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

        return self.steps.once("types", self.planned["types"], make, names)

    def units(self) -> Json:
        """A few units of each type explained, in see/units.json, which is returned."""
        self.see()
        place, how = self.folder / "see", self.recipe.see

        def make() -> Json:
            rows = shown.rows_of(read_text(place / "types.csv", 1 << 30))
            some = shown.shown(rows, how.units.per_type, how.units.seed)
            model = self.vlm.model
            every, batch = sites.ffns(model, "language"), self.recipe.batch
            found = watching.watched(model, every, some, self.samples, how.types.of, batch)
            made = explained(Looked(self.vlm, how, self.split[0], self.samples, some, found), place, self.reporter)
            files.write_json(place / "units.json", made)
            return made

        def leaves(made: Json) -> list[str]:
            return ["see/units.json", *(row["picture"] for row in made["units"] if row["picture"])]

        return self.steps.once("units", self.planned["units"], make, leaves)

    def labels(self) -> dict[str, Tensor]:
        """By site the types under the recipe's rule."""
        self.see()
        return load_file(self.folder / "see" / "types.safetensors")

    def curves(self) -> dict[str, Curve]:
        """By site its curve on the next token."""

        def make() -> Json:
            every = self.sites
            found = costs.fisher_obs(self.vlm.model, every, self.batches(self.samples), self.recipe.criterion.seed)
            parts = {f"order.{s.name}": c.order for s, c in zip(every, found, strict=True)}
            _write(
                self.folder / "steps" / "costs.safetensors",
                parts | {f"costs.{s.name}": c.costs for s, c in zip(every, found, strict=True)},
            )
            return {"sites": [site.name for site in every]}

        names = self.steps.once("costs", self.planned["costs"], make, ["steps/costs.safetensors"])["sites"]
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
        """The model cut by a plan and repaired, without dead blocks where the recipe drops them."""
        model = choosing.cut(self.vlm.model, plan)
        repair.repair(self.vlm.model, model, plan, self.batches(self.samples), self.recipe.recovery)
        if self.recipe.drop_dead and self.dead:
            cut = replace(self.vlm, model=model)
            return dead.without(cut, self.dead, self.batches(self.samples[:2])[0]).model
        return model

    def run(self) -> Json:
        """The whole road; the record that is written to report.json."""
        types, units, planned = self.see(), self.units(), self.planned
        rows = [self.steps.once("exam-dense", planned["exam-dense"], lambda: self._row("dense", self.vlm.model))]
        if not self.recipe.prunes:
            without(self.folder / "model")
            return self.told(types, units, rows)
        plan = self.plan()
        rows.append(self.steps.once("pruned", planned["pruned"], lambda: self._pruned(plan), ["model"]))
        for seed in range(self.recipe.controls):
            name, control = f"random {seed}", choosing.at_random(plan, 1000 + seed)
            row = lambda n=name, c=control: self._row(n, self.made(c))  # noqa: E731
            rows.append(self.steps.once(f"control-{seed}", planned[f"control-{seed}"], row))
        return self.told(types, units, rows)

    def told(self, types: Json, units: Json, rows: Sequence[Json]) -> Json:
        """The record, written with its page."""
        stages, created = self.steps.spent(list(self.planned))
        found = {
            "types": types, "units": units, "pairs": [len(part) for part in self.split], "exam": list(rows),
            "images": images_of(self.split[1]),
            "stages": stages, "created": created, "command": self.command, "hashes": {"inputs": self.inputs},
        }  # fmt: skip
        made = record.build(self.recipe, self.folder, self.vlm.architecture, device_of(self.vlm.model), found)
        write_report(made, self.folder)
        return made

    @cached_property
    def planned(self) -> dict[str, Json]:
        """The steps in their order, and what each depends on beside the inputs."""
        r = self.recipe
        units = r.see.model_dump(exclude={"names": {"max_calls", "timeout"}})
        found: dict[str, Json] = {"types": r.see.types.model_dump(), "units": units, "exam-dense": {}}
        if r.prunes:
            keys = ("criterion", "keep", "keep_types", "prune", "allocation", "recovery", "drop_dead")
            choice = r.model_dump(mode="json", include=set(keys)) | {"types": r.see.types.model_dump()}
            found["costs"] = {"seed": r.criterion.seed, "prune": sorted(r.prune)}
            found |= {"pruned": choice} | {f"control-{n}": choice for n in range(r.controls)}
        return found

    def expect(self, steps: Sequence[str] = ()) -> dict[str, float]:
        """What the steps that are left will take in seconds, all or these; said in one line, and told to the progress."""
        left = [n for n, of in self.planned.items() if (not steps or n in steps) and self.steps.known(n, of) is None]
        found: Mapping[str, float] = {}
        try:
            if left:
                at = ahead.pace(
                    self.vlm.model, [self.vlm.preparer.sample(pair) for pair in self.split[0][: ahead.TIMED]]
                )
                found = ahead.estimate(self.vlm.model, at, self.recipe, self.sites, [len(part) for part in self.split])
        except UserError:
            raise
        except Exception as error:  # an estimate that cannot be made stops no run
            self.reporter.say(f"cost: not estimated ({one_line(error)})")
            return {}
        seconds = {name: found[name] for name in left}
        self.reporter.say(ahead.line(seconds))
        self.reporter.expect(seconds)
        return seconds

    @cached_property
    def exam(self) -> dict[str, list[Sample]]:
        """The pairs of the exam as samples in each of its ways."""
        return by_modality.prepared(self.vlm.preparer, self.split[1])

    def _row(self, name: str, model: nn.Module) -> Json:
        found = by_modality.examine(model, self.exam, self.recipe.batch)
        each = [round(x, 5) for x in found.nll["right"].tolist()]
        return {
            "model": name,
            "nll": found.mean,
            "parameters": sum(p.numel() for p in model.parameters()),
            "each": each,
        }

    def _pruned(self, plan: Plan) -> Json:
        model, vlm = self.made(plan), self.vlm
        row = self._row(self.recipe.criterion.name, model)
        widths: Json = {"kept": plan.widths, "of": {name: len(keep) for name, keep in plan.keep.items()}}
        if "language" in self.recipe.prune:
            types = self.labels()
            of = {n: [int((plan.keep[n] & (types[n] == k)).sum()) for k in range(4)] for n in plan.keep if n in types}
            widths["kept_by_type"] = {word: sum(v[k] for v in of.values()) for k, word in enumerate(rules.TYPES)}
        plain = saving.save(vlm, model, self.folder / "model", {"criterion": self.recipe.criterion.name})
        return row | widths | {"plain_from_pretrained": plain, "unsaid": saving.unsaid(vlm, model)}


def _write(path: Path, content: dict[str, Tensor]) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(to_bytes({k: v.contiguous() for k, v in content.items()}))
