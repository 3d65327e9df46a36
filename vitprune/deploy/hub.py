"""A checkpoint folder to the Hugging Face Hub: its weights, its configuration, its card and its ONNX files, and nothing else.

Who writes there is what huggingface_hub knows: HF_TOKEN in the environment, or its own login; no token is taken or kept here.
"""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from vitprune.core import external
from vitprune.core.errors import UserError, one_line
from vitprune.core.reading import Json, read_json
from vitprune.model.load.weights.fetching import UNREACHED

PREFIX = "hf-hub:"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
NEEDED = ("config.json", "model.safetensors")
ONNX = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")
MAX_JSON = 1 << 20


def push(folder: Path, target: str, private: bool = False, onnx: bool = True) -> tuple[str, list[str]]:
    """The address of the repository `target` (`hf-hub:OWNER/NAME`), made if it is not there, and the files that were put
    into it in one commit. Raises UserError where the folder is no checkpoint, or the Hub says no."""
    name = target.removeprefix(PREFIX)
    if not ID.fullmatch(name):
        raise UserError(f"{target[:80]}: is no repository; give hf-hub:OWNER/NAME")
    config = sound(folder)
    files = [folder / one for one in (*NEEDED, *(ONNX if onnx else ())) if (folder / one).is_file()]
    for file in [file for file in files if file.suffix == ".onnx"]:
        files += external.check(file)
    card = folder / "README.md"
    text = card.read_text("utf-8") if card.is_file() else plain_card(name, config)
    parts = [huggingface_hub.CommitOperationAdd("README.md", text.encode())]
    parts += [huggingface_hub.CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    hub = huggingface_hub.HfApi()
    try:
        where = hub.create_repo(name, private=private, exist_ok=True)
        hub.create_commit(name, parts, commit_message="A model made smaller by vitprune")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{target}: cannot be written ({one_line(error)}); who may write is said by HF_TOKEN or `hf auth login`"
        ) from error
    except UNREACHED as error:
        raise UserError(
            f"{target}: the Hub is not reached ({one_line(error)}); mend the network, or HF_ENDPOINT, and push again"
        ) from error
    return str(where), [part.path_in_repo for part in parts]


def sound(folder: Path) -> Json:
    """The configuration of a checkpoint folder whose two files are what they are called. Raises UserError."""
    for name in NEEDED:
        if not (folder / name).is_file():
            groups = sorted(path.parent.name for path in folder.glob("*/config.json")) if folder.is_dir() else []
            advice = f"push one of {', '.join(groups[:5])}" if groups else "`vitprune prune RECIPE` writes one"
            raise UserError(f"{folder}: has no {name}, so it is no checkpoint; {advice}")
    config = read_json(folder / "config.json", MAX_JSON)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{folder / 'config.json'}: is not a checkpoint's configuration")
    try:
        with safe_open(folder / "model.safetensors", "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / 'model.safetensors'}: is not a sound safetensors file") from error
    return config


def plain_card(name: str, config: Json) -> str:
    """The card of a folder that has none: what it is, and how it is opened."""
    cfg, block = (part if isinstance(part, dict) else {} for part in map(config.get, ("pretrained_cfg", "vitprune")))
    licence, widths = cfg.get("license"), block.get("widths")
    units = list(widths.values()) if isinstance(widths, dict) else []
    ragged = bool(block.get("attention")) or any(width != units[0] for width in units)
    data = huggingface_hub.ModelCardData(
        library_name="vitprune" if ragged else "timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "vitprune", "pruning"],
        license=licence if isinstance(licence, str) else "unknown",
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name.split('/')[1]}\n\nA Vision Transformer made smaller by vitprune.\n\n"
        f'```python\nimport vitprune\n\nmodel = vitprune.load("{PREFIX}{name}")  # a timm model in eval mode\n```\n'
    )
