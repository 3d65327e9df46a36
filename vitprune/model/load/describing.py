"""An opened model with what is known of it: how its images are prepared, its outputs' names, who says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from vitprune.core.errors import UserError
from vitprune.core.errors import one_line as line
from vitprune.core.reading import Json
from vitprune.images.preprocess import Preprocessing
from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.families import ffn_sites
from vitprune.model.load import prepared
from vitprune.model.load.loaded import KEPT_CFG, Loaded
from vitprune.model.load.spec import Args, PreprocessSpec


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of weights beside them: the folder's own `cfg`, less what it only assumed (`unsaid`); what the recipe
    says of the preprocessing; whether they are `timms` own, whose facts timm knows, or `trained` elsewhere."""

    cfg: Json | None
    given: PreprocessSpec | None
    timms: bool = False
    trained: bool = True
    unsaid: set[str] = field(default_factory=set)


def describe(model: nn.Module, architecture: str, args: Args, source: Source) -> Loaded:
    """A built model with what is known of it. Raises UserError for images it cannot be given."""
    ffn_sites(model)
    cfg = source.cfg
    own = dict(getattr(model, "pretrained_cfg", None) or {})
    stated = {key for key, value in (own if source.timms else cfg or {}).items() if value is not None} - source.unsaid
    if not source.timms and not isinstance(model, Foreign):  # timm's default weights are not these
        own = {key: value for key, value in own.items() if key not in prepared.OF_WEIGHTS}
    own |= {k: v for k, v in (cfg or {}).items() if k in KEPT_CFG}
    model.pretrained_cfg = own  # type: ignore[assignment]
    channels, height, width = families.input_shape(model)
    own["input_size"] = (channels, height, width)
    for key in ("mean", "std"):  # a model made for other channels than its weights' keeps their average
        if isinstance(own.get(key), list | tuple) and own[key] and len(own[key]) != channels and key not in (cfg or {}):
            own[key] = (sum(own[key]) / len(own[key]),) * channels
    try:
        before = resolve_model_data_config(model, pretrained_cfg=own)
    except Exception as error:
        raise UserError(f"model `{architecture}`: its preprocessing cannot be read ({line(error)})") from error
    before["input_size"] = (channels, height, width)
    data_config = prepared.apply(before, source.given, fixed=cfg is not None)
    try:
        Preprocessing.of(data_config)
    except ValueError as error:
        raise UserError(f"model `{architecture}`: preprocessing {error} cannot be used") from error
    labels = _labels(own, int(getattr(model, "num_classes", 0)))
    widths = [site.size for site in ffn_sites(model)]
    origin = prepared.origin(before, data_config, source.given, stated, architecture, source.trained)
    return Loaded(model, architecture, args, data_config, labels, widths, origin=origin, notes=origin.notes)


def _labels(cfg: Json, outputs: int) -> list[str] | None:
    """One name per output; two spellings (ImageNet's synset and plain name) are joined by a tab."""
    names, more = cfg.get("label_names"), cfg.get("label_descriptions")
    if names is None and outputs == 1000:
        info = ImageNetInfo()
        names, more = info.label_names(), [text.split(",")[0] for text in info.label_descriptions()]
    if not isinstance(names, list | tuple) or len(names) != outputs:
        return None
    if isinstance(more, dict):
        more = [more.get(name, name) for name in names]
    if not isinstance(more, list | tuple) or len(more) != outputs:
        more = names
    return [str(n) if n == m else f"{n}\t{m}" for n, m in zip(names, more, strict=True)]
