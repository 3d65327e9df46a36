"""Two checksums in a checkpoint's config.json, so that a flipped bit is noticed and not computed with.

In its `vitprune` block: `sha256` of model.safetensors, and `config_sha256` of the config's content without that key.
"""

from __future__ import annotations

from pathlib import Path

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, digest, sha256

KEYS = ("sha256", "config_sha256")


def add(record: Json, weights: Path) -> None:
    """Put both into the `vitprune` block of a config's content, which holds JSON types only."""
    record["vitprune"]["sha256"] = sha256(weights)
    record["vitprune"]["config_sha256"] = _of_config(record)


def verify(record: Json, config: Path, weights: Path) -> None:
    """Raises UserError for a file that is not as it was written; a folder without checksums passes."""
    block = record.get("vitprune") or {}
    if "config_sha256" in block and block["config_sha256"] != _of_config(record):
        raise _changed(config, "config_sha256", config)
    if "sha256" in block and block["sha256"] != sha256(weights):
        raise _changed(weights, "sha256", config)


def _of_config(record: Json) -> str:
    block = {key: value for key, value in record["vitprune"].items() if key != "config_sha256"}
    return digest(record | {"vitprune": block})


def _changed(path: Path, key: str, config: Path) -> UserError:
    return UserError(
        f"{path}: damaged or changed since it was written (vitprune.{key} in {config.name} is another); "
        "copy or export it again, or remove that key if the change is yours"
    )
