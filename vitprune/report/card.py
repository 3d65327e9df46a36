"""A checkpoint folder's README.md: a model card with the Hub's front matter, its metrics from the report's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vitprune.core.files import write_text
from vitprune.core.reading import Json, read_json
from vitprune.report.backbone import card as backbone
from vitprune.report.page.markdown import escape
from vitprune.report.page.numbers import probability
from vitprune.report.reading.rows import dense_for, of_protocol
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence


def write_cards(record: Json, root: Path) -> list[Path]:
    """README.md beside every config.json of a run; `record` holds pure JSON types. Returns the paths."""
    results = mapping(record.get("results")) or {"": mapping(record.get("result"))}
    found = [(root / group, mapping(result)) for group, result in results.items()]
    made = [(folder, result) for folder, result in found if result and (folder / "config.json").is_file()]
    for folder, result in made:
        write_text(folder / "README.md", card(record, result, read_json(folder / "config.json")))
    return [folder / "README.md" for folder, _ in made]


def card(record: Json, result: Json, config: Json) -> str:
    """The card of one exported model: `result` is its row of the report, `config` its config.json."""
    front = yaml.safe_dump(_front(record, result, config), sort_keys=False, allow_unicode=True)
    title = f"# {escape(_name(record, result))}"
    figures = ["## Features", backbone.table(record, result)] if _headless(record) else []
    figures = figures or ["## Accuracy", _table(record, result)]
    parts = [title, _what(record, result, config), *_warnings(record), *figures]
    parts += [
        _latency(result),
        "## Use",
        *_use(record, result, config),
        "## Where it comes from",
        _origin(record, config),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front(record: Json, result: Json, config: Json) -> Json:
    model, data = (mapping(mapping(record.get("recipe")).get(part)) for part in ("model", "data"))
    cfg = mapping(config.get("pretrained_cfg"))
    tags = ["image-classification", "timm", "vitprune", "pruning", *(["onnx"] if _has_onnx(record) else [])]
    front: Json = {
        "library_name": "vitprune" if _ragged(config) or _attention(config) else "timm",
        "pipeline_tag": "image-classification",
        "license": clean(cfg.get("license")) or "unknown",  # the Hub's word for one that is not stated
        "tags": tags,
        "metrics": ["accuracy"],
    }
    if base := _base(model, config):
        front["base_model"] = base
    named, path = clean(data.get("dataset")), clean(data.get("test") or data.get("path"))
    dataset = {"name": Path(path).name or path, "type": "imagefolder"} if path else _BUNDLED
    dataset = {"name": Path(named).name, "type": named.split("/")[0]} if named else dataset
    metric = {"type": "accuracy", "name": "top-1", "value": number(result.get("top1"))}
    task = {"type": "image-classification", "name": "Image Classification"}
    if _headless(record):
        task = {"type": "image-feature-extraction", "name": "Image Feature Extraction"}
        front |= {"pipeline_tag": task["type"], "tags": [task["type"], *tags[1:]], "metrics": ["cosine", "fvu"]}
    entry = {
        "task": task,
        "dataset": dataset | {"split": "test"},
        "metrics": backbone.metrics(result) if _headless(record) else [metric],
    }
    return front | {"model-index": [{"name": _name(record, result), "results": [entry]}]}


def _headless(record: Json) -> bool:
    """Whether the model is a backbone, whose outputs are features."""
    return bool(mapping(record.get("backbone")))


def _base(model: Json, config: Json) -> str:
    """The Hub's name of the weights that were pruned, where they came from there; local weights have none."""
    name, tag = clean(model.get("name")), clean(mapping(config.get("pretrained_cfg")).get("tag"))
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:").partition("@")[0]
    fetched = model.get("pretrained") is True and ":" not in name
    return f"timm/{clean(config.get('architecture'))}.{tag}" if fetched and tag else ""


_BUNDLED = {"name": "Fashion-MNIST (test images, vitprune's held-out fifth)", "type": "fashion_mnist"}


def _name(record: Json, result: Json) -> str:
    group = clean(result.get("group"))
    return clean(record.get("name")) + (f"-{group}" if group else "")


def _widths(config: Json) -> list[Any]:
    given = mapping(config.get("vitprune")).get("widths")
    return list(given.values()) if isinstance(given, dict) else sequence(given)


def _ragged(config: Json) -> bool:
    return len(set(_widths(config))) > 1


def _attention(config: Json) -> list[str]:
    """Heads × dimensions of a head, block by block; nothing where attention is whole."""
    slim = mapping(mapping(config.get("vitprune")).get("attention"))
    return [
        " × ".join(map(clean, sequence(state))) if sequence(state)[:1] != [0] else "none" for state in slim.values()
    ]


def _has_onnx(record: Json) -> bool:
    return any(clean(file.get("path")).endswith("model.onnx") for file in mappings(record.get("files")))


