"""A manifest: a CSV or Parquet table with the columns `path` and `label`.

A path is relative to the manifest's folder and may not lead out of it by `..`: a list that came with its images cannot
point elsewhere by accident. An absolute path is taken as it stands. Every file is only ever decoded as an image.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from PIL import Image

from vitprune.core.errors import UserError
from vitprune.images.decode import read
from vitprune.images.sources.base import ADVICE
from vitprune.images.sources.contents import Contents
from vitprune.images.sources.folder import grouped

COLUMNS = ("path", "label")
MAX_LINE = 1 << 17
MAX_ROWS = 1 << 26


class Manifest:
    """The images of a manifest, in its order; a label is a class's name, or the number of the model's output.

    A file that is not there is an unreadable image like any other, left to `data.on_corrupt`.
    """

    def __init__(self, file: Path, key: str = "data.path") -> None:
        where = f"{key} {file}"
        rows = _parquet(file, where) if file.suffix.lower() == ".parquet" else _csv(file, where)
        self.file = file
        self.left_out: Counter[str] = Counter()  # what a list names is read, whatever its name
        self.files: list[Path] = []
        self.names: list[str] = []
        labels: list[str] = []
        line_of: dict[Path, int] = {}
        for line, name, label in rows:
            if not name or not label:
                raise UserError(f"{where}, line {line}: `{'label' if name else 'path'}` is empty")
            path = _inside(file, name, f"{where}, line {line}")
            if path in line_of:
                raise UserError(f"{where}, line {line}: `{name}` is already on line {line_of[path]}")
            line_of[path] = line
            self.files.append(path)
            self.names.append(name)
            labels.append(label)
        if not labels:
            raise UserError(f"{where}: lists no images; it needs one line of path and label per image")
        self.classes, self.class_of, self.numbers = grouped(labels)

    def image(self, i: int) -> Image.Image:
        """Image i, upright, `L` or `RGB`. Raises UserError naming a file that cannot be decoded."""
        return read(self.files[i], ADVICE)

    def fingerprint(self, contents: Contents | None = None) -> str:
        """Digest of names, labels and contents."""
        labels = "\0".join([*self.classes, *map(str, self.class_of.tolist())])
        found = (contents or Contents()).digest(self.names, self.files)
        return hashlib.sha256((found + labels).encode("utf-8", "surrogateescape")).hexdigest()


def _inside(file: Path, name: str, where: str) -> Path:
    """The path a row means, `.` and `..` worked out. Raises UserError for a relative one that leaves the folder."""
    if "\0" in name:
        raise UserError(f"{where}: `{name}` is no path")
    plain = Path(os.path.normpath(name))
    if plain.parts[:1] == ("..",):
        raise UserError(f"{where}: `{name}` leaves the manifest's folder; write an absolute path if that is meant")
    return Path(os.path.normpath(file.parent / plain))


def _csv(file: Path, where: str) -> Iterator[tuple[int, str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(_lines(handle), skipinitialspace=True)
            _has_columns([name.strip() for name in reader.fieldnames or []], where)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                yield reader.line_num, (row["path"] or "").strip(), (row["label"] or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: cannot be read as CSV ({error})") from error


def _parquet(file: Path, where: str) -> Iterator[tuple[int, str, str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{where}: Parquet needs pyarrow; pip install 'vitprune[parquet]', or write a CSV") from error
    try:
        _has_columns(parquet.read_schema(file).names, where)
        opened = parquet.ParquetFile(file, read_dictionary=list(COLUMNS))
        if opened.metadata.num_rows > MAX_ROWS:
            raise UserError(f"{where}: has {opened.metadata.num_rows:,} rows; at most {MAX_ROWS:,} are read")
        row = 0
        for batch in opened.iter_batches(1024, columns=list(COLUMNS)):  # a few bytes of it may say gigabytes
            columns = batch.to_pydict()
            for name, label in zip(columns["path"], columns["label"], strict=True):
                row += 1
                yield row, _cell(name, f"{where}, line {row}"), _cell(label, f"{where}, line {row}")
    except UserError:
        raise
    except Exception as error:  # a damaged file drives arrow to any of them
        raise UserError(f"{where}: cannot be read as Parquet ({str(error)[:80]})") from error


def _cell(value: object, where: str) -> str:
    text = "" if value is None else str(value).strip()
    if len(text) > MAX_LINE:
        raise UserError(f"{where}: {len(text):,} characters are no path and no label")
    return text


def _lines(handle: TextIO) -> Iterator[str]:
    """The lines of a table, none of them without an end."""
    for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE + 1), ""), 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"line {number} has more than {MAX_LINE:,} characters, which no path and label have")
        yield line


def _has_columns(names: list[str], where: str) -> None:
    for column in COLUMNS:
        if column not in names:
            found = ", ".join(names[:8]) or "none"
            raise UserError(f"{where}: has no column `{column}` (columns found: {found}); it needs `path` and `label`")
