"""Numbers as people read them. None in, an em dash out; a real minus sign; a narrow space before units."""

from __future__ import annotations

NONE = "—"
THIN = "\u202f"


def share(value: float | None, digits: int = 1) -> str:
    """A fraction 0..1 as a percentage: 0.87 → 87.0 %."""
    return NONE if value is None else f"{_signed(100 * value, digits)}{THIN}%"


def points(value: float | None, digits: int = 2) -> str:
    """Percentage points with their sign: −0.50, +1.25, 0.00."""
    if value is None:
        return NONE
    text = _signed(value, digits)
    return f"+{text}" if value > 0 and float(text) != 0 else text


def span(pair: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of fractions: 85.5 to 88.5 %."""
    return NONE if pair is None else f"{_signed(100 * pair[0], digits)} to {share(pair[1], digits)}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}".replace("-", "−")


def compact(value: float | None) -> str:
    """Three significant digits with k, M, G or T: 35000000 → 35.0 M."""
    if value is None:
        return NONE
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{three(value / limit)}{THIN}{suffix}"
    return count(value) if float(value).is_integer() else three(value)


def size(value: float | None) -> str:
    """Bytes in decimal units: 2410000 → 2.41 MB."""
    if value is None:
        return NONE
    for limit, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{three(value / limit)}{THIN}{suffix}"
    return f"{value:.0f}{THIN}B"


def milliseconds(value: float | None) -> str:
    """Milliseconds to three significant digits."""
    return NONE if value is None else f"{three(value)}{THIN}ms"


def seconds(value: float | None) -> str:
    """Seconds below two minutes, else minutes and seconds."""
    if value is None:
        return NONE
    if value < 120:
        return f"{value:.1f}{THIN}s"
    return f"{int(value // 60)}{THIN}min {int(value % 60)}{THIN}s"


def times(value: float | None) -> str:
    """A ratio: 0.60×."""
    return NONE if value is None else f"{_signed(value, 2)}×"


def probability(value: float | None) -> str:
    """A p-value to two significant digits, without an exponent: 0.87, 0.0091, below 0.0001."""
    if value is None:
        return NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value >= 0.01 else f"{value:.4f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits after the point."""
    return NONE if value is None else _signed(value, digits)


def general(value: float | None) -> str:
    """A number of unknown kind, short and lossless enough to compare with a limit."""
    return NONE if value is None else f"{value:.6g}".replace("-", "−")


def plural(amount: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def three(value: float) -> str:
    """Three significant digits without an exponent."""
    size_of = abs(value)
    return _signed(value, 0 if size_of >= 100 else 1 if size_of >= 10 else 2)


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
