"""What to write in a recipe when a set of weights does not fit: the arguments that would give the file's shapes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from torch import nn

from vitprune.model import families
from vitprune.model.declared import Foreign
from vitprune.model.load.spec import Args

if TYPE_CHECKING:
    from vitprune.model.load.weights.sets import Misfit, Reading

CLASSIFIER = re.compile(
    r"(head|head\.fc|heads\.head|head_dist|classifier|cls_classifier|distillation_classifier)\.(weight|bias)"
)
POSITIONS = re.compile(r"pos_embed|position_embeddings|pos_embedding")
BLOCK = re.compile(r"blocks\.(\d+)\.")
PATCHES = re.compile(r"(patch_embed\.proj|conv_proj|patch_embeddings\.projection)\.weight")


def cure(misfit: Misfit, reading: Reading, model: nn.Module) -> str:
    """The end of the line: what to change, and in which key of the recipe."""
    if {"dist_token", "head_dist.weight"} & misfit.unexpected.keys():
        return "the file is a distilled model's: take the model.name with `distilled`"
    args, explained = _arguments(misfit, model)
    if args and explained:
        return f"give model.args: {{{', '.join(f'{key}: {value}' for key, value in args.items())}}}"
    if misfit.shapes:
        tables = any("relative_position" in name for name in misfit.shapes)
        named = "another img_size or window_size" if tables else "another model"
        return f"the file is of {named}: see model.name and model.args (img_size, num_classes)"
    if misfit.kinds:
        return "quantised weights are not read: give the weights from before that"
    if misfit.missing and all(CLASSIFIER.fullmatch(name) for name in misfit.missing):
        near = [name for name in reading.beside if name.endswith((".weight", ".bias"))][:2]
        beside = f" (beside them stands `{'`, `'.join(near)}`)" if near else ""
        return f"the file has no classifier of the model's{beside}: save one model with its head, or train a head first"
    if misfit.missing:
        return "the file is of another model or another library: see model.name and model.args"
    return "remove it from the file, or name the model that has it in model.name and model.args"


def _arguments(misfit: Misfit, model: nn.Module) -> tuple[Args, bool]:
    """Arguments that the file asks for, and whether they explain every difference."""
    args: Args = {}
    left = {*misfit.missing, *misfit.unexpected, *misfit.kinds}
    timms = not isinstance(model, Foreign)
    registers = misfit.unexpected["reg_token"][1] if "reg_token" in misfit.unexpected else 0
    if registers:
        args["reg_tokens"] = registers
        left.discard("reg_token")
    for name, (file, own) in misfit.shapes.items():
        if CLASSIFIER.fullmatch(name) and file[1:] == own[1:]:
            args["num_classes"] = file[0]
        elif POSITIONS.search(name) and (size := _image_size([*file[:-2], file[-2] - registers, file[-1]], own, model)):
            args |= {"img_size" if timms else "image_size": size} if size != families.input_shape(model)[1] else {}
        elif PATCHES.search(name) and len(file) == len(own) == 4 and file[0] == own[0] and timms:
            args |= {"in_chans": file[1]} if file[1] != own[1] else {}
            args |= {"patch_size": file[2]} if file[2:] != own[2:] else {}
        else:
            left.add(name)
    blocks = {name: int(found[1]) for name in left if (found := BLOCK.match(name)) and timms}
    if blocks and (blocks.keys() <= misfit.missing.keys() or blocks.keys() <= misfit.unexpected.keys()):
        args["depth"] = min(blocks.values()) if blocks.keys() <= misfit.missing.keys() else max(blocks.values()) + 1
        left -= blocks.keys()
    if {"norm.weight", "norm.bias"} <= left and {"fc_norm.weight", "fc_norm.bias"} <= left:
        args["global_pool"] = "avg" if "fc_norm.weight" in misfit.unexpected else "token"
        left -= {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}
    return args, not left


def _image_size(file: list[int], own: list[int], model: nn.Module) -> int | None:
    """The side of the square images whose positions the file holds, from the model's own side and positions."""
    side = families.input_shape(model)[1]
    if len(file) != len(own) or file[-1] != own[-1]:
        return None
    if len(own) == 4:
        return file[1] * side // own[1] if file[1] == file[2] and side % own[1] == 0 else None
    for prefix in sorted(range(9), key=lambda n: n != getattr(model, "num_prefix_tokens", 1)):
        grid, other = math.isqrt(max(own[-2] - prefix, 0)), math.isqrt(max(file[-2] - prefix, 0))
        if grid and other and (grid**2, other**2) == (own[-2] - prefix, file[-2] - prefix) and side % grid == 0:
            return other * (side // grid)
    return None
