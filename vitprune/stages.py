"""What each stage does. A stage reads earlier stages' files and returns the files it made; see pipeline.py for the order.

The test split is touched by `evaluate` and, to prove the written files, by `export`; by nothing before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from vitprune import checkpoint, data, evaluation, masks, models, paths, recovery, runtime, surgery
from vitprune.context import Context
from vitprune.criteria import CRITERIA
from vitprune.criteria.random import random
from vitprune.errors import UserError
from vitprune.files import digest, read_json, replacing, sha256, write_json
from vitprune.paths import Gathered
from vitprune.recovery import Moments
from vitprune.types import Mask, Metrics, Scores

CODE = "1"  # part of every stage's digest; raised when a stage's results change
SHARD = 64
LATENCY_BATCH = 32


# --- split ------------------------------------------------------------------------------------------------------------


def split(context: Context) -> list[Path]:
    """Decode every image once, split per class, write split.json."""
    recipe, source = context.recipe, context.source
    context.every_target()  # a class that does not exist is said before any work
    count = len(source.names)
    bad = data.unreadable(source, lambda items: context.reporter.track(items, "reading images", count))
    if bad and recipe.data.on_corrupt == "fail":
        raise UserError(bad[0][1] + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
    leave_out = {i for i, _ in bad} | set(_beyond_limit(source.class_of, recipe.data.limit_per_class))
    made = data.split_per_class(
        source.class_of, source.classes, seed=recipe.split.seed, probe=recipe.split.probe, leave_out=leave_out
    )
    path = context.folder.stage_folder("split") / "split.json"
    record = {
        "seed": made.seed,
        "probe_share": made.probe_share,
        "classes": source.classes,
        "per_class": [
            {"class": name, "probe": _count(made.probe, c, source), "test": _count(made.test, c, source)}
            for c, name in enumerate(source.classes)
        ],
        "skipped": [{"path": source.names[i], "reason": "not readable"} for i, _ in bad],
        "probe": made.probe.tolist(),
        "test": made.test.tolist(),
    }
    write_json(path, record)
    return [path]


def _count(part: np.ndarray, c: int, source: data.Source) -> int:
    return int((source.class_of[part] == c).sum())


def _beyond_limit(class_of: np.ndarray, limit: int | None) -> Iterator[int]:
    for c in np.unique(class_of) if limit else ():
        yield from np.flatnonzero(class_of == c)[limit:].tolist()


# --- discover ---------------------------------------------------------------------------------------------------------


def discover(context: Context) -> list[Path]:
    """Neuron paths and summed scores of every image criterion and t that the run needs, one file each."""
    return [_discover_one(context, *need) for need in sorted(discoveries(context))]


def discoveries(context: Context) -> set[tuple[str, int, int, int]]:
    """(criterion, t, nodes, probe images per class): the run's own, its baselines', the paper protocol's."""
    recipe = context.recipe
    mine = {recipe.criterion.name, *recipe.baselines} - {"random"}
    c = recipe.criterion
    needed = {(name, c.t, c.nodes, c.probe_per_class) for name in mine}
    if recipe.paper_protocol:
        p = recipe.paper_protocol
        needed |= {(name, t, p.nodes, p.probe_per_class) for name in ("jas", "activation") for t in p.t}
    smallest = min(site.width for site in context.sites)
    if needed and max(n[1] for n in needed) > smallest:
        raise UserError(f"criterion.t: {max(n[1] for n in needed)} units per block, but a block has only {smallest}")
    return needed


def discovery_file(context: Context, criterion: str, t: int, nodes: int, per_class: int) -> Path:
    """Where one discovery's columns are."""
    return context.folder.stage_folder("discover") / f"{criterion}-t{t}-m{nodes}-p{per_class}.safetensors"


