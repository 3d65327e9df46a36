"""What did I get, of a backbone? The features that are lost, beside random units; the index; three big numbers."""

from __future__ import annotations

import statistics

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Number, Numbers, Section, Text, missing
from vitprune.report.reading.values import clean, mapping, mappings, number, ratio, sequence

FITTED = 2.5  # measured over expected: from here on the costs were of the probe images alone
NOTHING = 0.02  # an FVU below is no loss to warn of
SAME_INDEX = 0.9  # of the ten nearest neighbours, for an index to stay


FEW = (
    "So far off, costs and repair have fitted the probe images and say little of others: give more images (a few hundred at "
    "least), or remove less."
)


def result_section(record: Json) -> Section:
    """The headline of a backbone's page."""
    result = mapping(record.get("result"))
    if not result:
        return Section("result", "What did I get?", (missing("an exported model (`result`), so there is no figure"),))
    blocks: list[Block] = [Text(sentence(record, result)), _index(record, result), *_uses(record, result)]
    three = _size(mapping(record.get("model")), result), _latency(record, result), _features(result)
    told = expected(record, result)
    after = [Text(told, "warning" if told.endswith(FEW) else "note")] if told else []
    return Section("result", "What did I get?", (*blocks, *_files(record), Numbers(three), *after))


def sentence(record: Json, result: Json) -> str:
    """What is lost of the features, beside random units with the same repair."""
    model = mapping(record.get("model"))
    name = clean(model.get("architecture")) or clean(model.get("name")) or "The model"
    cosine, fvu, images = (number(result.get(key)) for key in ("cosine", "fvu", "n"))
    if cosine is None:
        return f"{name} has no figures of its features in the record."
    share = ratio(model.get("macs_slim"), model.get("macs_dense"))
    text = f"{name} with {numbers.share(share, 0)} of its multiply-adds" if share is not None else f"The slim {name}"
    text += f" loses {lost(cosine)} of cosine,"
    text += f" {numbers.share(fvu)} of the variance of its features (FVU)," if fvu is not None else ""
    text += f" in the mean over {numbers.count(images)} test images"
    tokens, fraction = number(result.get("tokens_cosine")), number(result.get("tokens_fvu"))
    if tokens is not None:
        text += f"; of its patches {lost(tokens)} and {numbers.share(fraction)}"
    drawn = beside(record, result, "random")
    if drawn:
        of = [statistics.fmean(values) for key in ("cosine", "fvu") if (values := _numbers(drawn, key))]
        if len(of) == 2:
            text += f". Random units with the same repair lose {lost(of[0])} and {numbers.share(of[1])}"
    return f"{text}."


def expected(record: Json, result: Json) -> str:
    """What the costs said of the output before it was examined, and why that FVU is not the other one; else nothing."""
    told, times = number(mapping(result.get("predicted")).get("fvu")), number(result.get("measured_over_predicted"))
    if told is None or times is None:
        return ""
    measured, about = number(mapping(result.get("measured")).get("fvu")), mapping(record.get("backbone"))
    measured = told * times if measured is None else measured
    if about.get("features") == "pooled":
        what = "It is that of the pooled vector too"
    elif about.get("class_token"):
        what = "It is that of the class token and of all patches together, half of the weight each"
    else:
        what = "It is that of the pooled vector and of all patches together, half of the weight each"
    return (
        f"FVU of the output: {numbers.fixed(told, 3)} was expected from the costs, {numbers.fixed(measured, 3)} is measured, "
        f"{times:.2f} times that. {what}, as a share of the variance among the probe images, which the costs know; every "
        "other FVU here is a share of the variance among the test images."
        + (f" {FEW}" if times > FITTED and measured > NOTHING else "")
    )


def lost(cosine: float) -> str:
    """1 - cosine, three digits after the point."""
    return numbers.fixed(1 - cosine, 3)


def beside(record: Json, result: Json, criterion: str) -> list[Json]:
    """The rows of another criterion with the exported model's repair and budget."""
    keys = ("recovery", "keep", "budget")
    rows = [row for row in mappings(record.get("rows")) if row.get("criterion") == criterion]
    return [row for row in rows if all(row.get(key) == result.get(key) for key in keys)]


