"""Nothing half-written, nothing read without an end.

Written: under a temporary name in its own folder and then renamed, and never over a file that is not ours (ledger.py).
Read: regular files alone, up to a size; a device, a pipe or a socket is refused before it is opened.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vitprune.core import ledger
from vitprune.core.errors import UserError
from vitprune.core.ledger import TEMPORARY
from vitprune.core.reading import KINDS, Json, digest

if TYPE_CHECKING:
    import numpy as np

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


def write_columns(
    file: BinaryIO,
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    column: Callable[[str], np.ndarray],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as safetensors, one after the other: each is asked for when its turn comes, and no second copy is made.

    `shapes`: of every array its type and shape by its name; those of longer numbers come first, so that each begins at a
    multiple of its own. A disk that is full is an OSError, as with any other file.
    """
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name in names:
        kind, shape = shapes[name]
        start, end = end, end + kind.itemsize * math.prod(shape)
        entries[name] = {"dtype": _TYPES[kind.str[1:]], "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    for name in names:
        made = column(name)
        assert (made.dtype, made.shape) == shapes[name], name
        if made.size:
            file.write(made.data if made.flags.c_contiguous else made.tobytes())


_TYPES = {
    f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iuf" for size in (1, 2, 4, 8) if kind != "f" or size > 1
}
_TYPES["b1"] = "BOOL"


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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, it is not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Json) -> None:
    """Write a JSON object with a digest of itself, for `read_sealed`."""
    as_read = json.loads(json.dumps(value))
    write_json(path, as_read | {"seal": digest(as_read)})
