"""The families' table of the docs from what a run of test_families.py wrote down: python family_table.py IN.json OUT.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SITES = {"ffn": "FFN", "values": "V/proj", "query_keys": "Q/K", "heads": "heads"}
STAGES = ("discover", "prune", "repair", "save, load", "ONNX", "fp16", "int8")
HEAD = """# Model families

Written by `make docs-table` from a run of `tests/whole/test_families.py`; nothing here is typed by hand. Every name goes
through the stages as a tiny model with random weights. *discover*: criteria that gave finite scores (the others are
refused with one line). *prune*: largest difference of logits between the masked and the sliced model in float64, over
the largest logit. *repair*: repairs that came closer to the dense model than none. *save, load*: the folder gives the
same model and, saved again, the same bytes. *ONNX*: largest difference to torch at batch 1, 2 and 7 over the largest
logit, once per family; *fp16*, *int8*: the same of the files made from it (int8 of tiny random models, calibrated on a
few random images, is coarse: the column says that the file is made and runs).
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """One row per tested name."""
    lines = [HEAD, f"| family | name | {' | '.join(STAGES)} |", "|" + " --- |" * (len(STAGES) + 2)]
    for row in rows:
        for name, stages in row["stages"].items():
            cells = [stages.get(stage, "–") for stage in STAGES]
            lines.append(f"| {row['title']} | `{name}` | {' | '.join(cells)} |")
    lines += [
        "",
        "## Which criteria apply",
        "",
        "| family | with `tokens: cls` | only with `tokens: all` or `patches` |",
    ]
    lines.append("| --- | --- | --- |")
    most = max(len(row["criteria"]) for row in rows)
    for row in rows:
        every = len(row["criteria"]) == most
        lines.append(
            f"| {row['title']} | {'all' if every else ', '.join(row['criteria'])} | {', '.join(row['all_tokens_only'])} |"
        )
    lines += [
        "",
        "## Which sites there are",
        "",
        "What can become smaller: hidden units of the FFNs, a head's dimensions of values, those of queries and keys, heads.",
        "",
        f"| family | {' | '.join(SITES.values())} | why not |",
        "|" + " --- |" * (len(SITES) + 2),
    ]
    for row in rows:
        cells = ["yes" if row["sites"][kind] is None else "no" for kind in SITES]
        why = "; ".join(dict.fromkeys(filter(None, row["sites"].values())))
        lines.append(f"| {row['title']} | {' | '.join(cells)} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(markdown(json.loads(source.read_text())))
