"""What a terminal is told: one unit's card, a class's units, or the whole in a few lines."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_json, read_text
from vitprune.report.reading.values import clean
from vitprune.runs.seeing.looking import FOLDER
from vitprune.runs.seeing.parts.directions import require_direction
from vitprune.runs.seeing.shown import require_unit

MOST = 1 << 28  # bytes of units.csv
TURNED = {"yes": "kept", "turned": "its head is kept, with fewer dimensions, which are others"}  # of attention


class Cards:
    """The cards of one finished run, from its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: Json = read_json(root / FOLDER / "see.json")

    def rows(self, name: str = "units.csv") -> list[dict[str, str]]:
        """A table, a row for every unit (of attention.csv: for every direction)."""
        text = read_text(self.root / FOLDER / name, MOST)
        return list(csv.DictReader(io.StringIO(text)))

    def require_unit(self, block: int, number: int) -> None:
        """Raises UserError for a unit that the model does not have."""
        require_unit(self.told["widths"], block, number)

    def unit(self, block: int, number: int) -> dict[str, str]:
        """The row of one unit. Raises UserError for one that the model does not have."""
        self.require_unit(block, number)
        return self.rows()[sum(self.told["widths"][:block]) + number]

    def require_direction(self, block: int, head: int, dimension: int) -> None:
        """Raises UserError for a direction of attention that is not there, or where attention was not looked at."""
        told = self.told.get("attention")
        if not isinstance(told, dict):
            name = f"{block}:h{head}.{dimension}"
            raise UserError(
                f"see: direction {name}: attention was not looked at; see.sites: [ffn, attention] (--sites) does"
            )
        require_direction(told["heads"], told["dims"], block, head, dimension)

    def direction(self, block: int, head: int, dimension: int) -> dict[str, str]:
        """The row of one direction. Raises UserError for one that the model does not have."""
        self.require_direction(block, head, dimension)
        told = self.told["attention"]
        before = sum(h * d for h, d in zip(told["heads"][:block], told["dims"][:block], strict=True))
        return self.rows("attention.csv")[before + head * told["dims"][block] + dimension]

    def require_class(self, name: str) -> None:
        """Raises UserError for no class of the run."""
        if name not in self.told["classes"]:
            shown = ", ".join(map(clean, self.told["classes"][:12]))
            raise UserError(f"--class {clean(name[:64])}: no class of this run; there are {shown}")

    def card(self, row: dict[str, str]) -> list[str]:
        """A unit in at least three lines, the last of them where its page is."""
        name, lines = self._headed(row)
        if "norm" in row:
            lines.append(f"  writes      {self._writes(row)}")
        for read, words in (("class", "class token"), ("patches", "patches")):
            if classes := _classes(row, f"fires_{read}"):
                share = row.get(f"between_{read}")
                apart = f"; {100 * float(share):.0f} % of its variance lies between classes" if share else ""
                lines.append(f"  fires for   {', '.join(classes)} (mean over the {words}{apart})")
        lines += _named(row)
        if row.get("concept"):
            iou, chance = float(row["concept_iou"]), float(row["concept_iou_chance"])
            lines.append(f"  shows       {clean(row['concept'])} (IoU {iou:.3f}, {chance:.3f} by chance)")
        if row.get("fires") == "no":
            lines.append("  never fires on the images that were looked at")
        elif row.get("strongest_image"):
            lines.append(f"  strongest   {clean(row['strongest_image'])} ({float(row['highest']):.3g})")
        if row.get("drift_corr"):
            lines.append(
                f"  repair      activations before and after correlate at {float(row['drift_corr']):.3f}, what it writes has "
                f"cosine {float(row['drift_cos'] or 'nan'):.3f}"
            )
        if row.get("twin"):
            lines.append(f"  stand-in    {row['twin']}, correlation {float(row['twin_corr']):.3f}")
        atlas = (self.told.get("atlas_of_attention" if "head" in row else "atlas") or {}).get("file")
        page = f"{self.root / atlas}#{name}" if atlas else str(self.root / "report.html")
        return [*lines, f"  seen on     {self.told['images']['n']} probe images", f"  page        {page}"]

    def _headed(self, row: dict[str, str]) -> tuple[str, list[str]]:
        """Its name, and the first line of its card."""
        block = int(row["block"])
        if "head" not in row:
            name = f"{block}:{row['unit']}"
            return name, [f"unit {name} of {self.told['sites'][block]}: {_state(row)}"]
        name, where = f"{block}:h{row['head']}.{row['dimension']}", self.told["attention"]["sites"][block]
        what = f"dimension {row['dimension']} of the values of head {row['head']}"
        return name, [f"direction {name} of {where} ({what}): {_state(row)}"]

    def _writes(self, row: dict[str, str]) -> str:
        if row.get("dead") == "yes":
            return "nothing: it is dead"
        found = _classes(row, "writes")
        return (
            ", ".join(found)
            if found
            else "no class evidence in this block (no closer to the classes than to random heads)"
        )

    def of_class(self, name: str) -> list[str]:
        """The units that speak most for a class, and what went with the removed ones. Raises UserError for no class of the
        run, or where the part alignment was not done."""
        aligned = self.told.get("alignment")
        if aligned is None:
            raise UserError("--class: needs the part alignment; add it to --parts")
        self.require_class(name)
        units: list[Json] = next((row["units"] for row in aligned["classes"] if row["class"] == name), [])
        lines = [f"class {clean(name)}"]
        if not units:
            return [*lines, "  no block carries class evidence: no unit is said to speak for it"]
        rows = self.rows()
        for one in units:
            block, number = map(int, one["unit"].split(":"))
            row = rows[sum(self.told["widths"][:block]) + number]
            fires = next((f for read in ("class", "patches") if (f := _classes(row, f"fires_{read}"))), ["–"])
            lines.append(f"  {one['unit']:<8} {_state(row)}; writes {clean(name)}, fires for {fires[0]}")
        for group, found in aligned["evidence"].items():
            mine = next((row for row in found["classes"] if row["class"] == name), None)
            if mine:
                lost = "" if mine["lost_points"] is None else f"; it lost {mine['lost_points']:.1f} points in the exam"
                of = f" [{group}]" if group else ""
                lines.append(f"  removed{of}: {100 * mine['share']:.1f} % of its direct evidence{lost}")
        return lines

    def summary(self) -> list[str]:
        """The whole run in a few lines."""
        told, widths = self.told, self.told["widths"]
        lines = [f"Seen: {sum(widths):,} units on {told['images']['n']:,} probe images ({', '.join(told['parts'])})"]
        for name, why in told["left_out"].items():
            lines.append(f"Left out: {name}: {why}")
        if aligned := told.get("alignment"):
            carries = [str(block["block"]) for block in aligned["blocks"] if block["carries"]]
            none = "none in any block (no closer to the classes than random heads): nothing is said of what units write"
            found = f"blocks {', '.join(carries)} of {len(widths)}" if carries else none
            lines.append(f"Class evidence: {found}")
        atlas = told["atlas"]["file"]
        return [*lines, *([f"Atlas: {self.root / atlas}"] if atlas else []), f"Report: {self.root / 'report.html'}"]