def _numbers(rows: list[Json], key: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(key))) is not None]


def _index(record: Json, result: Json) -> Text:
    """What becomes of an index of the dense model's features: a warning where it has to be built again."""
    said = clean(mapping(record.get("backbone")).get("index")) or "The record says nothing of neighbours."
    share = number(result.get("neighbours"))
    return Text(said, "warning" if share is not None and share < SAME_INDEX else "note")


def _uses(record: Json, result: Json) -> list[Block]:
    """The vote of neighbours and the linear probe, dense beside slim, where there are class folders."""
    dense = next((row for row in mappings(record.get("rows")) if row.get("criterion") == "dense"), {})
    found = []
    for key, name in (("knn_top1", "a vote of the nearest probe images"), ("probe_top1", "a linear probe")):
        before, after = number(dense.get(key)), number(result.get(key))
        if before is not None and after is not None:
            found.append(
                f"{name} gets {numbers.share(after)} right, on the dense model's features {numbers.share(before)}"
            )
    if not found:
        return []
    more = "Such uses tell models apart less well than the cosine does: the bank has been seen by the repair."
    text = "; ".join(found)
    return [Text(f"{text[0].upper()}{text[1:]}. {more}", "note")]


def _files(record: Json) -> list[Block]:
    """ONNX files that are missing, or are not the slim model by the limits of their precision."""
    of = mapping(record.get("export"))
    wrong = [
        f"{clean(row.get('path'))} is not the slim model that this page speaks of: {clean(check.get('name'))} "
        f"{numbers.general(number(check.get('value')))}, at most {numbers.general(number(check.get('limit')))} expected."
        for row in mappings(of.get("files"))
        for check in mappings(row.get("checks"))
        if not _held(check)
    ]
    wrong += [f"{clean(row.get('path'))} is missing: {clean(row.get('why'))}" for row in mappings(of.get("failed"))]
    return [Text(text, "warning") for text in wrong]


def _held(check: Json) -> bool:
    value, limit = number(check.get("value")), number(check.get("limit"))
    return value is not None and limit is not None and value <= limit


def _features(result: Json) -> Number:
    cosine, centred, fvu = (number(result.get(key)) for key in ("cosine", "centred_cosine", "fvu"))
    parts = [f"about the mean {numbers.fixed(centred, 4)}", f"FVU {numbers.fixed(fvu, 3)}"]
    value, label = numbers.fixed(cosine, 4), "cosine to the dense features"
    return Number(value, label, "; ".join(parts), "" if cosine is not None else "missing")


def _size(model: Json, result: Json) -> Number:
    slim = {key: model.get(f"{key}_slim", result.get(key)) for key in ("params", "macs")}
    shares = {key: ratio(value, model.get(f"{key}_dense")) for key, value in slim.items()}
    if None in shares.values():
        return Number(numbers.NONE, "parameters and MACs left", "model size is not in the record", "missing")
    detail = [
        f"{label} {numbers.compact(number(model.get(f'{key}_dense')))} → {numbers.compact(number(slim[key]))}"
        for key, label in (("params", "parameters"), ("macs", "MACs"))
    ]
    value = " / ".join(numbers.share(shares[key], 0) for key in ("params", "macs"))
    return Number(value, "of the parameters / of the MACs left", "; ".join(detail))


def _latency(record: Json, result: Json) -> Number:
    value, batch = number(result.get("latency_ratio")), result.get("latency_batch")
    if value is None:
        return Number(numbers.NONE, "of the dense latency", "latency was not measured for this model", "missing")
    row = next((row for row in mappings(record.get("latency")) if row.get("batch") == batch), {})
    detail = f"batch {clean(batch) or '?'}"
    if row:
        pair = (
            f"{numbers.milliseconds(number(row.get('dense_ms')))} → {numbers.milliseconds(number(row.get('slim_ms')))}"
        )
        detail += f": {pair}, {clean(row.get('runtime')) or 'unknown runtime'}"
    notes = [clean(note) for note in sequence(result.get("latency_notes"))]
    detail = f"in doubt: {'; '.join(notes)}. {detail}" if notes else detail
    return Number(numbers.times(value), "of the dense latency", detail, "warning" if notes or value > 1 else "")
