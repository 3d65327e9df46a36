"""Files read: regular ones only, of bounded size; JSON, sealed JSON, digests."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitprune.core.errors import UserError

Json = dict[str, Any]  # an object of JSON: a record, a configuration, a report, as it was read or will be written

MAX_JSON = 1 << 28

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def kind(path: Path) -> str | None:
    """What stands at `path`: None for a regular file, else in words. Raises OSError where nothing does."""
    mode = path.stat().st_mode
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


@contextmanager
def opened(path: Path, where: str = "") -> Iterator[BinaryIO]:
    """A regular file, open for reading. Raises UserError for anything else, at once; `where` names it in errors."""
    where = where or str(path)
    try:
        found = kind(path)
        if found is None:  # a pipe that took its place meanwhile does not make this wait
            handle = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise UserError(f"{where}: cannot be read (no such file)") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({_reason(error)})") from error
    if found is not None:
        raise UserError(f"{where}: cannot be read (it is {found}, not a file)")
    with handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise UserError(f"{where}: cannot be read (it is not a file)")
        yield handle


def read_bytes(path: Path, most: int, where: str = "") -> bytes:
    """A regular file's bytes. Raises UserError for another kind of file, or for one of more than `most` bytes."""
    where = where or str(path)
    with opened(path, where) as handle:
        try:
            size = os.fstat(handle.fileno()).st_size
            content = handle.read(most + 1) if size <= most else b""  # it may grow, and some files say no size
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({_reason(error)})") from error
    if max(size, len(content)) > most:
        bound = f"{most >> 20:,} MiB" if most >= 1 << 20 else f"{most:,} bytes"
        raise UserError(f"{where}: larger than {bound} ({max(size, len(content)):,} bytes), so it is not read")
    return content


def read_text(path: Path, most: int, where: str = "", encoding: str = "utf-8") -> str:
    """`read_bytes` as text, line ends as `\\n`."""
    content = read_bytes(path, most, where)
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where or path}: cannot be read ({error})") from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """Read JSON; a file that is not JSON, or is larger than `most` bytes, is the user's to mend, in one line."""
    text = read_text(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def read_sealed(path: Path) -> Json | None:
    """What `write_sealed` wrote; None when the file is missing or is not as it was written."""
    try:
        found = read_json(path)
    except UserError:
        return None
    seal = found.pop("seal", None) if isinstance(found, dict) else None
    return found if seal is not None and seal == digest(found) else None


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(*values: Any) -> str:
    """Hex digest of JSON-able values; equal values give equal digests in every process."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