def _discover_one(context: Context, criterion: str, t: int, nodes: int, per_class: int) -> Path:
    """Shard by shard; a shard that is already there from an interrupted run is taken as it is."""
    path = discovery_file(context, criterion, t, nodes, per_class)
    shards = path.parent / context.stage_inputs[:16] / path.stem
    images = context.images
    probe = context.split.probe
    probe = probe[np.isin(images.labels[probe], context.every_target())]
    index = data.first_per_class(probe, context.source.class_of, per_class)
    size = context.images_per_batch(nodes) if CRITERIA[criterion].path_dependent else context.batch
    step = math.ceil(SHARD / size) * size
    starts = range(0, len(index), step)
    parts = [
        _shard(context, shards / f"{start:07d}-of-{len(index)}-by-{size}.safetensors", criterion, t, nodes, part, size)
        for start in context.reporter.track(starts, f"discover {criterion} t={t}", len(index), step)
        for part in [index[start : start + step]]
    ]
    with replacing(path) as temporary:
        temporary.write_bytes(paths.merge(parts).to_bytes())
    return path


def _shard(
    context: Context, path: Path, criterion: str, t: int, nodes: int, index: np.ndarray, size: int
) -> Gathered:
    if path.is_file():
        try:
            found = Gathered.from_file(str(path))
            if np.array_equal(found.paths.image, index):
                return found
        except (SafetensorError, KeyError, OSError):
            pass  # a damaged shard is made again
    model, parts = context.loaded.model, []
    for start, (x, y) in zip(range(0, len(index), size), context.images.batches(index, size), strict=True):
        x, y = x.to(context.device), y.to(context.device)
        scores = CRITERIA[criterion].score(model, context.sites, x, y, t=t, nodes=nodes)
        parts.append(Gathered.of(scores, y, index[start : start + size], t, context.loaded.outputs))
    made = paths.merge(parts)
    with replacing(path) as temporary:
        temporary.write_bytes(made.to_bytes())
    return made


def scores_of(context: Context, criterion: str, seed: int = 0) -> Scores:
    """A criterion's scores at the recipe's own settings, from the discover stage."""
    if criterion == "random":
        return random(context.sites, seed=seed)
    c = context.recipe.criterion
    found = discovery_file(context, criterion, c.t, c.nodes, c.probe_per_class)
    return paths.to_scores(Gathered.from_file(str(found)), criterion)


# --- moments ----------------------------------------------------------------------------------------------------------


def moments(context: Context) -> list[Path]:
    """Mean and covariance of the dense model's hidden units on the probe images of each class set."""
    if context.recipe.recovery == "none":
        return []
    return [_moments_of(context, group, targets) for group, targets in context.class_sets().items()]


def _moments_file(context: Context, group: str | None) -> Path:
    return context.folder.stage_folder("moments") / f"{group or 'all'}.moments.safetensors"


def _moments_of(context: Context, group: str | None, targets: list[int]) -> Path:
    probe, images, size = context.split.probe, context.images, context.batch
    index = probe[np.isin(images.labels[probe], targets)]
    batches = (x for x, _ in images.batches(index, size))
    label = "statistics" + (f" {group}" if group else "")
    tracked = context.reporter.track(batches, label, len(index), size)
    stats = recovery.moments(context.loaded.model, context.sites, tracked)
    columns: dict[str, Tensor] = {}
    for i, stat in enumerate(stats):
        tokens = torch.tensor(stat.tokens)
        columns |= {f"mean.{i}": stat.mean, f"covariance.{i}": stat.covariance, f"tokens.{i}": tokens}
    path = _moments_file(context, group)
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(columns))
    return path


def moments_from_file(context: Context, group: str | None) -> list[Moments]:
    """What `moments` wrote for a class set; empty when the recipe asks for no recovery."""
    if context.recipe.recovery == "none":
        return []
    c = load_file(_moments_file(context, group))
    return [Moments(c[f"mean.{i}"], c[f"covariance.{i}"], int(c[f"tokens.{i}"])) for i in range(len(context.sites))]


