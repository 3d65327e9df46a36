"""A pruned vision-language model as a folder: for plain transformers where every layer of a tower has one width, otherwise
for `opening.py`, which reads the widths from config.json."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vitprune.core import files, ledger
from vitprune.core.errors import UserError, one_line
from vitprune.core.ledger import Ledger
from vitprune.core.reading import Json, read_json
from vitprune.model.vlm import sites
from vitprune.model.vlm.opening import OURS, Vlm
from vitprune.model.vlm.sites import GroupSite, Tower


def save(vlm: Vlm, model: nn.Module, folder: Path, about: Json) -> bool:
    """Write `model` (pruned from `vlm`) as a folder of transformers, processor included; `about` joins what config.json says
    of us. Returns whether plain `from_pretrained` reads it; otherwise `open_vlm` does.

    Raises UserError where a file stands in the folder that is not ours, or the folder is the model's own.
    """
    if folder.resolve() == vlm.folder.resolve():
        raise UserError(f"{folder}: is the folder of the model itself; choose another --out")
    made: Any = model
    (config, _), before = _told(vlm, model), made.config
    folder.mkdir(parents=True, exist_ok=True)
    Ledger(folder).create()
    try:
        with files.scratch(folder) as work, tempfile.TemporaryDirectory(dir=work) as place:
            if config is None:
                _write_ragged(made, Path(place))
            else:
                made.config = config
                made.save_pretrained(place)
            if vlm.processor is not None:
                vlm.processor.save_pretrained(place)
            path = Path(place) / "config.json"
            widths = {} if config is not None else {"widths": {s.name: s.size for s in sites.named(model).values()}}
            content = read_json(path) | {OURS: widths | about}
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
            written = set()
            for file in sorted(p for p in Path(place).rglob("*") if p.is_file()):
                target = folder / file.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.put(file, target)
                written.add(ledger.plain(target))
            for path in Ledger(folder).files(folder) - written:  # of a model that was saved here before
                path.unlink()
    finally:
        made.config = before
    return config is not None


def _write_ragged(model: Any, place: Path) -> None:
    """Configuration and weights under the names that they have in the model, tied ones once."""
    model.config.save_pretrained(place)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(place)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(state, str(place / "model.safetensors"), {"format": "pt"})


def unsaid(vlm: Vlm, model: nn.Module) -> str:
    """What transformers' configuration has no words for in `model`, pruned from `vlm`; empty where plain `from_pretrained`
    builds it."""
    return _told(vlm, model)[1]


class _NoWordsError(ValueError):
    """A configuration cannot say this."""


def _told(vlm: Vlm, model: nn.Module) -> tuple[Any, str]:
    """The configuration from which transformers itself builds exactly this model; None where there is none, and why."""
    config: Any = copy.deepcopy(model.config)
    try:
        _tell_width(config.vision_config, "vision", vlm.model, model)
        _tell_width(config.text_config, "language", vlm.model, model)
        _tell_groups(config.text_config, sites.groups(model))
    except _NoWordsError as error:
        return None, str(error)
    try:
        with torch.device("meta"):
            plan = type(model)(type(config).from_dict(config.to_dict()))
    except Exception as error:  # configurations raise whatever they like
        return None, f"these widths: its own reading refuses them ({one_line(error)})"
    theirs = {name: value.shape for name, value in plan.state_dict().items()}
    for name, value in model.state_dict().items():
        if theirs.pop(name, None) != value.shape:
            return None, f"the shape of {name}"
    return (None, f"a model without {next(iter(theirs))}") if theirs else (config, "")


def _tell_width(part: Any, which: Tower, dense: nn.Module, model: nn.Module) -> None:
    now = {site.size for site in sites.ffns(model, which)}
    if len(now) > 1:
        raise _NoWordsError(f"layers of the {which} tower that differ in width")
    width = now.pop()
    if {site.size for site in sites.ffns(dense, which)} == {width}:
        return
    if hasattr(part, "mlp_ratio"):
        dim = getattr(part, "embed_dim", None) or part.hidden_size
        if width % dim and isinstance(part.mlp_ratio, int):
            raise _NoWordsError(f"a {which} width of {width} at a dimension of {dim}: it is told as a whole multiple")
        # of the kind that it was: a whole number is refused where it is a float, and the other way round
        part.mlp_ratio = (width + 0.5) / dim if width % dim else type(part.mlp_ratio)(width // dim)
    else:
        part.intermediate_size = width


def _tell_groups(part: Any, found: list[GroupSite]) -> None:
    if len({site.size for site in found}) > 1:
        raise _NoWordsError("layers of the language tower that differ in groups of heads")
    one = found[0]
    if part.num_key_value_heads != one.size:
        part.num_key_value_heads, part.num_attention_heads = one.size, one.size * one.queries
        part.head_dim = one.width
