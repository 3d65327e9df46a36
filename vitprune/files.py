"""Nothing half-written: every file is made under a temporary name in its own folder and then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitprune.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on any failure it is removed.

    Raises UserError when the disk is full, the folder cannot be written or is not a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise explain(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def explain(error: OSError, path: Path) -> Exception:
    """An operating-system failure while writing `path` as one line with the way out; others come back unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and run the same command again, it continues")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: may not be written; choose another folder with --out")
    if error.errno == errno.ELOOP:
        return UserError(f"{path}: is a symbolic link, which is not followed; remove it or choose another --out")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"{path}: a file stands where a folder is needed (or the reverse); choose another --out")
    return error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, it is not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not JSON is the user's to mend, in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a digest of itself, for `read_sealed`."""
    as_read = json.loads(json.dumps(value))
    write_json(path, as_read | {"seal": digest(as_read)})


def read_sealed(path: Path) -> dict[str, Any] | None:
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
