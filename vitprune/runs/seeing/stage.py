"""The stage `see`: its parts in order, then what they left as see.json, units.csv, the pictures and the atlas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitprune.core.files import write_json
from vitprune.core.reading import Json, read_json
from vitprune.recipe.seeing import See, Tokens
from vitprune.report.reading.values import plain
from vitprune.runs.seeing import atlas, passes, shown, table, units
from vitprune.runs.seeing.looking import FOLDER, Looking
from vitprune.runs.seeing.parts import directions
from vitprune.runs.seeing.pictures import Pictures
from vitprune.runs.state.run import Run
from vitprune.runs.state.workspace import PARTS

SCHEMA = 1
TOKENS: dict[str, Callable[[See], Tokens]] = {
    "see.tokens": lambda see: see.tokens,
    "see.stimuli.tokens": lambda see: see.stimuli.tokens or "auto",
    "see.names.tokens": lambda see: see.names.tokens or "auto",
}


def see(run: Run) -> list[Path]:
    """What is asked for of the run's units, in the folder `see` beside the slim model."""
    see = run.recipe.see
    assert see is not None
    looking = Looking(run, see)
    parts, left_out = _asked(looking)
    for name, why in left_out.items():
        run.reporter.say(f"see: {name} is left out: {why}")
    units.begin(looking)
    for name in parts:
        table.TABLE[name].work(looking)
    if looking.directions:
        directions.work(looking, parts)
    for of in see.sites:
        looking.files.append(units.write(looking, of))
    pictures = Pictures(looking)
    shown.show(looking, pictures)
    if looking.directions:
        directions.show(looking, pictures)
    for of in see.sites:
        looking.told["atlas" if of == "ffn" else "atlas_of_attention"] = {
            "file": _name(looking, atlas.write(looking, pictures, of))
        }
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
    if "attention" in looking.see.sites:
        directions.require(looking)
    for key, choice in TOKENS.items():
        passes.read_at(looking, choice(looking.see), key)
    return table.chosen(looking.see, looking.model, looking.run.recipe.data.masks is not None)


def _name(looking: Looking, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(looking.run.folder.root).as_posix()


def _about(looking: Looking, parts: list[str], left_out: dict[str, str]) -> Json:
    run, labels = looking.run, looking.run.images.labels[looking.index]
    classes = run.classes.every()
    most = max(int((labels == c).sum()) for c in classes)  # of one class
    without = [looking.name(c) for c in classes if not (labels == c).any()]
    return {
        "schema": SCHEMA,
        "parts": parts,
        "left_out": left_out,
        "images": {"n": len(looking.index), "per_class": most, "split": "probe"},
        "classes": [looking.name(c) for c in classes],
        "classes_without_images": without,
        "widths": [site.size for site in looking.sites],
        "sites": [site.name for site in looking.sites],
        "drawn": looking.see.units.list is None,
        "match": looking.see.units.match,
        "kept": {group or "": [int(mask.sum()) for mask in kept] for group, kept in looking.kept.items()},
        "attention": NOT_LOOKED_AT,
    }


NOT_LOOKED_AT = (
    "Not looked at: `see.sites: [ffn, attention]` does. Its units (a dimension of the values of a head) are directions that a "
    "rotation may change, not neurons with an activation of their own."
)


def told(run: Run) -> Json:
    """What the record has of a run whose units were looked at: see.json, under `see`."""
    return {"see": dict(read_json(run.folder.root / FOLDER / "see.json"))}
