"""Tables that fit the terminal they are printed on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 10_000  # columns of a terminal that nothing is too wide for


def fitted(console: Console, table: Table, spare: Sequence[str]) -> Table:
    """The table, within the console's width: as many of the `spare` columns go as must, the first named first, and it is said
    which; then names are folded. Numbers, in the columns set to the right, are never cut."""
    for column in table.columns:
        column.no_wrap, column.overflow = column.justify == "right", "fold"
    gone = []
    for name in spare:
        if Measurement.get(console, console.options.update_width(WIDEST), table).maximum <= console.width:
            break
        gone.append(name)
        table.columns = [column for column in table.columns if column.header != name]
    if gone:
        table.caption, table.caption_justify = f"not shown at this width: {', '.join(gone)}", "left"
    return table
