"""A recipe's mistakes in the user's words: where, what is wrong, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from vitprune.core.errors import UserError
from vitprune.recipe.recipe import Recipe


def refuse_aliases(node: yaml.Node | None, where: str) -> None:
    """A recipe has no use for anchors, and chains of them are how a small file fills a memory."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, yaml.ScalarNode):
            continue
        if id(item) in seen:
            raise UserError(f"{where}, line {item.start_mark.line + 1}: YAML anchors are not accepted in recipes")
        seen.add(id(item))
        if isinstance(item, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in item.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise UserError(
                        f"{where}, line {key.start_mark.line + 1}: `{key.value[:80]}` is given more than once"
                    )
                if isinstance(key, yaml.ScalarNode):
                    keys.add(key.value)
        pairs = item.value if isinstance(item, yaml.SequenceNode) else [part for pair in item.value for part in pair]
        stack.extend(pairs)


def describe(error: ValidationError, node: yaml.Node | None, where: str) -> str:
    """The first problem as one line: file, line, key, what, and the nearest right key for an unknown one."""
    first: Any = error.errors()[0]
    for candidate in error.errors():
        if candidate["type"] == "extra_forbidden":
            first = candidate
            break
    keys = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-", "literal["))]
    keys = [k for k in keys if k not in ("int", "float", "str", "list", "is-instance[Path]", "[key]")]
    keys = ["groups", "auto"] if keys == ["clusters"] and not line_of(node, keys) else keys
    if keys[:1] == ["whole"] and not line_of(node, ["whole"]):  # written as a mapping under `budget`
        keys[0], first = "budget", {**first, "loc": ("budget", *first["loc"][1:])}
    found = node_at(node, first["loc"])
    line = line_of(node, keys)
    if isinstance(found, yaml.ScalarNode) and first["type"] != "extra_forbidden":
        line = found.start_mark.line + 1
        keys[-1:] = [found.value] if first["loc"][-1] == "[key]" else keys[-1:]
    place = f"{where}, line {line}" if line else where
    name = ".".join(keys)[:120]
    if first["type"] == "extra_forbidden":
        known = fields_at(keys[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.4)
        advice = f"did you mean `{close[0]}`?" if close else f"known keys here: {', '.join(known)}"
        return f"{place}: unknown key `{name}`; {advice}"
    message = first["msg"].removeprefix("Value error, ")
    given = found.value if isinstance(found, yaml.ScalarNode) else first.get("input")
    shown = f" (given: {str(given)[:60]!r})" if isinstance(given, str | int | float) else ""
    advice = nearest(first, given) or unquoted(first, found)
    return " ".join(f"{place}: `{name or 'recipe'}`: {message}{shown}{advice}".split())


def nearest(error: Any, given: Any) -> str:
    """The one of the values that are allowed which a wrong one was meant to be."""
    if error["type"] != "literal_error" or not isinstance(given, str):
        return ""
    allowed = re.findall(r"'([^']*)'", str((error.get("ctx") or {}).get("expected", "")))
    plain = {re.sub(r"[-_ ]", "", value).lower(): value for value in allowed}
    written = plain.get(re.sub(r"[-_ ]", "", given[:80]).lower())
    close = [written] if written else difflib.get_close_matches(given[:80], allowed, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def unquoted(error: Any, node: yaml.Node | None) -> str:
    """A word about quotes where a text is needed and YAML reads something else: `no` is false, `1` a number."""
    if error["type"] not in ("string_type", "list_type", "path_type") or not isinstance(node, yaml.ScalarNode):
        return ""
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "str" or node.style in ("'", '"'):
        return ""
    read = {"int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}.get(kind, kind)
    if kind == "bool":
        read = str(yaml.SafeLoader.bool_values.get(node.value.lower())).lower()
    written = node.value[:60]
    meant = f'"{written}"' if error["type"] != "list_type" else f'["{written}"]'
    return f"; YAML reads `{written}` as {read}: put a name in quotes, {meant}" if written else "; it is empty"


def node_at(node: yaml.Node | None, path: Sequence[Any]) -> yaml.Node | None:
    """The node that an error's path leads to: a value, or a key where the path ends in `[key]`."""
    for i, part in enumerate(path):
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if _is_key(key, part)), None)
            if pair is None:
                return None
            if path[i + 1 : i + 2] == ("[key]",):
                return pair[0]
            node = pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
    return node


def _is_key(node: yaml.Node, part: Any) -> bool:
    """Whether a mapping's key is the one that an error names, as it is written or as YAML reads it."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    read = yaml.SafeLoader("").construct_object(node)
    return part == read or str(part) in (str(read), node.value)


def line_of(node: yaml.Node | None, keys: list[str]) -> int | None:
    """1-based line of the deepest key that is found."""
    line = None
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for k, v in node.value:
            if k.value == key:
                line, node = k.start_mark.line + 1, v
                break
        else:
            break
    return line


def fields_at(keys: list[str]) -> list[str]:
    """Names of the keys allowed in the section that `keys` lead to."""
    section: type[BaseModel] = Recipe
    for key in ["whole" if keys[:1] == ["budget"] else key for key in keys]:
        field = section.model_fields.get(key)
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner += [item for part in inner for item in getattr(part, "__args__", ())]  # of a list
        section = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), section)
    return list(section.model_fields)
