"""Every group's model in one table: beside the dense and the generic model with the same classes, and against strangers."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Row, Text, table
from vitprune.report.reading.rows import dense_for, of_protocol
from vitprune.report.reading.values import clean, interval, mapping, mappings, number

MODELS = {"dense": "dense", "generic": "generic: one for the classes of all groups", "specialist": "the group's own"}
HEADS = {"all": "all outputs", "masked": "only the group's classes"}
COLUMNS = (
    "Group", ">Dense", ">Generic", ">Own", ">Against dense, points", ">p", ">Kept", ">Strangers apart", ">Strangers let in",
)  # fmt: skip
EXPLAINED = (
    "Dense, generic and own: top-1 on the group's test images, the other classes closed on the head. Generic: one model of "
    "the same budget for the classes of all groups. Strangers are test images of other classes. Apart: how often an image of "
    "the group has a higher largest softmax than a stranger (AUROC, a coin has 50 %). Let in: strangers above the threshold "
    "that lets in 95 % of the group's own."
)


def groups_blocks(record: Json) -> list[Block]:
    """The sentence and the table of all groups, then who did what; nothing where the run has no groups."""
    groups = mapping(record.get("results"))
    if not groups:
        return []
    seen = mappings(record.get("specialists"))
    exported = table(
        "Exported models, one per group", _EXPORTED, (_exported(k, mapping(v), record) for k, v in groups.items())
    )
    if not seen:
        return [Text(_sentence(groups), "lead"), exported]
    rows = (_row(name, mapping(result), seen, record) for name, result in groups.items())
    every = table("Every model with every head, on every group's test images", _EVERY, map(_every, seen))
    return [
        Text(_sentence(groups), "lead"),
        table("All groups: the specialist beside the dense and the generic model", COLUMNS, rows),
        Text(EXPLAINED, "note"),
        Fold("How each was made, and every model with every head", (exported, every)),
    ]


def _sentence(groups: Json) -> str:
    changes = {
        clean(k): c for k, v in groups.items() if (c := number(mapping(v).get("top1_change_points"))) is not None
    }
    made = numbers.plural(len(groups), "model", "models")
    if not changes:
        return f"{made} exported, one per group; what they lost against the dense model is not in the record."
    worst, best = min(changes, key=lambda k: changes[k]), max(changes, key=lambda k: changes[k])
    text = f"{made} exported, one per group: top-1 against the dense model with the same classes changed by "
    text += f"{numbers.points(changes[worst])} points in {worst}"
    return f"{text} (the worst) to {numbers.points(changes[best])} in {best}." if len(changes) > 1 else f"{text}."


def _row(name: str, result: Json, seen: list[Json], record: Json) -> Row:
    def of(model: str) -> Json:
        own = (row for row in seen if row.get("group") == name and row.get("model") == model)
        return next((row for row in own if row.get("head") == "masked"), {})

    tops = [number(of(model).get("top1")) for model in ("dense", "generic", "specialist")]
    dense = mapping(dense_for(of_protocol(record, "honest"), result | {"protocol": "honest"}))
    change, p, kept = (
        number(result.get("top1_change_points")),
        number(dense.get("mcnemar_p")),
        number(result.get("kept")),
    )
    apart, let_in = (number(of("specialist").get(key)) for key in ("auroc_max_softmax", "fpr95_max_softmax"))
    return Row(
        (
            Cell(clean(name)),
            *(Cell(numbers.share(top1, 2), top1) for top1 in tops),
            Cell(numbers.points(change), change),
            Cell(numbers.probability(p), p),
            Cell(numbers.share(kept), kept),
            Cell(numbers.share(apart), apart),
            Cell(numbers.share(let_in), let_in),
        )
    )


_EVERY = (
    "Group",
    "Model",
    "Head",
    ">Top-1",
    ">Top-1, every class",
    ">AUROC, softmax",
    ">Let in",
    ">AUROC, energy",
    ">Let in, energy",
)


def _every(row: Json) -> Row:
    keys = ("top1", "top1_all_classes", "auroc_max_softmax", "fpr95_max_softmax", "auroc_energy", "fpr95_energy")
    values = [number(row.get(key)) for key in keys]
    model, head = clean(row.get("model")), clean(row.get("head"))
    named = (clean(row.get("group")), MODELS.get(model, model), HEADS.get(head, head))
    return Row((*map(Cell, named), *(Cell(numbers.share(value), value) for value in values)))


_EXPORTED = (
    "Group", "Criterion", "Recovery", ">Kept", ">Top-1", ">95 % interval", ">Change, points", ">p", ">Images",
)  # fmt: skip


def _exported(name: str, row: Json, record: Json) -> Row:
    kept, top1, change = number(row.get("kept")), number(row.get("top1")), number(row.get("top1_change_points"))
    pair, dense = interval(row.get("top1_ci95")), mapping(dense_for(mappings(record.get("rows")), row))
    return Row(
        (
            Cell(clean(name)),
            Cell(clean(row.get("criterion"))),
            Cell(clean(row.get("recovery"))),
            Cell(numbers.share(kept), kept),
            Cell(numbers.share(top1, 2), top1),
            Cell(numbers.span(pair), pair[0] if pair else None),
            Cell(numbers.points(change), change),
            Cell(numbers.probability(number(dense.get("mcnemar_p"))), number(dense.get("mcnemar_p"))),
            Cell(numbers.count(number(row.get("n"))), number(row.get("n"))),
        ),
        "oracle-routed" if row.get("protocol") == "oracle" else "",
    )
