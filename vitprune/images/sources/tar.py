"""Tar files, whose members are read where they lie: nothing is extracted, so no member's name can lead anywhere.

The class of a member is the folder it would be in if the tar were unpacked: the first folder below what all members
share. Where a tar's members have no folder, they have the tar's own name (ImageNet's `n01440764.tar`). Where members
ending in `.cls` are beside the images (webdataset's shards), they hold the labels.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.decode import is_image, read_bytes
from vitprune.images.sources.base import ADVICE
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.folder import grouped
from vitprune.images.sources.found import BESIDE, is_left_out, kind_of, named_as_image

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
        images = _images(files, every)
        where = f"{key} {files[0]}" + (f" (and {len(files) - 1} more)" if len(files) > 1 else "")
        if not images:
            raise UserError(f"{where}: holds no images")
        sidecars = {(m.tar, _stem(m.parts)): m for m in every if m.parts[-1].endswith(".cls")}
        labels = self._beside(images, sidecars, where) if sidecars else self._by_folder(images)
        kept = [(m, label) for m, label in zip(images, labels, strict=True) if label is not None]
        self.members = [m for m, _ in kept]
        self.names = [self._name(m) for m in self.members]
        self.classes, self.class_of, self.numbers = grouped([label for _, label in kept])
        taken = {(m.tar, m.parts) for m in images}
        samples = {(m.tar, _stem(m.parts)) for m in images} if sidecars else set()
        others = [m for m in every if (m.tar, m.parts) not in taken and (m.tar, _stem(m.parts)) not in samples]
        self.left_out = Counter(kind_of(m.parts[-1]) for m in others) + Counter({BESIDE: len(images) - len(kept)})

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming a member that cannot be decoded."""
        m = self.members[i]
        return read_bytes(lambda: self._bytes(m), f"{self.files[m.tar]}: {'/'.join(m.parts)}", ADVICE)

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of the tars' names and contents."""
        return (contents or Contents()).digest([file.name for file in self.files], self.files)

    def _name(self, member: Member) -> str:
        return f"{self.files[member.tar].name}/{'/'.join(member.parts)}"

    def _bytes(self, member: Member) -> bytes:
        if member.size > MAX_IMAGE:
            raise ValueError(f"{member.size:,} bytes; at most {MAX_IMAGE:,} are read")
        return self._start(member, member.size)

    def _start(self, member: Member, most: int) -> bytes:
        with self.files[member.tar].open("rb") as handle:
            handle.seek(member.start)
            return handle.read(min(member.size, most))

    def _by_folder(self, images: list[Member]) -> list[str | None]:
        """The class of each image; None for one that lies beside the class folders."""
        level = _class_level({m.parts[:-1] for m in images if len(m.parts) > 1})
        with_folders = {m.tar for m in images if len(m.parts) - 1 > level}
        own = {t: None if t in with_folders else file.stem for t, file in enumerate(self.files)}
        return [m.parts[level] if len(m.parts) - 1 > level else own[m.tar] for m in images]

    def _beside(
        self, images: list[Member], sidecars: dict[tuple[int, tuple[str, ...]], Member], where: str
    ) -> list[str | None]:
        labels: list[str | None] = []
        for m in images:
            name, beside = self._name(m), sidecars.get((m.tar, _stem(m.parts)))
            if beside is None:
                raise UserError(f"{where}: `{name}` has no .cls beside it, but other images have")
            text = self._start(beside, MAX_CLS).decode("utf-8", "replace").strip()
            if not text:
                raise UserError(f"{where}: the .cls of `{name}` is empty")
            labels.append(text)
        return labels


def _class_level(folders: set[tuple[str, ...]]) -> int:
    """How many folders all classes share: down to the first level that has several, or that holds images itself.

    Images that lie in a shared folder beside several others are beside the class folders.
    """
    level = 0
    while len({f[level] for f in folders if len(f) > level}) == 1:
        next_ones = {f[level + 1] for f in folders if len(f) > level + 1}
        if not next_ones or (len(next_ones) == 1 and any(len(f) == level + 1 for f in folders)):
            break
        level += 1
    return level


def _images(files: list[Path], members: list[Member]) -> list[Member]:
    """Those members that are images: by their ending, or by their content."""
    found = []
    for t, own in groupby(members, key=lambda m: m.tar):
        with files[t].open("rb") as handle:
            found += [m for m in own if named_as_image(m.parts[-1]) or is_image(BufferedReader(_Part(handle, m)))]
    return found


class _Part(io.RawIOBase):
    """One member of an open tar as a file of its own."""

    def __init__(self, handle: BinaryIO, member: Member) -> None:
        self._handle, self._member, self._at = handle, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = max(0, offset + (0, self._at, self._member.size)[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        self._handle.seek(self._member.start + self._at)
        content = self._handle.read(max(0, min(len(buffer), self._member.size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder that holds them and no class folders, by name."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if not is_left_out(p.name)]
    tars = sorted(p for p in found if p.suffix.lower() == ".tar" and p.is_file())
    return [] if any(p.is_dir() for p in found) else tars


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    """webdataset's key: the name up to its first dot."""
    return (*parts[:-1], parts[-1].split(".")[0])


class _Bounded(io.FileIO):
    """A file that is never asked for more bytes than it has: a header may claim any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest)) or b""


def _members(tar: int, file: Path, where: str) -> Iterator[Member]:
    """Regular files that are not left out. Raises UserError for anything a plain tar of images does not hold."""
    length, last = file.stat().st_size, -1
    try:
        with _Bounded(file) as handle, tarfile.open(fileobj=handle, mode="r:") as opened:
            for info in iter(opened.next, None):
                opened.members = []  # type: ignore[attr-defined]  # it keeps every header it has read
                if info.offset <= last or info.size < 0 or info.offset_data + info.size > length:
                    raise UserError(f"{where}: `{info.name[:80]}` does not fit the file; it is cut short or damaged")
                last = info.offset
                parts = tuple(p for p in info.name.split("/") if p not in ("", "."))
                if info.isdir() or not parts or any(is_left_out(p) and p != ".." for p in parts):
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
