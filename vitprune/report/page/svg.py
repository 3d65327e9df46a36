"""Figure → inline SVG that follows the page's colours, has ids of its own and is the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#24292f"
MUTED = "#6b7280"
GRID = "#d8dbe0"
LOSS = "#a8442a"
GAIN = "#2c6e8f"
SERIES = ("#2b5c8a", "#b0651a", "#4b7a3f", "#7b4f8c", "#9a3f52", "#2f7f7a", "#6a6a2f", "#5b5f97")
# Drawn colour → what the page's style sheet decides; the drawn one stays as the fallback.
_ON_PAGE = {
    INK: "currentColor",
    MUTED: f"var(--muted, {MUTED})",
    GRID: f"var(--grid, {GRID})",
    LOSS: f"var(--loss, {LOSS})",
    GAIN: f"var(--gain, {GAIN})",
    **{colour: f"var(--series-{index}, {colour})" for index, colour in enumerate(SERIES)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.handlelength": 1.4,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The report's drawing style, whatever matplotlibrc the user has; build and render figures inside it."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def render(figure: Figure, key: str, title: str, description: str) -> str:
    """`figure` as an `<svg>` element with a title and description; `key` prefixes every id, so it must be unique."""
    buffer = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = key
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), key, title, description)


def _inline(text: str, key: str, title: str, description: str) -> str:
    body = text[text.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    # Only inside tags: text nodes hold class names, which stay as they are.
    body = re.sub(r"<[^>]*>", lambda tag: _own(tag.group(0), key), body)
    opening = re.match(r"<svg[^>]*>", body)
    assert opening is not None
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening.group(0))
    assert box is not None
    head = (
        f'<svg class="plot" viewBox="0 0 {box[1]} {box[2]}" role="img" aria-labelledby="{key}-title {key}-text">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-text">{escape(description)}</desc>'
    )
    return head + body[opening.end() :]


def _own(tag: str, key: str) -> str:
    """One tag with prefixed ids and references and the page's colours."""
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    tag = re.sub(r"url\(#", f"url(#{key}-", tag)
    tag = re.sub(r'xlink:href="#', f'href="#{key}-', tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _ON_PAGE.get(colour.group(0), colour.group(0)), tag)
