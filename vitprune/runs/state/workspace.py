"""A run's folder: one lock, one record per stage, and the rule by which a stage is skipped.

exported/<name>/stages/<stage>/stage.json holds the digest of the stage's inputs and of each file it made. It is written
last, so a stage without it is unfinished; a stage with other digests is done again. No time of any clock is compared.

Only a folder that vitprune made is worked in, and in it only files of its list (ledger.py) are replaced or removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vitprune.core import claims, ledger
from vitprune.core.errors import UserError
from vitprune.core.files import explain, write_sealed
from vitprune.core.ledger import TEMPORARY, Ledger
from vitprune.core.reading import read_sealed, sha256

PARTS = "parts"
SHARED = ("split", "discover", "moments", "latency")  # what the budgets of a frontier have in common


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder exported/<name> of one run. `above`: that of the frontier it is a budget of. `around`: that of the run it
    is inside of, which outlives it."""

    root: Path
    above: Path | None = None
    around: Path | None = None

    @property
    def images(self) -> Path:
        """Where decoded images are kept: a worker has them beyond a run that is inside another."""
        return self.around or self.above or self.root

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps what later stages read."""
        root = self.above if self.above is not None and stage in SHARED else self.root
        return root / "stages" / stage

    def record(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage, or None."""
        return read_sealed(self.stage_folder(stage) / "stage.json")

    def is_current(self, stage: str, inputs: str) -> bool:
        """True when the stage has finished with these inputs and its files are still there as they were written."""
        record = self.record(stage)
        if record is None or record["inputs"] != inputs:
            return False
        paths = {self.root / name: made for name, made in record["files"].items()}
        return all(path.is_file() and sha256(path) == made for path, made in paths.items())

    def files_of(self, stage: str) -> set[Path]:
        """What the stage's last finished run made, inside this folder."""
        record = self.record(stage)
        paths = {self.root / name for name in record["files"]} if record else set()
        return {path for path in paths if path.resolve().is_relative_to(self.root.resolve())}

    def remove(self, files: set[Path]) -> None:
        """Remove what an earlier run of a stage made and this one did not, and folders that are left empty."""
        for path in files:
            ledger.discard(path)
            if path.name == "config.json":  # a checkpoint's card goes with it
                ledger.discard(path.parent / "README.md")
            if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def begin(self, stage: str) -> None:
        """Forget the stage's record and what it made; parts, which say themselves what they are of, stay."""
        folder = self.stage_folder(stage)
        try:
            ledger.discard(folder / "stage.json")
            self.clear(folder, {PARTS})
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(error, folder) from error

    def clear(self, folder: Path, keep: set[str]) -> None:
        """Remove what vitprune made in a folder of this run, but for the names in `keep`, and folders left empty."""
        made = ledger.of(folder / "any")
        if made is None or not folder.is_dir():
            return
        top = ledger.plain(folder)
        for path in made.files(top):
            if path.relative_to(top).parts[0] not in keep:
                path.unlink(missing_ok=True)
        for place, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):  # not empty
                Path(place).rmdir()

    def finish(
        self, stage: str, inputs: str, files: list[Path], started: float, peak_memory_mb: float | None = None
    ) -> None:
        """Write the stage's record."""
        made = {path.relative_to(self.root).as_posix(): sha256(path) for path in files}
        seconds = round(time.monotonic() - started, 2)
        cost = {"seconds": seconds, "peak_memory_mb": peak_memory_mb}
        write_sealed(self.stage_folder(stage) / "stage.json", {"inputs": inputs, **cost, "files": made})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises UserError when another run holds it, when it cannot be made, or when
        vitprune did not make it."""
        claims.claim(self.root)
        handle = self._open_lock()
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.root}: another run is working here; wait for it or choose another --out"
                ) from error
            self._clear_temporary()
            Ledger(self.root).tidy()
            yield
        finally:
            handle.close()

    @contextmanager
    def locked_together(self) -> Iterator[bool]:
        """Hold the folder with other processes that do so too; False where one holds it alone, or there is none yet."""
        if not (self.root / ".lock").exists():
            yield False
            return
        handle = self._open_lock()
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                held = False
            yield held
        finally:
            handle.close()

    def _clear_temporary(self) -> None:
        """Remove the temporary files of a run that was killed; not those in a run's folder inside this one."""
        for place, folders, files in os.walk(self.root):
            ours = {name for name in (*folders, *files) if name.startswith(".") and name.endswith(TEMPORARY)}
            for name in ours:
                path = Path(place, name)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            folders[:] = [f for f in folders if f not in ours and not Ledger(Path(place, f)).exists()]

    def _open_lock(self) -> IO[str]:
        try:
            if os.path.lexists(self.root / ".lock") and not (self.root / ".lock").is_file():
                raise UserError(f"{self.root / '.lock'}: is no plain file; remove it or choose another --out")
            return open(
                self.root / ".lock", "a+", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o666)
            )
        except OSError as error:
            raise explain(error, self.root) from error
