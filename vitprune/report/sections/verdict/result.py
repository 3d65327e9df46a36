"""What did I get? The verdict, three big numbers, dense beside slim; with groups a table of all of them first."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Heading, Number, Numbers, Section, Text, missing
from vitprune.report.reading.beside import Beside
from vitprune.report.reading.rows import dense_for
from vitprune.report.reading.values import clean, interval, mapping, mappings, number, ratio, sequence
from vitprune.report.sections.comparing.frontier import frontier_chart
from vitprune.report.sections.comparing.over_splits import over_splits
from vitprune.report.sections.deploy import timed
from vitprune.report.sections.verdict.dense_slim import beside_blocks
from vitprune.report.sections.verdict.groups import groups_blocks
from vitprune.report.sections.verdict.sentence import SIGNIFICANT, verdict


def result_section(record: Json, beside: Beside) -> Section:
    """The headline: sentence, numbers, and one line per group where several models were exported."""
    result, groups = mapping(record.get("result")), groups_blocks(record)
    blocks: list[Block] = [*groups] if groups else [*verdict(record, result)]
    if result:
        three = _accuracy(record, result, beside), _latency(record, result), _size(mapping(record.get("model")), result)
        said = Text(_sentence(record, result)), *_oracle_warning(result), *_files_warning(record)
        first = (Heading(f"The first group, {clean(result.get('group'))}"), *verdict(record, result)) if groups else ()
        blocks += [*first, *said, Numbers(three), *beside_blocks(record, result)]
    elif not groups:
        blocks.append(missing("an exported model (`result`), so there is no headline figure"))
    return Section("result", "What did I get?", (*blocks, *frontier_chart(record)))


def latency_row(record: Json) -> Json:
    """The latency measurement the headline ratio comes from, else an empty dict."""
    batch = mapping(record.get("result")).get("latency_batch")
    return next((row for row in mappings(record.get("latency")) if row.get("batch") == batch), {})


def _sentence(record: Json, result: Json) -> str:
    model = mapping(record.get("model"))
    name = clean(model.get("architecture")) or clean(model.get("name")) or "The model"
    text = f"{name} with {numbers.share(number(result.get('kept')))} of its FFN units"
    if number(result.get("kept")) is None:
        text = f"The pruned {name}" if name != "The model" else "The pruned model"
    top1, images = number(result.get("top1")), number(result.get("n"))
    if top1 is None:
        return f"{text} has no accuracy in the record."
    text += f" classifies {numbers.share(top1)} of {numbers.count(images)} test images correctly"
    if images is None:
        text = text.replace(f" of {numbers.NONE} test images", " of the test images")
    return f"{text}{_against_dense(number(result.get('top1_change_points')))}{_smaller_faster(record, result)}."


def _against_dense(change: float | None) -> str:
    if change is None:
        return ""
    if numbers.points(change) == "0.00":
        return ", as many as the dense model"
    size = numbers.points(abs(change)).removeprefix("+")
    return f", {size} points {'below' if change < 0 else 'above'} the dense model"


def _smaller_faster(record: Json, result: Json) -> str:
    """Parameters and latency beside the dense model's, as far as they are known."""
    model = mapping(record.get("model"))
    share, latency = ratio(model.get("params_slim"), model.get("params_dense")), number(result.get("latency_ratio"))
    parts = [f"{numbers.share(share, 0)} of its parameters"] if share is not None else []
    doubt = " (in doubt)" if sequence(result.get("latency_notes")) else ""
    parts += [f"{numbers.share(latency, 0)} of its latency{doubt}"] if latency is not None else []
    return f", with {' and '.join(parts)}" if parts and number(result.get("top1_change_points")) is not None else ""


def _oracle_warning(result: Json) -> list[Block]:
    if result.get("protocol") == "honest":
        return []
    if result.get("protocol") == "oracle":
        return [Text("This headline is oracle-routed: no deployed model can reach it.", "warning")]
    return [Text("The record does not say under which protocol this headline was measured.", "warning")]


