"""The paper's Table 2 (App. E.3): ViT-Slim against JAS, and the same two like with like.

The paper sets ViT-Slim, one pruned model for every image, its gates trained on the probe split alone, against JAS masks
that are chosen by the image's TRUE label and touch the class token only. Both stand here as they are, with a third kind
of row that makes them comparable: JAS as one model for every image, units removed at every token, no repair. ViT-Slim
keeps the share of units that the recipe's `keep` asks for, and once more what each t of the protocol would keep; its
weights are the trained ones with `criterion.train_weights`, the dense model's without.
"""

from __future__ import annotations

from typing import Any

from vitprune.core.errors import UserError
from vitprune.model import size
from vitprune.paper.protocol import ALIGN, COLUMNS, Exam, Source, class_masks, shown
from vitprune.pruning.budget import Budget
from vitprune.pruning.masks import threshold_mask
from vitprune.recipe.experiments import Paper
from vitprune.runs import contenders
from vitprune.runs.contenders import Contender, Made
from vitprune.runs.stages import score
from vitprune.runs.state.run import Run

ONE_MODEL, ORACLE = "one model for every image", "class token, mask of the true label"


def check(run: Run, spec: Paper) -> None:
    """Raises UserError where the recipe's criterion is another one, or without a `paper_protocol`."""
    if run.recipe.paper_protocol is None or run.recipe.criterion.name != "vit-slim":
        raise UserError("paper: table-2 needs `criterion: {name: vit-slim, ...}` and a `paper_protocol` for JAS")


def table(run: Run, spec: Paper) -> dict[str, Any]:
    """Dense, ViT-Slim, JAS removed for real, and JAS in the paper's protocol, on the same test images."""
    recipe, p = run.recipe, run.recipe.paper_protocol
    assert p is not None
    exam = Exam.open(run, spec, p.probe_per_class)
    dense = contenders.make(run, Contender.dense(recipe.split.seed))
    rows = [_row("dense", ONE_MODEL, dense, None) | exam.of_model(run, dense.model)]
    for keep in {repr(k): k for k in (recipe.share, *p.t)}.values():
        slim, emptied = slimmed(run, keep)
        row = _row("vit-slim", ONE_MODEL, slim, keep) | {"emptied_blocks": emptied}
        rows.append(row | exam.of_model(run, slim.model))
    scores = score.load(run, "jas", max(p.t), p.how("jas"), p.probe_per_class)
    plan = Budget(recipe.share).plan(scores, run.sites, classes=run.classes.every())
    removed = contenders.make(run, Contender("jas", recipe.share, "none", recipe.split.seed), plan)
    rows.append(_row("jas", ONE_MODEL, removed, recipe.share) | exam.of_model(run, removed.model))
    units = sum(site.size for site in run.sites)
    for rule in spec.rules:
        for t in p.t:
            chosen = class_masks(run, Source("jas", t, p.how("jas"), p.probe_per_class, rule))
            row = _row("jas", ORACLE, dense, t) | {"protocol": "oracle", "units": rule, "kept": t * len(chosen) / units}
            rows.append(row | exam.oracle(run, chosen))
    return {"n": exam.tests, "train_weights": recipe.criterion.train_weights, "rows": rows, "costs": _costs(run)}


def slimmed(run: Run, keep: int | float) -> tuple[Made, int]:
    """ViT-Slim's pruned model at a budget (a count is per block on average), and how many blocks it would have emptied."""
    share = keep if isinstance(keep, float) else keep * len(run.sites) / sum(s.size for s in run.sites)
    plan, emptied = threshold_mask(score.scores_of(run, "vit-slim").sites, share)
    contender = Contender("vit-slim", keep, "none", run.recipe.split.seed)
    return contenders.make(run, contender, plan), emptied


def _row(method: str, how: str, made: Made, keep: int | float | None) -> dict[str, Any]:
    parameters, macs = size.parameters(made.model), size.macs(made.model)
    about = {"method": method, "how": how, "protocol": "honest", "units": None, "keep": keep, "kept": made.kept}
    return about | {"params": parameters, "macs": macs}


def _costs(run: Run) -> list[dict[str, Any]]:
    """What finding the units took; one pass finds JAS's paths of every t."""
    made: dict[str, dict[str, Any]] = {}
    for note in score.notes_of(run):
        name = note["settings"]["criterion"]
        if name in ("vit-slim", "jas"):
            cost = {key: note[key] for key in ("images", "seconds", "peak_memory_mb")}
            made[name] = {"method": name, "epochs": note["settings"].get("epochs"), **cost}
    return [made[name] for name in ("vit-slim", "jas")]


def markdown(record: dict[str, Any]) -> str:
    """The table in plain text."""
    weights = "trained along" if record["train_weights"] else "frozen"
    lines = [
        f"# Table 2 on `{record['model']}`: ViT-Slim against JAS",
        "",
        f"{record['n']} test images. ViT-Slim: gates learned on the probe split, weights {weights}, one threshold across "
        "blocks. The paper sets such a model against JAS masks that are chosen by the image's TRUE LABEL: "
        "oracle-routed, nothing gets smaller; what its authors' code calls accuracy is the mean probability of the true "
        "class, with one probe image per class among the test images. Like with like: the rows of one model for every image.",
        "",
        f"| method | how | class set | units kept | parameters | {COLUMNS} |",
        f"|---|---|---|---:|---:|{ALIGN}|",
    ]
    for r in record["rows"]:
        cells = [r["method"], r["how"], r["units"] or "", f"{100 * r['kept']:.1f} %", f"{r['params']:,}", shown(r)]
        lines.append(f"| {' | '.join(cells)} |")
    for cost in record["costs"]:
        passes = f", {cost['epochs']} passes of training" if cost["epochs"] else ""
        peak = "" if cost["peak_memory_mb"] is None else f", {cost['peak_memory_mb']:.0f} MB"
        seconds = f"{cost['seconds']:.1f} s in the call that ended it"
        lines += ["", f"{cost['method']}: {cost['images']} probe images{passes}, {seconds}{peak}."]
    emptied = max(row.get("emptied_blocks", 0) for row in record["rows"])
    if emptied:
        lines += ["", f"ViT-Slim's threshold would have emptied up to {emptied} block(s); the best unit was kept."]
    return "\n".join([*lines, ""])