def _what(record: Json, result: Json, config: Json) -> str:
    kept, widths = number(result.get("kept")), _widths(config)
    share = f"{100 * kept:.1f} % of" if kept is not None else "some of"
    shape = f"{len(widths)} blocks of {widths[0]}" if len(set(widths)) == 1 else f"widths {', '.join(map(str, widths))}"
    classes, known = sequence(result.get("classes")), sequence(record.get("classes"))
    serves = (
        f"It serves {len(classes)} of the images' {len(known)} classes: {escape(', '.join(map(clean, classes)))}."
        if len(classes) < len(known)
        else f"It serves all {len(known)} classes of the images."
    )
    slim = _attention(config)
    sizes = "heads × dimensions of a head"
    sizes += ", or × those of its queries × of its values," if any(state.count("×") == 2 for state in slim) else ""
    attention = f" Its attention is slim too, {sizes} by block: {', '.join(slim)}." if slim else ""
    serves = "It has no head: its outputs are features." if _headless(record) else serves
    return (
        f"A `{clean(config.get('architecture'))}` made smaller by vitprune: {share} its FFN hidden units are kept ({shape}), "
        f"chosen by `{clean(result.get('criterion'))}`; repair: `{clean(result.get('recovery'))}`.{attention} {serves}"
    )


def _warnings(record: Json) -> list[str]:
    failed = [clean(check.get("name")) for check in mappings(record.get("checks")) if check.get("passed") is not True]
    notes = [f"> {escape(clean(note))}" for note in sequence(record.get("notes"))]
    return [*notes, *([f"> **Failed checks:** {escape('; '.join(failed))}"] if failed else [])]


def _table(record: Json, result: Json) -> str:
    rows = of_protocol(record, "honest")
    dense = dense_for(rows, result | {"protocol": "honest"})
    lines = ["| model | top-1 | 95 % interval | parameters | multiply-adds |", "|---|---:|---:|---:|---:|"]
    lines += [_row("dense", dense)] if dense else []
    lines.append(_row("**this one**", result))
    n, p = number(result.get("n")), number(mapping(dense).get("mcnemar_p"))
    test = f" Against dense, McNemar's exact test on the same images: p = {probability(p)}." if p is not None else ""
    return "\n".join(lines) + (f"\n\nOn {n:,.0f} test images, which took no part in any choice.{test}" if n else "")


def _row(name: str, row: Json) -> str:
    top1, interval = number(row.get("top1")), sequence(row.get("top1_ci95"))
    ends = [end for x in interval if (end := number(x)) is not None]
    spread = f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}" if len(ends) == len(interval) == 2 else ""
    counts = [f"{value:,.0f}" if (value := number(row.get(key))) is not None else "" for key in ("params", "macs")]
    return f"| {name} | {f'{100 * top1:.2f} %' if top1 is not None else ''} | {spread} | {' | '.join(counts)} |"


def _latency(result: Json) -> str:
    ratio = number(result.get("latency_ratio"))
    batch = clean(result.get("latency_batch"))
    doubt = "; ".join(clean(note) for note in sequence(result.get("latency_notes")))
    text = f"ONNX Runtime, batch {batch}: {ratio:.3f} of the dense model's time." if ratio else ""
    return f"{text} In doubt: {escape(doubt)}." if text and doubt else text


def _use(record: Json, result: Json, config: Json) -> list[str]:
    mine = 'import vitprune\n\nmodel = vitprune.load("FOLDER")  # a timm model in eval mode'
    theirs = 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
    parts: list[str] = []
    if _ragged(config) or _attention(config):
        what = "attention has fewer heads or dimensions than its architecture" if _attention(config) else ""
        why = (
            f"The {what or 'blocks have different widths'}, which plain timm cannot build: `timm.create_model` ends with "
            "`unexpected keyword argument 'ragged_widths_need_vitprune_load'`. `vitprune.load` can."
        )
        parts = [why, f"```python\n{mine}\n```"]
    if _headless(record):
        parts = [*parts[:1], *backbone.use(bool(parts))]
    elif not parts:
        parts = [f"```python\n{theirs}\n```", f"or\n\n```python\n{mine}\n```"]
    if _has_onnx(record):
        out = " --out features.npz" if _headless(record) else ""
        parts.append(f"Without torch, from `model.onnx` alone:\n\n```sh\nvitprune predict FOLDER photo.jpg{out}\n```")
    open_set = mapping(result.get("open_set"))
    if (threshold := number(open_set.get("threshold"))) is not None:
        rate, images = number(open_set.get("true_positive_rate")), clean(open_set.get("images"))
        parts.append(
            f"Below a softmax probability of {threshold:.4f} for the best of its classes it answers “not one of my "
            f"classes”; {100 * (rate or 0):.0f} % of {images} probe images of its classes lie above. The repair has seen the "
            "probe images too."
        )
    return parts


def _origin(record: Json, config: Json) -> str:
    block, versions = mapping(config.get("vitprune")), mapping(record.get("versions"))
    made = ", ".join(f"{name} {clean(versions[name])}" for name in ("vitprune", "torch", "timm") if name in versions)
    model = clean(mapping(mapping(record.get("recipe")).get("model")).get("name"))
    folder = model.startswith("local-dir:") or (model.startswith("transformers:") and "/" in model)
    if folder:
        model = f"a local folder, {Path(model.partition(':')[2]).name}"  # where it was is nobody's business
    licence = clean(mapping(config.get("pretrained_cfg")).get("license")) or "not stated"
    return "\n".join(
        [
            f"- Model before: {escape(model)}",
            f"- Licence of its weights: {escape(licence)}",
            f"- Recipe: `recipe.yaml`, fingerprint `{clean(block.get('recipe_hash'))}`",
            f"- Weights: `model.safetensors`, sha256 `{clean(block.get('sha256'))}`",
            "- Which units were kept: `masks.safetensors`; which images chose and which judged: `split.json`",
            f"- Made with {made}",
        ]
    )
