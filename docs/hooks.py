"""Pages made while the site is built: the recipe reference from its JSON Schema, the library's from its docstrings, the
sample report from a run's record, and a stand-in for the families table."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import vitprune
from vitprune.recipe.recipe import Recipe
from vitprune.report import write_report
from vitprune.report.reading.places import told

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
API = """# Library reference

Made from the docstrings, not typed. What the calls are good for is in [Library](library.md).
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
    pages["api.md"] = library()
    pages["sample.html"] = sample(Path(config.docs_dir) / "sample")
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def library() -> str:
    """Every name of the library with its signature and docstring, as Markdown."""
    text = [API]
    for name in sorted(vitprune.__all__, key=str.lower):
        found = getattr(vitprune, name)
        about = inspect.cleandoc(found.__doc__ or "")
        signature = f"class vitprune.{name}" if inspect.isclass(found) else f"vitprune.{name}{_signature(found)}"
        more = " Its keys are in the [recipe reference](recipe.md)." if name == "Recipe" else ""
        text += [f"## {name} {{: #{name.lower()} }}", f"    {signature}", about + more]
    return "\n\n".join(text) + "\n"


def _signature(found: Any) -> str:
    """The signature over several lines where it is long, without the quotes of deferred annotations."""
    text = re.sub(r"'([^']*)'(?=[,) =])", r"\1", str(inspect.signature(found)))
    if len(text) < 80:
        return text
    parts = ", ".join(str(one) for one in inspect.signature(found).parameters.values())
    inside = re.sub(r", (?=\w+: )", ",\n        ", re.sub(r"'([^']*)'", r"\1", parts))
    return f"(\n        {inside},\n    ){text[text.rindex(')') + 1 :]}"


def sample(folder: Path) -> str:
    """The report page that today's code makes of the record of a demo run, which `docs/sample.py take` put there."""
    return made(folder)[0]


def made(folder: Path) -> tuple[str, str]:
    """The page and its Markdown, made of a record and the files beside it."""
    record = told(json.loads((folder / "report.json").read_text("utf-8")))
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
        _, markdown, page = write_report(record, Path(place))
        return page.read_text("utf-8"), markdown.read_text("utf-8")


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
