"""Every number of the README: in the table that benchmarks/readme.py makes, held against a committed file, or explained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COUNTED = r"(?:lines?|points?|minutes?|seconds?|hours?|images?|draws?|seeds?|splits?|cores?|times|commands?|models?)"
IDLE = 0.25  # cores that others may use while something is timed
NUMBER = re.compile(rf"(?<![\w.,-])\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(WORDS)})\b(?=\s+{COUNTED}\b)")


def minutes(name: str) -> int:
    if not (RESULTS / name).is_file():
        pytest.skip(f"{name} is not measured yet")
    found = json.loads((RESULTS / name).read_text())
    if found["other_cores"] is None or found["other_cores"] > IDLE:
        pytest.skip(f"{name} was taken beside other work, and its time is no reference")
    return round(found["seconds"] / 60)


def python() -> str:
    found = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def draws(_: str) -> int:
    """Of each control in the table."""
    (count,) = {
        len(seed["random_p"])
        for file in RESULTS.glob("controls-*.json")
        for seed in json.loads(file.read_text())["seeds"]
    }
    return count


def splits(_: str) -> int:
    """That the controls of the table are of."""
    (count,) = {len(json.loads(file.read_text())["seeds"]) for file in RESULTS.glob("controls-*.json")}
    return count


# What the README says in words and figures, and where it is from: the group of the pattern is what the function gives.
HELD: list[tuple[str, Callable[[str], Any]]] = [
    (r"Python ([\d.]+) or later", lambda _: python()),
    (r"the demo about (\w+)(?: minutes)? on two cores", lambda _: minutes("demo.json")),
    (r"random: (\w+) draws", draws),
    (r"on (\w+) split\b", splits),
]
EXPLAINED = {
    r"on two cores": "the machine, as results/README.md and docs/demo.md have it",
    r"Installing takes about two minutes": "hangs on the network; told so that nobody waits in doubt",
    r"## Two commands": "a heading",
    r"ViT-S/16 at 224|ViT-[SB]/\d+": "names of models",
    r"ICLR 2025": "of the paper",
    r"exit code 2 is something\s+you can mend, 1 a bug of ours": "held by tests/cli/test_cli.py",
    r"2,000 to 4,000 chose and repaired above": "`--probe` and `--refit` of the commands in docs/results.md",
    r"is not four times the speed": "what one might expect of a quarter",
    r"by one call|one page|one sentence|[Oo]ne line|one of its": "no measurement",
}


def prose() -> str:
    """The README without its generated table, its code and the targets of its links."""
    text = (ROOT / "README.md").read_text("utf-8")
    text = re.sub(r"<!-- table.*?<!-- end -->", "", text, flags=re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.M)  # commands: options and examples
    return re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)


def unheld(text: str) -> list[str]:
    """The numbers that nothing here speaks of, with what stands around them."""
    known = [match.span() for pattern in [p for p, _ in HELD] + [*EXPLAINED] for match in re.finditer(pattern, text)]
    return [
        " ".join(text[max(0, found.start() - 40) : found.end() + 30].split())
        for found in NUMBER.finditer(text)
        if not any(start <= found.start() and found.end() <= end for start, end in known)
    ]


def test_every_number_of_the_readme_has_a_file_or_a_reason() -> None:
    assert unheld(prose()) == []


def test_a_number_from_nowhere_is_seen() -> None:
    for text in (
        "it is 3.9 times as fast",
        "in 12 minutes",
        "loses two points",
        "99 % of all",
        "as the demo's 1,234 images",
    ):
        assert len(unheld(text)) == 1, text
    assert unheld("the demo about five on two cores, Python 3.11 or later") == []


@pytest.mark.parametrize(("pattern", "source"), HELD, ids=[pattern for pattern, _ in HELD])
def test_a_number_is_that_of_its_file(pattern: str, source: Callable[[str], Any]) -> None:
    """Where the README says it."""
    for found in re.finditer(pattern, prose()):
        expected = source(found[1])
        said = {str(expected)} | ({WORDS[expected - 1]} if isinstance(expected, int) and 0 < expected <= 10 else set())
        assert found[1] in said, f"{found[0]!r}: the file says {expected}"
