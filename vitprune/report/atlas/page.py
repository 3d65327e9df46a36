"""The atlas as HTML. Its data is JSON in the page; the script makes every element from text alone, never from markup."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vitprune.core.reading import Json
from vitprune.report.reading.values import clean, plain

HERE = Path(__file__).parent


def html(data: Json) -> str:
    """The page as text; `data` as `runs/seeing/atlas.py` describes it. Its content security policy allows our script by hash,
    pictures, and no other address."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (HERE / "atlas.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    safe = plain(data) | {"name": clean(data.get("name"))}
    safe |= {key: [clean(name) for name in data[key]] for key in ("classes", "named", "labels") if key in data}
    text = json.dumps(safe, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return environment.get_template("atlas.html.j2").render(
        name=safe["name"],
        attention="dims" in safe,
        named="called" in safe,
        labelled="shows" in safe,
        other=safe.get("other"),
        style=(HERE / "atlas.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
        data=text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )
