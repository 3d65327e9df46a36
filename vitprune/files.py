"""Nothing half-written, nothing read without an end.

Written: under a temporary name in its own folder and then renamed, and never over a file that is not ours (ledger.py).
Read: regular files alone, up to a size; a device, a pipe or a socket is refused before it is opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitprune import ledger
from vitprune.errors import UserError
from vitprune.ledger import TEMPORARY

MAX_JSON = 1 << 28
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on any failure it is removed.

    Raises UserError when the disk is full, the folder cannot be written or is not a folder, or when a file that vitprune
    did not make stands at `path`.
    """
    try:
        ledger.guard(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise explain(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        put(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def put(temporary: Path, path: Path) -> None:
    """Give a finished file its name, in place of what stood there if that is ours."""
    try:
        ledger.guard(path)
        ledger.enter(path, temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for temporary files inside `folder`, gone afterwards; a killed run's goes when the next one begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".work.", suffix=TEMPORARY, dir=folder))
    except OSError as error:
        raise explain(error, folder) from error
    try:
        yield made
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Other libraries' temporary files go to `folder`, and what fails for want of room there is said in one line."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a native library says in its own words that a write failed
        if isinstance(error, OSError) or shutil.disk_usage(folder).free < 1 << 20 or "No space left" in str(error):
            number = error.errno if isinstance(error, OSError) else errno.ENOSPC
            raise explain(OSError(number, str(error)), folder.parent) from error
        raise
    finally:
        tempfile.tempdir = before


def explain(error: OSError, path: Path) -> Exception:
    """An operating-system failure while writing `path` as one line with the way out; others come back unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and run the same command again, it continues")
    if error.errno == errno.EFBIG:
        return UserError(f"{path}: larger than a file may be here (`ulimit -f`, or the disk's own limit)")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: may not be written; choose another folder with --out")
    if error.errno == errno.ELOOP:
        return UserError(f"{path}: is a symbolic link, which is not followed; remove it or choose another --out")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{str(path)[:200]}: a longer path than the disk can hold; choose another --out")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"{path}: a file stands where a folder is needed (or the reverse); choose another --out")
    return error


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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, it is not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """Read JSON; a file that is not JSON, or is larger than `most` bytes, is the user's to mend, in one line."""
    text = read_text(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
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
