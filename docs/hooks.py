"""Pages made while the site is built: the recipe reference from its JSON Schema, and a stand-in for the families table."""

from __future__ import annotations

import json
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from vitprune.recipe.recipe import Recipe

INTRO = """# Recipe reference

Made from `vitprune recipe schema`, not typed. A recipe is a YAML file; `vitprune recipe new` prints one to start from
and `vitprune recipe check FILE` says in one line whether it would run: keys, paths, the model's files, class names,
budget. `--show` prints it with every default spelled out, `--model` also builds the model, without its weights. An
unknown key is refused with its line and the nearest right one. Paths are relative to the folder the command runs in or,
where nothing is there, to the recipe's own.

`keep` is a share (`0.25` or `25%`) or a count per block (`25 units`); a bare `25` could be either and is refused. YAML
reads `no`, `yes`, `on`, `off`, `~` and numbers as something else than text: as names of classes they go in quotes.

A default that the model does not allow becomes one that it does, and the report says so: `activation` becomes
`mean-activation` and `tokens: cls` becomes `all` where the head reads no class token. What the recipe asks for itself is
never changed, but refused by its name.
"""
FAMILIES = """# Model families

The table of families, stages and tested timm names is written by the test run; it has not been here yet. In a checkout
`vitprune run` says at once, by the name of the module, when a model does not fit.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this when it has found the pages that lie in docs/."""
    pages = {"recipe.md": reference(Recipe.model_json_schema())}
    if files.get_file_from_path("families.md") is None:
        pages["families.md"] = FAMILIES
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def reference(schema: dict[str, Any]) -> str:
    """The schema as Markdown: the top level, then one section per part, in the order of the top level's keys."""
    parts = schema["$defs"]
    order = [named for key in schema["properties"].values() for named in _refs(key)]
    text = [INTRO, "## The recipe {: #recipe }", schema["description"], _table(schema)]
    for name in dict.fromkeys([*order, *parts]):
        text += [f"## {name} {{: #{name.lower()} }}", parts[name].get("description", ""), _table(parts[name])]
    return "\n\n".join(text) + "\n"


def _table(part: dict[str, Any]) -> str:
    needed = part.get("required", [])
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, about in part["properties"].items():
        default = "needed" if key in needed else _default(about)
        meaning = " ".join(about.get("description", "").split())
        rows.append(f"| `{key}` | {_escape(_values(about))} | {default} | {_escape(meaning)} |")
    return "\n".join(rows)


def _refs(about: dict[str, Any]) -> list[str]:
    found = [about["$ref"]] if "$ref" in about else [x["$ref"] for x in about.get("anyOf", []) if "$ref" in x]
    return [ref.rsplit("/", 1)[1] for ref in found]


def _values(about: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if named := _refs(about):
        return f"[{named[0]}](#{named[0].lower()})"
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_values(x) for x in about["anyOf"] if x.get("type") != "null"))
    if "const" in about or "enum" in about:
        return ", ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    kind = about.get("type", "anything")
    if kind == "array":
        return f"list of {_values(about['items'])}"
    if kind == "object":
        inner = about.get("additionalProperties")
        return f"mapping of name to {_values(inner)}" if isinstance(inner, dict) else "mapping"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {about[name]:,}" for name, sign in signs.items() if name in about and about[name] < 1 << 60]
    words = {"boolean": "`true` or `false`", "string": "path" if about.get("format") == "path" else "text"}
    return words.get(kind, kind) + (f" {', '.join(limits)}" if limits else "")


def _default(about: dict[str, Any]) -> str:
    if "default" not in about or _refs(about):
        return ""
    value = about["default"]
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")
