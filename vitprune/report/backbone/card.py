"""What a model card says of a backbone's features in the place of accuracies."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.backbone.result import beside, sentence
from vitprune.report.page.markdown import escape
from vitprune.report.reading.values import clean, mapping, mappings, number

COLUMNS = ("cosine", "fvu", "tokens_cosine", "tokens_fvu", "neighbours", "params", "macs")
HEAD = "| model | cosine | FVU | patches' cosine | patches' FVU | same neighbours | parameters | multiply-adds |"


def table(record: Json, result: Json) -> str:
    """The sentence, the dense and the slim model in a table, random units beside, and what becomes of an index."""
    dense = [row for row in mappings(record.get("rows")) if row.get("criterion") == "dense"]
    drawn = beside(record, result, "random")[:1]
    lines = [HEAD, "|---|" + "---:|" * len(COLUMNS)]
    lines += [_row("dense", row) for row in dense[:1]]
    lines.append(_row("**this one**", result))
    lines += [_row("random units, the same repair", row) for row in drawn]
    index = escape(clean(mapping(record.get("backbone")).get("index")))
    return "\n\n".join(part for part in (escape(sentence(record, result)), "\n".join(lines), index) if part)


def _row(name: str, row: Json) -> str:
    cells = []
    for key in COLUMNS:
        value = number(row.get(key))
        whole = key in ("params", "macs")
        shown = f"{value:,.0f}" if whole and value is not None else f"{value:.4f}" if value is not None else ""
        cells.append(f"{100 * value:.0f} %" if key == "neighbours" and value is not None else shown)
    return f"| {name} | {' | '.join(cells)} |"


def metrics(result: Json) -> list[Json]:
    """The card's front matter: cosine and FVU as the Hub lists metrics."""
    named = (("cosine", "cosine to the dense features"), ("fvu", "fraction of variance unexplained"))
    told = [(key, name, number(result.get(key))) for key, name in named]
    return [{"type": key, "name": name, "value": value} for key, name, value in told if value is not None]


def use(ragged: bool) -> list[str]:
    """The lines that load it and take its features."""
    load = 'import vitprune\n\nmodel = vitprune.load("FOLDER")  # a timm model in eval mode'
    if not ragged:
        load = 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
    lines = "features = model(images)\ntokens = model.forward_features(images)  # after the final norm"
    return [f"```python\n{load}\n{lines}\n```"]
