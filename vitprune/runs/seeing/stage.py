"""The stage `see`: its parts in order, then what they left as see.json, units.csv, the pictures and the atlas."""

from __future__ import annotations

from pathlib import Path

from vitprune.core.files import write_json
from vitprune.core.reading import Json, read_json
from vitprune.report.reading.values import plain
from vitprune.runs.seeing import atlas, shown, table, units
from vitprune.runs.seeing.looking import FOLDER, Looking
from vitprune.runs.seeing.pictures import Pictures
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

SCHEMA = 1


def see(run: Run) -> list[Path]:
    """What is asked for of the run's units, in the folder `see` beside the slim model."""
    assert run.recipe.see is not None
    looking = Looking(run, run.recipe.see)
    parts, left_out = _asked(looking)
    for name, why in left_out.items():
        run.reporter.say(f"see: {name} is left out: {why}")
    units.begin(looking)
    for name in parts:
        table.TABLE[name].work(looking)
    looking.files.append(units.write(looking))
    pictures = Pictures(looking)
    shown.show(looking, pictures)
    looking.told["atlas"] = {"file": _name(looking, atlas.write(looking, pictures))}
    path = looking.folder / "see.json"
    write_json(path, plain(_about(looking, parts, left_out) | looking.told))
    run.folder.clear(run.folder.stage_folder("see") / PARTS, set())
    return [*looking.files, path]


def refuse(run: Run) -> None:
    """Raises UserError, before any stage, for a part that the model does not allow and a unit that it does not have."""
    assert run.recipe.see is not None
    _asked(Looking(run, run.recipe.see))


def _asked(looking: Looking) -> tuple[list[str], dict[str, str]]:
    shown.require(looking)
    return table.chosen(looking.see, looking.model, looking.run.recipe.data.masks is not None)


def _name(looking: Looking, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(looking.run.folder.root).as_posix()


def _about(looking: Looking, parts: list[str], left_out: dict[str, str]) -> Json:
    run, labels = looking.run, looking.run.images.labels[looking.index]
    classes = run.classes.every()
    without = [looking.name(c) for c in classes if not (labels == c).any()]
    return {
        "schema": SCHEMA,
        "parts": parts,
        "left_out": left_out,
        "images": {"n": len(looking.index), "per_class": looking.see.images.per_class, "split": "probe"},
        "classes": [looking.name(c) for c in classes],
        "classes_without_images": without,
        "widths": [site.size for site in looking.sites],
        "sites": [site.name for site in looking.sites],
        "kept": {group or "": [int(mask.sum()) for mask in kept] for group, kept in looking.kept.items()},
        "attention": NOT_OFFERED,
    }


NOT_OFFERED = (
    "Units of attention (a dimension of values, or of queries and keys) are directions that a rotation may change, not "
    "neurons with an activation of their own: exemplars, alignment, drift and twins are of FFN units alone; readout has "
    "figures of the dimensions of its values."
)


def told(run: Run) -> Json:
    """What the record has of a run whose units were looked at: see.json, under `see`."""
    return {"see": dict(read_json(run.folder.root / FOLDER / "see.json"))}