# --- prune ------------------------------------------------------------------------------------------------------------


def prune(context: Context) -> list[Path]:
    """The slim model of every class set as a checkpoint folder with its masks."""
    files: list[Path] = []
    for group, targets in context.class_sets().items():
        recipe = context.recipe
        scores = scores_of(context, recipe.criterion.name, recipe.criterion.seed)
        mask = mask_of(context, scores, targets)
        stats = moments_from_file(context, group)
        slim = slimmed(context, mask, stats, recipe.recovery)
        folder = context.folder.root / (group or "")
        about = {
            "classes": [context.class_name(i) for i in targets],
            "recipe_hash": digest(recipe.model_dump(mode="json")),
            "keep": recipe.keep,
            "kept": mask.kept,
            "criterion": recipe.criterion.name,
            "recovery": recipe.recovery,
        }
        checkpoint.save(folder, context.loaded, slim, about)
        kept = {f"keep.{i}": keep for i, keep in enumerate(mask.blocks)}
        with replacing(folder / "masks.safetensors") as temporary:
            temporary.write_bytes(to_bytes(kept))
        difference = masked_against_sliced(context, mask, targets)
        check = context.folder.stage_folder("prune") / f"{group or 'all'}.json"
        write_json(check, {"widths": mask.widths, "kept": mask.kept, "masked_vs_sliced": difference})
        files += [folder / name for name in ("model.safetensors", "config.json", "masks.safetensors")] + [check]
    return files


def mask_of(context: Context, scores: Scores, targets: list[int]) -> Mask:
    """The mask for a class set at the recipe's budget."""
    return masks.build(scores, context.recipe.keep, classes=targets, round_to=context.recipe.round_to)


def slimmed(context: Context, mask: Mask, stats: list[Moments], how: recovery.Recovery) -> nn.Module:
    """The dense model without the units the mask drops, repaired."""
    dense = context.loaded.model
    slim = surgery.slim(dense, mask)
    recovery.repair(slim, dense, mask, stats, how)
    return slim


def masked_against_sliced(context: Context, mask: Mask, targets: list[int]) -> float:
    """Largest difference of logits between masked dense and unrepaired slim model, over the largest logit; 16 images."""
    probe = context.split.probe
    index = probe[np.isin(context.images.labels[probe], targets)][:16]
    x, _ = next(context.images.batches(index, 16))
    return surgery.masked_vs_sliced(context.loaded.model, mask, x.to(context.device))


# --- evaluate ---------------------------------------------------------------------------------------------------------


def evaluate(context: Context) -> list[Path]:
    """Every row of the report on the test split; all choices have been made by the stages before."""
    rows: list[dict[str, Any]] = []
    per_class: dict[str, Any] = {}
    for group, targets in context.class_sets().items():
        made, classes = _evaluate_set(context, group, targets)
        rows += made
        per_class[group or ""] = classes
    if context.recipe.paper_protocol:
        rows += _oracle_rows(context)
    path = context.folder.stage_folder("evaluate") / "rows.json"
    write_json(path, {"rows": rows, "per_class": per_class})
    return [path]