def _files_warning(record: Json) -> list[Block]:
    """ONNX files that are missing, or that are not the slim model by the limits of their precision."""
    files = mappings(mapping(record.get("export")).get("files"))
    wrong = [
        f"{clean(row.get('path'))} is not the slim model that this page speaks of: {clean(check.get('name'))} "
        f"{numbers.general(number(check.get('value')))}, at most {numbers.general(number(check.get('limit')))} expected."
        for row in files
        for check in mappings(row.get("checks"))
        if not _held(check)
    ]
    absent = [
        f"{clean(row.get('path'))} is missing: {clean(row.get('why'))}"
        for row in mappings(mapping(record.get("export")).get("failed"))
    ]
    return [Text(text, "warning") for text in wrong + absent]


def _held(check: Json) -> bool:
    value, limit = number(check.get("value")), number(check.get("limit"))
    return value is not None and limit is not None and value <= limit


def paired(dense: Json) -> str:
    """What the paired test says of the dense row against the exported model; empty where there was none."""
    p, only = number(dense.get("mcnemar_p")), [number(x) for x in sequence(dense.get("only_right"))]
    if p is None:
        return ""
    counts = ""
    if len(only) == 2:
        counts = f" ({numbers.count(only[0])} images only dense gets right, {numbers.count(only[1])} only slim)"
    verdict = "these images show a difference" if p < SIGNIFICANT else "these images cannot tell the two apart"
    return f"paired test against dense: p {numbers.probability(p)}{counts}, {verdict}"


def _accuracy(record: Json, result: Json, beside: Beside) -> Number:
    pair = interval(result.get("top1_ci95"))
    change = number(result.get("top1_change_points"))
    parts = [f"95 % interval {numbers.span(pair)}" if pair else "no 95 % interval in the record"]
    parts.append(f"{numbers.points(change)} points against dense" if change is not None else "no dense reference")
    if splits := over_splits(record, beside):
        parts.append(splits)
    if result.get("head") == "masked":
        parts.append("masked head: only the target classes compete")
    if test := paired(mapping(dense_for(mappings(record.get("rows")), result))):
        parts.append(test)
    top1 = number(result.get("top1"))
    return Number(
        numbers.share(top1), "top-1 of the slim model", "; ".join(parts), "" if top1 is not None else "missing"
    )


def _size(model: Json, result: Json) -> Number:
    slim = {
        "params": model.get("params_slim", result.get("params")),
        "macs": model.get("macs_slim", result.get("macs")),
    }
    shares = {key: ratio(value, model.get(f"{key}_dense")) for key, value in slim.items()}
    if shares["params"] is None and shares["macs"] is None:
        return Number(numbers.NONE, "parameters and MACs left", "model size is not in the record", "missing")
    detail = [
        f"{label} {numbers.compact(number(model.get(f'{key}_dense')))} → {numbers.compact(number(slim[key]))}"
        for key, label in (("params", "parameters"), ("macs", "MACs"))
        if shares[key] is not None
    ]
    exported = number(model.get("macs_exported"))
    if exported is not None and exported != slim["macs"]:
        detail.append(f"{numbers.compact(exported)} MACs in the ONNX file")
    value = " / ".join(numbers.share(shares[key], 0) for key in ("params", "macs"))
    return Number(value, "of the parameters / of the MACs left", "; ".join(detail))


def _latency(record: Json, result: Json) -> Number:
    value = number(result.get("latency_ratio"))
    if value is None:
        return Number(numbers.NONE, "of the dense latency", "latency was not measured for this model", "missing")
    row = latency_row(record)
    detail = "the batch size is not in the record"
    if row:
        pair = f"{timed(row, 'dense')} → {timed(row, 'slim')}"
        detail = f"batch {clean(row.get('batch')) or '?'}: {pair}, {clean(row.get('runtime')) or 'unknown runtime'}"
    if notes := [clean(note) for note in sequence(result.get("latency_notes"))]:
        detail = f"in doubt: {'; '.join(notes)}. {detail}"
        return Number(numbers.times(value), "of the dense latency", detail, "warning")
    if value > 1:
        return Number(numbers.times(value), "of the dense latency: slower", detail, "warning")
    return Number(numbers.times(value), "of the dense latency", detail)
