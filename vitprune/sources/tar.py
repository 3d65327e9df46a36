"""Tar files, whose members are read where they lie: nothing is extracted, so no member's name can lead anywhere.

The class of a member is the folder it would be in if the tar were unpacked: the first folder below what all members
share. Members without a folder have the tar's own name (ImageNet's `n01440764.tar`). Where members ending in `.cls` are
beside the images (webdataset's shards), they hold the labels.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from vitprune.decode import EXTENSIONS, read_bytes
from vitprune.errors import UserError
from vitprune.sources import ADVICE
from vitprune.sources.folder import facts, grouped

MAX_CLS = 1000  # bytes of a label
MAX_IMAGE = 1 << 30  # and of an image


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies in a tar: number of the tar, the name's parts, first byte, length."""

    tar: int
    parts: tuple[str, ...]
    start: int
    size: int


class Tar:
    """The images of one or several tar files, in the order of tar and member names."""

    def __init__(self, files: list[Path], key: str = "data.path") -> None:
        self.files = files
        found = {(m.tar, m.parts): m for t, file in enumerate(files) for m in _members(t, file, f"{key} {file}")}
        every = [found[name] for name in sorted(found)]
        self.members = [m for m in every if PurePosixPath(m.parts[-1]).suffix.lower() in EXTENSIONS]
        where = f"{key} {files[0]}" + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")
        if not self.members:
            raise UserError(f"{where}: holds no images")
        self.names = [f"{files[m.tar].name}/{'/'.join(m.parts)}" for m in self.members]
        sidecars = {(m.tar, _stem(m.parts)): m for m in every if m.parts[-1].endswith(".cls")}
        labels = self._beside(sidecars, where) if sidecars else self._by_folder()
        self.classes, self.class_of, numbers = grouped(labels)
        self.numbers = numbers if sidecars else None

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming a member that cannot be decoded."""
        m = self.members[i]
        return read_bytes(lambda: self._bytes(m), f"{self.files[m.tar]}: {'/'.join(m.parts)}", ADVICE)

    def fingerprint(self) -> str:
        """Digest of the tars' names, sizes and modification times."""
        return hashlib.sha256(facts((file.name, file) for file in self.files).encode()).hexdigest()

    def _bytes(self, member: Member) -> bytes:
        if member.size > MAX_IMAGE:
            raise ValueError(f"{member.size:,} bytes; at most {MAX_IMAGE:,} are read")
        return self._start(member, member.size)

    def _start(self, member: Member, most: int) -> bytes:
        with self.files[member.tar].open("rb") as handle:
            handle.seek(member.start)
            return handle.read(min(member.size, most))

    def _by_folder(self) -> list[str]:
        folders = [m.parts[:-1] for m in self.members]
        nested = [f for f in folders if f]
        shared = 0
        while nested and all(len(f) > shared + 1 and f[shared] == nested[0][shared] for f in nested):
            shared += 1
        return [f[shared] if f else self.files[m.tar].stem for f, m in zip(folders, self.members, strict=True)]

    def _beside(self, sidecars: dict[tuple[int, tuple[str, ...]], Member], where: str) -> list[str]:
        labels = []
        for name, m in zip(self.names, self.members, strict=True):
            beside = sidecars.get((m.tar, _stem(m.parts)))
            if beside is None:
                raise UserError(f"{where}: `{name}` has no .cls beside it, but other images have")
            text = self._start(beside, MAX_CLS).decode("utf-8", "replace").strip()
            if not text:
                raise UserError(f"{where}: the .cls of `{name}` is empty")
            labels.append(text)
        return labels


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder that holds them and no class folders, by name."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return (
        [] if any(p.is_dir() for p in found) else sorted(p for p in found if p.suffix.lower() == ".tar" and p.is_file())
    )


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    """webdataset's key: the name up to its first dot."""
    return (*parts[:-1], parts[-1].split(".")[0])


class _Bounded(io.FileIO):
    """A file that is never asked for more bytes than it has: a header may claim any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest)) or b""


def _members(tar: int, file: Path, where: str) -> Iterator[Member]:
    """Regular files that are not hidden. Raises UserError for anything a plain tar of images does not hold."""
    length, last = file.stat().st_size, -1
    try:
        with _Bounded(file) as handle, tarfile.open(fileobj=handle, mode="r:") as opened:
            for info in iter(opened.next, None):
                opened.members = []  # type: ignore[attr-defined]  # it keeps every header it has read
                if info.offset <= last or info.size < 0 or info.offset_data + info.size > length:
                    raise UserError(f"{where}: `{info.name[:80]}` does not fit the file; it is cut short or damaged")
                last = info.offset
                parts = tuple(p for p in info.name.split("/") if p not in ("", "."))
                if info.isdir() or not parts or any(p.startswith(".") and p != ".." for p in parts):
                    continue
                if not info.isreg() or info.issparse():
                    raise UserError(
                        f"{where}: `{info.name[:80]}` is a link, a device or sparse; pack plain files (tar --dereference)"
                    )
                yield Member(tar, parts, info.offset_data, info.size)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(
            f"{where}: not a plain tar file ({str(error)[:80]}); a compressed one is to be unpacked to .tar first"
        ) from error