def _evaluate_set(context: Context, group: str | None, targets: list[int]) -> tuple[list[dict[str, Any]], list[Any]]:
    recipe, stats = context.recipe, moments_from_file(context, group)
    main = (recipe.criterion.name, recipe.criterion.seed if recipe.criterion.name == "random" else recipe.split.seed)
    contenders = [main] + [(name, recipe.split.seed) for name in recipe.baselines if name not in (main[0], "random")]
    if "random" in recipe.baselines:
        contenders += [("random", s) for s in range(recipe.random_draws) if ("random", s) != main]
    jobs = [("dense", recipe.split.seed, "none")]
    jobs += [(n, s, how) for n, s in contenders for how in dict.fromkeys(("none", recipe.recovery))]
    rows: list[dict[str, Any]] = []
    seen: dict[str, Metrics] = {}
    for name, seed, how in context.reporter.track(jobs, f"evaluate{' ' + group if group else ''}", len(jobs)):
        exported = (name, seed) == main and how == recipe.recovery
        mask = None if name == "dense" else mask_of(context, scores_of(context, name, seed), targets)
        if mask is None:
            model = context.loaded.model
        elif exported:
            model = checkpoint.load(context.folder.root / (group or ""), context.device)
        else:
            model = slimmed(context, mask, stats, how)  # type: ignore[arg-type]
        logits, labels = evaluation.test_logits(
            evaluation.predictor(model), context.images, context.split, context.batch, np.array(targets)
        )
        for head in ("all", "masked") if len(targets) < context.loaded.outputs else ("all",):
            m = _finite_metrics(logits, labels, targets if head == "masked" else None, name)
            row = _row(context, name, how, m, model, targets, mask.kept if mask else 1.0)
            rows.append(row | {"seed": seed, "group": group, "head": head, "exported": exported and head == "all"})
            if head == "all" and (name == "dense" or exported):
                seen["dense" if name == "dense" else "slim"] = m
    return rows, _per_class(context, targets, seen, labels)


def _finite_metrics(logits: np.ndarray, labels: np.ndarray, head: list[int] | None, name: str) -> Metrics:
    try:
        return evaluation.metrics(logits, labels, head)
    except ValueError as error:
        raise UserError(f"evaluate, {name}: {error}; check the model's weights and the images") from error


def _row(
    context: Context, name: str, how: str, m: Metrics, model: nn.Module, targets: list[int], kept: float
) -> dict[str, Any]:
    return {
        "criterion": name,
        "keep": 1.0 if name == "dense" else context.recipe.keep,
        "kept": kept,
        "allocation": context.recipe.allocation,
        "recovery": how,
        "protocol": "honest",
        "t": None,
        "group": None,
        "classes": [context.class_name(i) for i in targets],
        "head": "all",
        "seed": context.recipe.split.seed,
        "top1": m.top1,
        "top1_ci95": list(m.top1_ci95),
        "mean_true_probability": m.mean_true_probability,
        "per_class_top1": {context.class_name(i): _number(m.per_class[i]) for i in targets},
        "params": evaluation.parameters(model),
        "macs": evaluation.macs(model),
        "n": m.n,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _per_class(context: Context, targets: list[int], seen: dict[str, Metrics], labels: np.ndarray) -> list[Any]:
    return [
        {
            "class": context.class_name(i),
            "n": int((labels == i).sum()),
            "dense_top1": _number(seen["dense"].per_class[i]),
            "slim_top1": _number(seen["slim"].per_class[i]),
        }
        for i in targets
    ]


def _oracle_rows(context: Context) -> list[dict[str, Any]]:
    """The paper's protocol on all test images of the run's classes: class token only, mask of the true label."""
    p, targets = context.recipe.paper_protocol, context.every_target()
    assert p is not None
    model, rows = context.loaded.model, []
    only = np.array(targets)
    index = evaluation.test_indices(context.images, context.split, only)
    for name in ("jas", "activation"):
        for t in p.t:
            file = discovery_file(context, name, t, p.nodes, p.probe_per_class)
            keep = masks.per_class(paths.to_scores(Gathered.from_file(str(file)), name), t)
            label = f"paper protocol {name} t={t}"
            logits, labels = evaluation.oracle_logits(
                model,
                context.sites,
                keep,
                context.images,
                index,
                context.batch,
                lambda items, label=label: context.reporter.track(items, label, len(index), context.batch),  # type: ignore[misc]
            )
            m = _finite_metrics(logits, labels, None, name)
            kept = t * len(context.sites) / sum(site.width for site in context.sites)
            row = _row(context, name, "none", m, model, targets, kept)
            rows.append(row | {"keep": t, "protocol": "oracle", "t": t, "exported": False})
    return rows


# --- export -----------------------------------------------------------------------------------------------------------


def export(context: Context) -> list[Path]:
    """ONNX of every slim model, parity on real images, agreement on the whole test split, latency beside the dense one."""
    if not context.recipe.export.onnx:
        return []
    from vitprune import onnx_export

    stage = context.folder.stage_folder("export")
    dense = stage / "dense.onnx"
    onnx_export.export(context.loaded.model, dense, metadata(context, context.every_target()))
    files = [dense]
    for group, targets in context.class_sets().items():
        folder = context.folder.root / (group or "")
        slim, path = checkpoint.load(folder, context.device), folder / "model.onnx"
        context.reporter.say(f"export: {path}")
        onnx_export.export(slim, path, metadata(context, targets))
        probe = context.split.probe
        real, _ = next(context.images.batches(probe[: max(onnx_export.PARITY_BATCHES)], 8))
        result = {
            "opset": onnx_export.OPSET,
            "parity": {str(b): d for b, d in onnx_export.parity(slim, path, real).items()},
            "agreement": _agreement(context, slim, path),
            "latency": _latency(context, dense, path),
            "sha256": sha256(path),
        }
        write_json(stage / f"{group or 'all'}.json", result)
        files += [path, stage / f"{group or 'all'}.json"]
    return files


def metadata(context: Context, targets: list[int]) -> dict[str, Any]:
    """What an ONNX file carries: labels, preprocessing, classes, recipe hash, versions."""
    import vitprune

    labels = context.loaded.labels or [context.class_name(i) for i in range(context.loaded.outputs)]
    return {
        "labels": [label.split("\t")[-1] for label in labels],
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in context.loaded.data_config.items()},
        "classes": [context.class_name(i) for i in targets],
        "recipe_hash": digest(context.recipe.model_dump(mode="json")),
        "versions": {"vitprune": vitprune.__version__, "torch": torch.__version__},
    }


