"""What an image must look like, what the outputs mean, and the lines that use the model, one way after the other."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from vitprune.core.reading import Json
from vitprune.report.page import numbers
from vitprune.report.page.blocks import Block, Code, Facts, Fold, Heading, Text
from vitprune.report.reading.values import clean, mapping, mappings, number, sequence

LISTED = 20  # labels that stand in the line; more are folded
ORT = """import numpy, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({path!r})
image = Image.open("photo.jpg").convert({mode!r}).resize(({width}, {height}), Image.Resampling.{resample})
pixels = numpy.asarray(image, numpy.float32).reshape({height}, {width}, {channels}) / 255
pixels = (pixels - numpy.array({mean}, numpy.float32)) / numpy.array({std}, numpy.float32)
images = pixels.transpose(2, 0, 1)[None]
{gives} = session.run(None, {{"images": images}})[0]"""
PREDICT = "vitprune predict {folder} photo.jpg"
FEATURES = "vitprune predict {folder} photo.jpg --out features.npz"
TRITON = """mkdir -p models/{name}/1
cp {path} models/{name}/1/model.onnx
cat > models/{name}/config.pbtxt <<'END'
platform: "onnxruntime_onnx"
max_batch_size: 32
input [ {{ name: "images" data_type: TYPE_FP32 dims: [ {shape} ] }} ]
output [ {outputs} ]
dynamic_batching {{ }}
END
tritonserver --model-repository=models"""
OUTPUTS = {  # of a file, as Triton names them
    "logits": '{ name: "logits" data_type: TYPE_FP32 dims: [ -1 ] }',
    "features": '{ name: "features" data_type: TYPE_FP32 dims: [ -1 ] }, '
    '{ name: "tokens" data_type: TYPE_FP32 dims: [ -1, -1 ] }',
}  # fmt: skip


def usage_blocks(record: Json) -> list[Block]:
    """Facts of input and outputs, then vitprune's loader, the command, onnxruntime alone, and Triton."""
    heading, facts = Heading("Use it"), _facts(record)
    own = clean(record.get("usage"), lines=True)
    names = [clean(row.get("path")) for row in mappings(record.get("files"))]
    path = next((name for name in names if PurePosixPath(name).name == "model.onnx"), "")
    path = path or next((name for name in names if PurePosixPath(name).suffix == ".onnx"), "")
    loaded: list[Block] = [Text("In Python, as a torch module:"), Code(own, "python")] if own else []
    if not path:
        return [
            heading,
            *facts,
            *loaded,
            Text("No ONNX file was exported, so there is nothing to load without torch.", "missing"),
        ]
    return [heading, *facts, *loaded, *_without_torch(record, path)]


def _facts(record: Json) -> list[Block]:
    how = mapping(record.get("preprocessing"))
    size = [number(side) for side in sequence(how.get("input_size"))]
    items: list[tuple[str, str]] = []
    if len(size) == 3 and all(side is not None for side in size):
        shape = ", ".join(numbers.count(side) for side in size)
        items.append(("input", f"float32 [batch, {shape}], channels first, 0 to 1 before mean and std"))
    for key in ("mean", "std"):
        if found := sequence(how.get(key)):
            items.append((key, ", ".join(map(clean, found))))
    if how.get("interpolation") is not None:
        crop = number(how.get("crop_pct"))
        cut = f", then the middle {numbers.share(crop, 0)} of it" if crop is not None and crop < 1 else ""
        items.append(("resize", f"{clean(how.get('interpolation'))}{cut}"))
    labels = _labels(record)
    made: list[Block] = []
    if labels:
        items.append(("output", f"logits [batch, {numbers.count(len(labels))}]"))
        if len(labels) <= LISTED:
            items.append(("labels, in order", ", ".join(labels)))
        else:
            made.append(Fold(f"The {len(labels):,} labels in order", (Text(", ".join(labels)),)))
    return [Facts(tuple(items)), *made] if items else made


def _labels(record: Json) -> list[str]:
    """The outputs' labels in order, where the images have a class for every output."""
    return [clean(label) for label in sequence(record.get("labels"))]


def _without_torch(record: Json, path: str) -> list[Block]:
    folder, gives = PurePosixPath(path).parent.as_posix(), "features" if mapping(record.get("backbone")) else "logits"
    inside = "preprocessing is" if gives == "features" else "preprocessing and labels are"
    command = FEATURES if gives == "features" else PREDICT
    found: list[Block] = [Text(f"From the command line, in this folder; {inside} in the ONNX file:")]
    found.append(Code(command.format(folder=shlex.quote(folder)), "sh"))
    how = mapping(record.get("preprocessing"))
    size = [number(side) for side in sequence(how.get("input_size"))]
    if len(size) == 3 and all(side is not None and side >= 1 for side in size):
        channels, height, width = (int(side or 0) for side in size)
        mean, std = ([number(v) or 0.0 for v in sequence(how.get(key))] for key in ("mean", "std"))
        known = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "nearest": "NEAREST", "lanczos": "LANCZOS"}
        code = ORT.format(
            path=path, gives=gives, mode="L" if channels == 1 else "RGB", width=width, height=height, channels=channels,
            mean=mean, std=std, resample=known.get(clean(how.get("interpolation")), "BICUBIC"),
        )  # fmt: skip
        note = "Resized to the input's size at once; a crop, where the facts above name one, is not in these lines."
        name = _word(clean(record.get("name")))
        triton = TRITON.format(
            name=name, path=shlex.quote(path), shape=f"{channels}, {height}, {width}", outputs=OUTPUTS[gives]
        )
        return [
            *found, Text("With onnxruntime and nothing else:"), Code(code, "python"), Text(note, "note"),
            Text("On a Triton inference server:"), Code(triton, "sh"),
        ]  # fmt: skip
    code = f"import onnxruntime\nsession = onnxruntime.InferenceSession({path!r})\n"
    code += f"{gives} = session.run(None, {{session.get_inputs()[0].name: images}})[0]"
    text = "images is a float32 array [batch, channels, height, width], prepared with the model's own transform."
    return [*found, Text("With onnxruntime and nothing else:"), Code(code, "python"), Text(text, "note")]


def _word(name: str) -> str:
    """A name that needs no quotes in a shell."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return plain.lstrip("-.") or "slim"