def _state(row: dict[str, str]) -> str:
    """Kept or removed, per class set where there are several."""
    found = []
    for key, value in row.items():
        if key == "kept" or key.startswith("kept_"):
            group = key.removeprefix("kept").removeprefix("_")
            slim = row.get(f"slim{key.removeprefix('kept')}")
            state = f"kept (slim unit {slim})" if slim else TURNED.get(value, "removed")
            found.append(f"{state} for {group}" if group else state)
    return ", ".join(found)


def _named(row: dict[str, str]) -> list[str]:
    """What a unit is called and how far the class of an image tells what it does, each beside its control."""
    lines = []
    if row.get("name"):
        score = _score(row, "name_score", "name_control", "names")
        lines.append(f"  name        {clean(row['name'])}{score and f' ({score})'}")
    if row.get("simulated"):
        lines.append(f"  simulated   by an image's class: {_score(row, 'simulated', 'simulated_control', 'units')}")
    return lines


def _score(row: dict[str, str], score: str, control: str, of: str) -> str:
    if not row.get(score):
        return ""
    beside = f"; those of other {of} {float(row[control]):.2f}" if row.get(control) else ""
    return f"correlation {float(row[score]):.2f} on other images{beside}"


def _classes(row: dict[str, str], start: str) -> list[str]:
    """The classes of a unit's row, the strongest first."""
    return [clean(row[f"{start}_{rank}"]) for rank in (1, 2, 3) if row.get(f"{start}_{rank}")]
