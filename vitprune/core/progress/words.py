"""How progress is put in words: clocks, rates, and a line that fits a terminal."""

from __future__ import annotations

import textwrap

LABEL = 36  # characters of a label, at most
BAR = 6, 40  # characters of a bar, at least and at most; below there is none


def clock(seconds: float) -> str:
    """Seconds as `0:40`, `12:05` or `3:07:00`; days above two of them."""
    whole = max(0, round(seconds))
    if whole >= 172800:
        return f"{whole // 86400} days"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def rate(done: int, seconds: float) -> str:
    """Items a second, `120/s` or `3.1/s`; below one a second what an item takes, `2.5 s/item`; empty where none is done."""
    if not done:
        return ""
    each = max(seconds, 1e-9) / done
    if each < 1:
        return f"{1 / each:.0f}/s" if each <= 0.1 else f"{1 / each:.1f}/s"
    return f"{each:.1f} s/item" if each < 10 else f"{each:.0f} s/item"


def bar(width: int, label: str, done: int, total: int, seconds: float, plain: bool = False) -> str:
    """A line of at most `width` characters: label, bar, count and rate. What does not fit goes in this order: the bar, the
    end of the label; numbers are never cut. `plain`: a terminal that knows only ASCII."""
    right = f"{f'{done}/{total}':>11} {rate(done, seconds):>10}"
    shown = _cut(label, min(LABEL, max(4, width - len(right) - 2)), plain)
    room = min(BAR[1], width - len(shown) - len(right) - 3)
    if room < BAR[0]:
        return f"{shown} {right}"
    full = min(room, room * done // max(1, total))
    on, off = ("#", "-") if plain else ("━", "╌")
    return f"{shown} {on * full}{off * (room - full)} {right}".rstrip()


def broken(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, broken between words: numbers and paths stay whole, however long."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)) or text


def _cut(text: str, width: int, plain: bool) -> str:
    end = "..." if plain else "…"
    return text if len(text) <= width else text[: max(1, width - len(end))] + end
