"""How do I deploy it? Files, latency, and the lines that use the model."""

from __future__ import annotations

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Row, Section, Text, missing, table
from vitprune.report.reading.values import clean, interval, mapping, mappings, number, ratio, sequence
from vitprune.report.sections.usage import usage_blocks


def deploy_section(record: Json) -> Section:
    """Files with sizes, latency per batch size, code."""
    blocks = [*_files(record), *_precisions(record), *_latency(mappings(record.get("latency"))), *usage_blocks(record)]
    return Section("deploy", "How do I deploy it?", tuple(blocks))


def _files(record: Json) -> list[Block]:
    files = mappings(record.get("files"))
    if not files:
        return [missing("any exported file")]
    return [table("Files", ("File", ">Size", "Precision", "What it is", "SHA-256"), map(_file, files))]


def _file(row: Json) -> Row:
    size, digest = number(row.get("bytes")), clean(row.get("sha256"))
    return Row(
        (
            Cell(clean(row.get("path"))),
            Cell(numbers.size(size), size),
            Cell(clean(row.get("precision")) or numbers.NONE),
            Cell(clean(row.get("what"))),
            Cell(f"{digest[:12]}…" if len(digest) > 12 else digest or numbers.NONE),
        )
    )


def _precisions(record: Json) -> list[Block]:
    """What every ONNX file gets right on the test split, and what int8 left in fp32."""
    rows = mappings(mapping(record.get("export")).get("files"))
    if not rows:
        return []
    if any("cosine" in row for row in rows):
        return _of_features(rows)
    columns = ["ONNX file", "Precision", ">Top-1", ">Change, points", ">Same answer", ">Largest logit difference"]
    columns += [">Largest probability difference", ">Opset"]
    found: list[Block] = [table("ONNX files on the whole test split", columns, map(_precision, rows))]
    why = [(clean(row.get("path")), clean(mapping(row.get("sweep")).get("why"))) for row in rows]
    return found + [Text(f"{path}: {text}.", "note") for path, text in why if text]


def _of_features(rows: list[Json]) -> list[Block]:
    """How near every file of a backbone is to the slim model's features."""
    columns = (
        "ONNX file",
        "Precision",
        ">Cosine",
        ">Least cosine",
        ">Patches' cosine",
        ">Largest difference",
        ">Opset",
    )
    made = []
    for row in rows:
        agreement = mapping(row.get("agreement"))
        of = [number(agreement.get(key)) for key in ("cosine", "least_cosine", "tokens_cosine")]
        gap = number(agreement.get("max_abs_diff"))
        cells = [Cell(clean(row.get("path"))), Cell(clean(row.get("precision")))]
        cells += [Cell(numbers.fixed(value, 6), value) for value in of]
        cells += [Cell(numbers.NONE if gap is None else f"{gap:.1e}", gap), Cell(clean(row.get("opset")))]
        made.append(Row(tuple(cells)))
    why = [(clean(row.get("path")), clean(mapping(row.get("sweep")).get("why"))) for row in rows]
    notes = [Text(f"{path}: {text}.", "note") for path, text in why if text]
    return [table("ONNX files beside the slim model's features, whole test split", columns, made), *notes]


def _precision(row: Json) -> Row:
    top1, change = number(row.get("top1")), number(row.get("top1_change_points"))
    agreement = mapping(row.get("agreement"))
    gap, away = number(agreement.get("max_abs_diff")), number(agreement.get("max_probability_diff"))
    same = ratio(agreement.get("same_top1"), agreement.get("n"))
    return Row(
        (
            Cell(clean(row.get("path"))),
            Cell(clean(row.get("precision"))),
            Cell(numbers.share(top1, 2), top1),
            Cell(numbers.points(change), change),
            Cell(numbers.share(same, 2), same),
            Cell(numbers.NONE if gap is None else f"{gap:.1e}", gap),
            Cell(numbers.NONE if away is None else f"{away:.1e}", away),
            Cell(clean(row.get("opset"))),
        )
    )


def _latency(rows: list[Json]) -> list[Block]:
    if not rows:
        return [missing("latency measurements")]
    columns = (">Batch", "Precision", ">Dense", ">Slim", ">Slim / dense", "Runtime")
    caption = "Latency per batch: median, and the quartiles in brackets"
    doubts = [
        f"Batch {clean(row.get('batch')) or '?'}{_other(row)} is in doubt: {'; '.join(map(clean, notes))}."
        for row in rows
        if (notes := sequence(row.get("notes")))
    ]
    said = [Text(" ".join(doubts), "warning")] if doubts else []
    return [table(caption, columns, map(_latency_row, rows)), *said]


def _other(row: Json) -> str:
    """The precision, where it is not the usual one."""
    precision = clean(row.get("precision"))
    return f", {precision}," if precision not in ("", "fp32") else ""


def _latency_row(row: Json) -> Row:
    dense, slim, part = number(row.get("dense_ms")), number(row.get("slim_ms")), number(row.get("ratio"))
    doubtful = (part is not None and part > 1) or bool(sequence(row.get("notes")))
    return Row(
        (
            Cell(clean(row.get("batch")) or numbers.NONE, number(row.get("batch"))),
            Cell(clean(row.get("precision")) or numbers.NONE),
            Cell(timed(row, "dense"), dense),
            Cell(timed(row, "slim"), slim),
            Cell(numbers.times(part), part, "warning" if doubtful else ""),
            Cell(clean(row.get("runtime"))),
        )
    )


def timed(row: Json, name: str) -> str:
    """A median with its quartiles: 26.2 ms (26.0 to 26.5)."""
    text, pair = numbers.milliseconds(number(row.get(f"{name}_ms"))), interval(row.get(f"{name}_quartiles_ms"))
    return text if pair is None else f"{text} ({numbers.three(pair[0])} to {numbers.three(pair[1])})"
