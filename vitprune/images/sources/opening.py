"""Which source a recipe's `data` means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.core.errors import UserError
from vitprune.core.reading import kind

if TYPE_CHECKING:
    from vitprune.images.sources.spec import ImagesSpec
from vitprune.images.sources.base import Source

MANIFESTS = {".csv", ".parquet"}


def _never() -> bool:
    return False


def open_source(data: ImagesSpec, unlabelled: Callable[[], bool] = _never) -> Source:
    """The images that a recipe's `data` names; a folder without class folders is one class of images where they may be
    `unlabelled`, which is asked only then. Raises UserError."""
    if data.probe is not None and data.test is not None:
        from vitprune.images.sources.pair import ProbeAndTest

        return ProbeAndTest(
            open_path(data.probe, "data.probe", unlabelled), open_path(data.test, "data.test", unlabelled)
        )
    if data.dataset is not None:
        from vitprune.images.sources.timm_dataset import open_dataset

        return open_dataset(data.dataset, data.path, data.dataset_split)
    if data.path is not None:
        return open_path(data.path, "data.path", unlabelled)
    from vitprune.images.sources.bundled import Bundled

    return Bundled()


def open_path(path: Path, key: str, unlabelled: Callable[[], bool] = _never) -> Source:
    """A folder of class folders, a folder of tar files, one tar file, or a manifest; `key` names it in errors. `unlabelled` as
    in `open_source`."""
    from vitprune.images.sources.folder import Flat, Folder, is_flat
    from vitprune.images.sources.manifest import Manifest
    from vitprune.images.sources.tar import Tar, tars_in

    if path.is_file():
        if path.suffix.lower() in MANIFESTS:
            return Manifest(path, key)
        if path.suffix.lower() == ".tar":
            return Tar([path], key)
        known = ", ".join([*sorted(MANIFESTS), ".tar"])
        raise UserError(
            f"{key} {path}: no such folder; a file of images is one of {known} (a packed tar: unpack it once)"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{key} {path}: is {kind(path)}, no file or folder of images")
    tars = tars_in(path)
    if tars:
        return Tar(tars, key)
    return Flat(path, key) if is_flat(path) and unlabelled() else Folder(path, key)
