"""Seeded damage: values, JSON and YAML texts, and files that no careful writer would make."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]

JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 63, -(1 << 63), 10**30, 10**400, 0.5, -0.0, 1.0, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "1e5", "nan", "null", "x" * 5000, "\0", "a\nb", "\x1b[31mred",
    "ünï…çødé", "שלום", "👩🏽‍🚀", "\ud800", "\u2028", "../../../outside", "/etc/passwd", "~/x", "C:\\x", "..", ".", "-", "a/b",
    "{{7*7}}", "<script>alert(1)</script>", "%s%n", "local-dir:/", "local-dir:..", "hf-hub:a/b", "bundled", [], {}, [[]],
    [None], [1, "a", None], {"": 1}, {"a": {"b": {"c": []}}}, [0] * 3000, {str(i): i for i in range(500)}, DEEP,
]  # fmt: skip

YAML = [
    "&a ", "*a", "<<: *a\n", "!!python/object/apply:os.mkdir [outside]\n", "!!binary aGVsbG8=", "!!set {a, b}",
    "!!omap [a: 1]", "!!timestamp 9999-99-99", "!<tag:yaml.org,2002:int> x", "? ", ": ", "- ", "- - - - ", "|\n", ">-\n",
    "%YAML 9.9\n", "---\n", "...\n", "{", "}", "[", "]", "'", '"', "\t", "\r", "#", "0x", "0o9", "1_000", "12:30:45", ".nan",
    ".inf", "-.inf", "~", "=", "[" * 300, "{a: " * 200, "- " * 500, "\n" * 50, "9" * 6000, "1e999", "2001-01-01", "yes",
    "\ufeff", "\x00", "\x85", "😀", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "keep: 0.25\n", "version: 1\n",
    "name: ../x\n", "groups: {auto: 2}\n",
]  # fmt: skip


def value(content: Any, chance: Random, times: int | None = None) -> Any:
    """A copy of a JSON-like value with one to three places replaced, removed, doubled or moved."""
    made = copy.deepcopy(content)
    for _ in range(times or chance.choice([1, 1, 1, 2, 3])):
        made = _once(made, chance)
    return made


def _once(content: Any, chance: Random) -> Any:
    places = list(_places(content))
    if not places or chance.random() < 0.02:
        return chance.choice(JUNK)
    holder, key = chance.choice(places)
    what = chance.randrange(10)
    if what < 6:
        holder[key] = copy.deepcopy(chance.choice(JUNK))
    elif what == 6:
        del holder[key]
    elif what == 7:
        other, there = chance.choice(places)
        holder[key] = copy.deepcopy(other[there]) if _size(other[there]) < 2000 else None
    elif isinstance(holder, dict):
        holder[str(chance.choice([*JUNK[24:40], key + "x", key.upper()]))] = holder[key]
    else:
        holder.insert(key, copy.deepcopy(holder[key]))
    return content


def _places(content: Any, depth: int = 0) -> Any:
    if depth > 40:
        return
    keys = range(len(content)) if isinstance(content, list) else list(content) if isinstance(content, dict) else ()
    for key in keys[:40]:
        yield content, key
        yield from _places(content[key], depth + 1)


def _size(content: Any) -> int:
    return sum(1 for _ in _places(content))


def text(content: str, chance: Random, tokens: list[str] = YAML) -> str:
    """A text with pieces cut, doubled, swapped or put in."""
    for _ in range(chance.choice([1, 1, 2, 3, 6])):
        a = chance.randrange(len(content) + 1)
        b = min(len(content), a + chance.choice([1, 1, 4, 20, 200]))
        what = chance.randrange(5)
        if what == 0:
            content = content[:a] + content[b:]
        elif what == 1:
            content = content[:b] + content[a:b] * chance.choice([1, 2, 20]) + content[b:]
        elif what == 2:
            content = content[:a]
        elif what == 3:
            content = content[:a] + chance.choice(tokens) + content[a:]
        else:
            content = content[:a] + chance.choice(tokens) + content[b:]
    return content


def raw(content: bytes, chance: Random, end: int | None = None) -> bytes:
    """Bytes with bits flipped, pieces cut, doubled or overwritten; only before `end` where it is given."""
    made = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        limit = min(len(made), end or len(made))
        at = chance.randrange(limit + 1) if limit else 0
        what = chance.randrange(6)
        if what < 2 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif what == 2:
            del made[at:]
        elif what == 3:
            del made[at : at + chance.choice([1, 4, 64])]
        elif what == 4:
            made[at:at] = chance.choice([b"\0" * 8, b"\xff" * 8, chance.randbytes(16), made[: chance.choice([8, 64])]])
        else:
            made[at : at + 8] = chance.choice([0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]).to_bytes(8, "little")
    return bytes(made)


def json_file(content: Any, chance: Random) -> bytes:
    """A JSON file: a value damaged, sometimes its text or its bytes instead."""
    what = chance.random()
    if what < 0.7:
        return json.dumps(value(content, chance)).encode()
    whole = json.dumps(content, indent=1)
    if what < 0.85:
        tokens = [
            "NaN",
            "Infinity",
            "-",
            "{",
            "[" * 2000,
            '"',
            "\\ud800",
            "1e999",
            "9" * 5000,
            ",",
            "null",
            "\x00",
            "\ufeff",
        ]
        return text(whole, chance, tokens).encode(errors="surrogatepass")
    return raw(whole.encode(), chance)


def safetensors(content: bytes, chance: Random) -> bytes:
    """A safetensors file whose header or length lies."""
    size = int.from_bytes(content[:8], "little")
    if chance.random() < 0.3:
        return raw(content, chance, chance.choice([8, 8 + size, len(content)]))
    head = json.dumps(value(json.loads(content[8 : 8 + size]), chance)).encode()
    said = chance.choice([len(head)] * 8 + [len(head) + 8, len(head) - 1, 0, 1 << 40, (1 << 64) - 1])
    return said.to_bytes(8, "little", signed=said < 0) + head + content[8 + size :]
