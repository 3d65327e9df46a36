"""Digests of files' contents, which are what a result depends on: not a clock, not a path.

Where there is much to read, what was read is remembered in a file of the run's folder: a digest for each file as it was,
by its path, size, inode and times. These only decide whether it is read again; they are no part of a digest.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitprune.core.files import replacing

WORTH = 256 << 20  # bytes read from which remembering pays
SETTLED = 2.0  # seconds after which a change to a file has another time
SIZE = 16  # bytes of a digest


class Contents:
    """Contents of files, remembered in `memory` if that is given."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known = _recall(memory)
        self._fresh: dict[bytes, bytes] = {}
        self._read = 0

    def digest(self, names: Sequence[str], files: Sequence[Path]) -> str:
        """Digest of the names and contents of files; one that is gone counts as empty."""
        made = hashlib.sha256()
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            for name, found in zip(names, threads.map(self._of, files), strict=True):
                made.update(name.encode("utf-8", "surrogateescape") + b"\0" + found)
        return made.hexdigest()

    def keep(self) -> None:
        """Remember what was read, where that was much."""
        if self._memory is None or self._read < WORTH:
            return
        records = b"".join(key + value for key, value in sorted((self._known | self._fresh).items()))
        with replacing(self._memory) as temporary:
            temporary.write_bytes(hashlib.sha256(records).digest() + records)

    def _of(self, path: Path) -> bytes:
        started = time.time()
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                return bytes(SIZE)
            facts = (about.st_size, about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
            key = _short(repr((os.fspath(path), facts)).encode("utf-8", "backslashreplace"))
            if key in self._known:
                return self._known[key]
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=SIZE)).digest()
        except OSError:
            return bytes(SIZE)
        self._read += about.st_size
        if started - max(about.st_mtime, about.st_ctime) > SETTLED:
            self._fresh[key] = found
        return found


def _recall(memory: Path | None) -> dict[bytes, bytes]:
    """What was remembered; nothing where the file is not as it was written."""
    try:
        content = memory.read_bytes() if memory is not None else b""
    except OSError:
        return {}
    seal, records = content[:32], content[32:]
    if not records or hashlib.sha256(records).digest() != seal or len(records) % (2 * SIZE):
        return {}
    every = [records[i : i + SIZE] for i in range(0, len(records), SIZE)]
    return dict(zip(every[::2], every[1::2], strict=True))


def _short(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=SIZE).digest()
