"""A document as one self-contained HTML page. Jinja2 escapes everything but the SVGs we drew ourselves."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vitprune.report.page.blocks import Document

HERE = Path(__file__).parent


def html(document: Document) -> str:
    """The page as text. Its content security policy allows our own script by hash and no network at all."""
    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader,
        keep_trailing_newline=True,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("template.html.j2").render(
        document=document,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
    )
