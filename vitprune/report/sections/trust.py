"""Can I trust it? The split, the seeds, the checks, and which figures are oracle-routed."""

from __future__ import annotations

from typing import Any

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Cell, Fold, Heading, Row, Section, Text, missing, table
from vitprune.report.reading.rows import of_protocol, without_protocol
from vitprune.report.reading.values import clean, interval, mapping, mappings, number, sequence

MAX_SKIPPED = 50
_NO_ORACLE = "No figure on this page is oracle-routed."


def trust_section(record: Json) -> Section:
    """Split, seeds, protocol statement, checks and notes."""
    blocks: list[Block] = [*_split(mapping(record.get("split"))), Text(_seeds(record)), Text(_protocols(record))]
    blocks += _references(record)
    blocks += [Heading("Checks"), *_checks(mappings(record.get("checks")))]
    notes = [clean(note) for note in sequence(record.get("notes")) if clean(note)]
    if notes:
        blocks += [Heading("Notes of the run"), *(Text(note, "note") for note in notes)]
    return Section("trust", "Can I trust it?", tuple(blocks))


def failed_checks(record: Json) -> list[str]:
    """Names of the checks that did not pass."""
    rows = mappings(record.get("checks"))
    return [clean(row.get("name")) or "unnamed check" for row in rows if row.get("passed") is not True]


def _split(split: Json) -> list[Block]:
    if not split:
        return [missing("the probe/test split")]
    probe, test = number(split.get("probe")), number(split.get("test"))
    portion = number(split.get("probe_share"))
    how = f" ({numbers.share(portion, 0)} of each class go to the probe split)" if portion is not None else ""
    text = (
        f"{numbers.count(probe)} images are in the probe split, for every choice, and {numbers.count(test)} in the "
        f"test split, for measuring only{how}. {_origin(split)}"
    )
    blocks: list[Block] = [Text(text)]
    if classes := mappings(split.get("per_class")):
        rows = [_counts(row) for row in classes]
        counts = table("Images per class", ("Class", ">Probe", ">Test"), rows)
        blocks.append(Fold(f"Images per class ({len(rows)})", (counts,)))
    return blocks + _skipped(mappings(split.get("skipped")))


def _origin(split: Json) -> str:
    given = mapping(split.get("given"))
    if given:
        return f"Both were given: {clean(given.get('probe'))} and {clean(given.get('test'))}, with no image in common."
    return f"Split seed: {clean(split.get('seed')) or 'not recorded'}."


def _counts(row: Json) -> Row:
    probe, test = number(row.get("probe")), number(row.get("test"))
    return Row((Cell(clean(row.get("class"))), Cell(numbers.count(probe), probe), Cell(numbers.count(test), test)))


def _skipped(skipped: list[Json]) -> list[Block]:
    if not skipped:
        return []
    shown = skipped[:MAX_SKIPPED]
    rows = [Row((Cell(clean(row.get("path"))), Cell(clean(row.get("reason"))))) for row in shown]
    summary = f"{numbers.plural(len(skipped), 'file')} skipped"
    if len(shown) < len(skipped):
        summary += f", the first {len(shown)} shown"
    return [Fold(summary, (table("Skipped files", ("File", "Reason"), rows),))]


def _seeds(record: Json) -> str:
    found: dict[str, list[str]] = {}
    for row in mappings(record.get("rows")):
        if row.get("criterion") != "dense" and row.get("seed") is not None:
            seeds = found.setdefault(clean(row.get("criterion")) or "unnamed", [])
            seeds.extend([clean(row["seed"])] if clean(row["seed"]) not in seeds else [])
    if not found:
        return "No row of the record names its seed."
    alike: dict[str, list[str]] = {}
    for criterion, seeds in found.items():
        alike.setdefault(", ".join(seeds), []).append(criterion)
    parts = [f"{', '.join(names)}: {seeds}" for seeds, names in alike.items()]
    return f"Seeds per criterion. {'; '.join(parts)}."


def _protocols(record: Json) -> str:
    """How many rows are honest, and exactly which figures are oracle-routed."""
    honest, oracle, unknown = (
        len(rows) for rows in (of_protocol(record, "honest"), of_protocol(record, "oracle"), without_protocol(record))
    )
    made = numbers.plural(honest, "measurement is", "measurements are")
    parts = [f"{made} honest: the mask does not depend on the label of the image it is used on."]
    if not honest:
        parts = ["The record has no honest measurement."]
    places = ["the table and plot headed “Oracle-routed”"] * bool(oracle) + ["the headline"] * _oracle_headline(record)
    if oracle:
        amount = numbers.plural(oracle, "measurement is", "measurements are")
        parts.append(f"{amount} oracle-routed: the mask is chosen by the image's true label.")
    parts.append(f"Oracle-routed figures stand in {' and in '.join(places)}, nowhere else." if places else _NO_ORACLE)
    if unknown:
        parts.append(f"{numbers.plural(unknown, 'row names', 'rows name')} no protocol.")
    return " ".join(parts)


def _oracle_headline(record: Json) -> bool:
    exported = [record.get("result"), *mapping(record.get("results")).values()]
    return any(mapping(row).get("protocol") == "oracle" for row in exported)


def _references(record: Json) -> list[Block]:
    """What the headline stands beside: dense, both with the head masked, and the best oracle-routed figure."""
    rows = mappings(record.get("rows"))
    exported = mapping(record.get("results")) or {"": record.get("result")}
    found: list[Row] = []
    for group, result in exported.items():
        slim = mapping(result)
        alike = {key: slim.get(key) for key in ("criterion", "keep", "budget", "recovery", "seed")} | {
            "protocol": "honest"
        }
        for what, wanted in (("dense", {"criterion": "dense"}), ("exported", alike)):
            for head, name in (("all", "all outputs"), ("masked", "only the target classes")):
                keys = wanted | {"head": head, "group": slim.get("group"), "protocol": "honest"}
                row = next((row for row in rows if all(row.get(key) == value for key, value in keys.items())), None)
                found += [_reference(f"{what} {clean(group)}".strip(), name, "one model for all", row)] if row else []
    oracle = [row for row in of_protocol(record, "oracle") if number(row.get("top1")) is not None]
    if oracle:
        best = max(oracle, key=lambda row: number(row.get("top1")) or 0.0)
        name = f"best oracle-routed: {clean(best.get('criterion'))}, t = {clean(best.get('t'))}"
        found.append(_reference(name, "all outputs", "by the true label: not deployable", best))
    if not found:
        return []
    columns = ("Model", "Head", "Mask", ">Top-1", ">95 % interval", ">Images")
    return [table("The headline beside what it should be read with", columns, found)]


def _reference(name: str, head: str, mask: str, row: Json) -> Row:
    top1, pair, images = number(row.get("top1")), interval(row.get("top1_ci95")), number(row.get("n"))
    return Row(
        (
            Cell(name),
            Cell(head),
            Cell(mask),
            Cell(numbers.share(top1, 2), top1),
            Cell(numbers.span(pair), pair[0] if pair else None),
            Cell(numbers.count(images), images),
        )
    )


def _checks(checks: list[Json]) -> list[Block]:
    if not checks:
        return [missing("any check, so nothing here has been verified by the tool")]
    failed = sum(row.get("passed") is not True for row in checks)
    verdict = f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed."
    columns = ("Check", "Outcome", ">Value", ">Limit", "Detail")
    made = table("Checks made on this run", columns, (_check(row) for row in checks))
    return [Text(verdict, "warning"), made] if failed else [Text(verdict, "good"), Fold("Every check", (made,))]


def _check(row: Json) -> Row:
    passed = row.get("passed") is True
    return Row(
        (
            Cell(clean(row.get("name")) or "unnamed check"),
            Cell("✓ passed" if passed else "✗ failed", tone="good" if passed else "warning"),
            _value(row.get("value")),
            _value(row.get("limit")),
            Cell(clean(row.get("detail"))),
        )
    )


def _value(value: Any) -> Cell:
    found = number(value)
    return Cell(numbers.general(found), found) if found is not None else Cell(clean(value) or numbers.NONE)
