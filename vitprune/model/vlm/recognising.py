"""Whether a folder holds a vision-language model that is known here: read off its config.json, without torch."""

from __future__ import annotations

from pathlib import Path

from vitprune.core.errors import UserError
from vitprune.core.reading import Json, read_json

FAMILIES = {
    "LlavaForConditionalGeneration": "LLaVA",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL",
    "Idefics3ForConditionalGeneration": "Idefics3",
    "SmolVLMForConditionalGeneration": "SmolVLM",
}
LARGEST = 1 << 26  # bytes of a config.json


def config_of(folder: Path) -> Json:
    """The object in a folder's config.json. Raises UserError where there is none."""
    found = read_json(folder / "config.json", LARGEST)
    if not isinstance(found, dict):
        raise UserError(f"{folder / 'config.json'}: is not an object")
    return found


def architecture_of(folder: Path) -> str | None:
    """The class of the vision-language model in a folder, None where it holds none that is known here."""
    if not (folder / "config.json").is_file():
        return None
    found = config_of(folder).get("architectures")
    name = found[0] if isinstance(found, list) and found else None
    return name if isinstance(name, str) and name in FAMILIES else None
