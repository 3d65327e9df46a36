"""What `vitprune models` says: per family the tested names, which criteria apply, and which repairs; with `--all` every
timm name of the modules that the families come from, built on the meta device, and whether it is supported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import timm

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.criteria.catalog import CRITERIA, why_not
from vitprune.model import classifier
from vitprune.model.families import FAMILIES, ffn_sites, input_shape, token_layout
from vitprune.model.load import build
from vitprune.model.sites.attention import stays
from vitprune.model.sites.attention_layers import WHAT
from vitprune.pruning.repair.names import RECOVERIES, closed_form
from vitprune.recipe.seeing import PARTS

BY_BLOCK = ("sequential", "layerwise")
SAID = {"ffn": "FFN", "values": "V/proj", "query_keys": "Q/K", "heads": "heads"}
MODULES = (
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "deit", "beit",
    "eva", "naflexvit", "hiera", "swin_transformer", "swin_transformer_v2",
)  # fmt: skip
NEED_HALVES = ("alignment", "readout", "masks", "blocks", "stimuli")  # the parts of `see` that ask what units write


def families() -> list[Json]:
    """One row per family. `sites`: for every kind why it stays as it is, None where it need not. `all_tokens_only`: criteria
    that apply with `tokens: all` or `patches`, not with `cls`."""
    rows = []
    for name, family in FAMILIES.items():
        facts = {"class_token": family.tokens == "class", "halves": family.halves}
        every = [c for c in [*CRITERIA, "random"] if why_not(c, "all", **facts) is None]
        rows.append(
            {
                "family": name,
                "title": family.title,
                "names": list(family.names),
                "tokens": family.tokens,
                "criteria": [c for c in every if why_not(c, "cls", **facts) is None],
                "all_tokens_only": [c for c in every if why_not(c, "cls", **facts) is not None],
                "sites": {"ffn": None} | {kind: family.stays.get(kind) for kind in WHAT},
                "see": [part for part in PARTS if part not in NEED_HALVES or family.halves],
                "repairs": [r for r in RECOVERIES if family.halves or closed_form(r) not in BY_BLOCK],
            }
        )
    return rows


def line(row: Json) -> str:
    """A family in one line of a terminal."""
    missing = [c for c in CRITERIA if c not in row["criteria"] + row["all_tokens_only"]]
    but = [f"not {', '.join(missing)}"] if missing else []
    but += [f"with tokens: all {', '.join(row['all_tokens_only'])}"] if row["all_tokens_only"] else []
    return (
        f"{row['family']:<16}{', '.join(row['names'])}\n{'':<16}{row['title']}; "
        + ("; ".join(but) or "every criterion")
        + f"\n{'':<16}{_sites(row['sites'])}; see: {', '.join(row['see'])}"
    )


def _sites(sites: Json) -> str:
    """Whether each kind of site can become smaller, and why not."""
    every: list[str] = []
    for kind, why in sites.items():
        reason = "" if why is None or any(why in said for said in every) else f" ({why})"
        every.append(f"{SAID[kind]} {'yes' if why is None else 'no'}{reason}")
    return ", ".join(every)


def every() -> Iterator[Json]:
    """A row for every timm name: `why_not` it is not supported (None: it is), its input size and FFN widths, and whether
    it comes with a classifier (else `num_classes` has to be given)."""
    for module in MODULES:
        for name in timm.list_models(module=module):
            yield {"name": name, "module": module, **_examined(name)}


def _examined(name: str) -> Json:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build.on_meta(name, {})
    try:
        widths = sorted({site.size for site in ffn_sites(model)})
        token_layout(model)
        found: Json = {"why_not": None, "input_size": list(input_shape(model)), "widths": widths}
        found["sites"] = {"ffn": None} | {kind: stays(model).get(kind) for kind in WHAT}
    except UserError as error:
        return {"why_not": str(error)}
    try:
        return {**found, "classifier": classifier.outputs(model) > 0}
    except UserError:
        return {**found, "classifier": False}


def name_line(row: Json) -> str:
    """A timm name in one line of a terminal."""
    if row["why_not"] is not None:
        return f"{row['name']:<48}no: {row['why_not']}"
    size = "x".join(map(str, row["input_size"]))
    own = ", ".join(SAID[kind] for kind, why in row["sites"].items() if why is None)
    return f"{row['name']:<48}yes, {size}, {own}" + (
        "" if row["classifier"] else ", no classifier: give model.args.num_classes"
    )