def _agreement(context: Context, slim: nn.Module, path: Path) -> dict[str, Any]:
    """The written ONNX file against the reloaded checkpoint on all test images."""
    made = runtime.session(path)
    images, split_, batch = context.images, context.split, context.batch
    torch_logits, labels = evaluation.test_logits(evaluation.predictor(slim), images, split_, batch)
    onnx_logits, _ = evaluation.test_logits(
        lambda x: torch.from_numpy(runtime.predict(made, x.numpy())), images, split_, batch
    )
    return {
        "n": len(labels),
        "max_abs_diff": float(np.abs(torch_logits - onnx_logits).max()),
        "same_top1": int((torch_logits.argmax(1) == onnx_logits.argmax(1)).sum()),
        "onnx_top1": float((onnx_logits.argmax(1) == labels).mean()),
    }


def _latency(context: Context, dense: Path, slim: Path) -> list[dict[str, Any]]:
    sessions = {"dense": runtime.session(dense), "slim": runtime.session(slim)}
    rows = []
    for batch in sorted({*context.recipe.export.latency_batches, LATENCY_BATCH}):
        shape = (batch, *models.input_shape(context.loaded.model))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        found = runtime.interleaved(sessions, images, seconds=2.0)
        d, s = found["dense"], found["slim"]
        rows.append(
            {
                "batch": batch,
                "dense_ms": d["median_ms"],
                "slim_ms": s["median_ms"],
                "ratio": s["median_ms"] / d["median_ms"],
                "dense_quartiles_ms": [d["q25_ms"], d["q75_ms"]],
                "slim_quartiles_ms": [s["q25_ms"], s["q75_ms"]],
                "runtime": f"onnxruntime {sessions['slim'].get_providers()[0]}",
            }
        )
    return rows


def stage_json(context: Context, stage: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a stage, or None when that stage has not run."""
    path = context.folder.stage_folder(stage) / name
    return dict(read_json(path)) if path.is_file() else None
