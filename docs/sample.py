"""The sample report of the documentation: its record from a run of the demo, and its pictures.

    python docs/sample.py take     # exported/demo-whole → docs/sample/: the record and the files that its page is made of
    python docs/sample.py shoot    # docs/report-light.png and docs/report-dark.png, by a headless Chromium

The page itself is made of the record by today's code whenever the site is built (hooks.py). `shoot` writes into each
picture a digest of what the first section says; a test holds it against the page.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

DOCS = Path(__file__).parent
sys.path += [str(DOCS), str(DOCS.parent / "tests" / "helpers")]
KEPT = ("report.json", "report-data/**/*.*", "stages/evaluate/all.safetensors", "see/units/*.png")
WIDTH, HEIGHT = 1100, 1220  # pixels of a picture: the verdict, the numbers, dense beside slim


def take(run: Path) -> None:
    """Copy what the page is made of from a run's folder."""
    shutil.rmtree(DOCS / "sample", ignore_errors=True)
    for pattern in KEPT:
        for file in run.glob(pattern):
            place = DOCS / "sample" / file.relative_to(run)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def said(markdown: str) -> str:
    """A digest of the first section of a report.md, without its layout."""
    section = markdown[markdown.index("## 1.") : markdown.index("## 2.")]
    return hashlib.sha256(" ".join(section.split()).encode()).hexdigest()


def shoot() -> None:
    """Both pictures of the first screen of the sample."""
    from browser import Browser  # type: ignore[import-not-found]
    from hooks import made  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as place, Browser(Path(place) / "profile") as browser:
        page, markdown = made(DOCS / "sample")
        (Path(place) / "sample.html").write_text(page, "utf-8")
        for name, dark in (("light", False), ("dark", True)):
            browser.open(Path(place) / "sample.html", WIDTH, dark)
            browser.screenshot(Path(place) / "whole.png")
            about = PngImagePlugin.PngInfo()
            about.add_text("vitprune", said(markdown))
            with Image.open(Path(place) / "whole.png") as whole:
                first = whole.convert("RGB").crop((0, 0, WIDTH, HEIGHT)).quantize(128)
                first.save(DOCS / f"report-{name}.png", pnginfo=about, optimize=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["take"]:
        take(Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS.parent / "exported" / "demo-whole")
    elif sys.argv[1:] == ["shoot"]:
        shoot()
    else:
        sys.exit(__doc__)
