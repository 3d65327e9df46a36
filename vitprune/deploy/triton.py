"""An exported model as a Triton model repository, and the script that makes a TensorRT engine of it where TensorRT is.

The repository is what Triton reads: NAME/config.pbtxt, NAME/labels.txt, NAME/1/model.onnx (and its weights' file, where they
lie beside it). Preparing the images stays the client's work; what it has to do is in NAME/preprocessing.json.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from vitprune.core import external
from vitprune.core.errors import UserError
from vitprune.core.files import explain, write_text
from vitprune.deploy import predict, runtime

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DELAY = 2000  # microseconds that a request waits for others
CONFIG = """\
name: "{name}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {most}
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {outputs} ] label_filename: "labels.txt" }} ]
dynamic_batching {{ preferred_batch_size: [ {preferred} ] max_queue_delay_microseconds: {delay} }}
"""
SCRIPT = """\
#!/bin/sh
# Makes a TensorRT engine of 1/model.onnx for the GPU of this machine, and has Triton serve it in the ONNX file's place.
# Needs trtexec, as in nvcr.io/nvidia/tensorrt or nvcr.io/nvidia/tritonserver. An engine runs on the kind of GPU and with the
# version of TensorRT that it was made with.
set -eu
cd "$(dirname "$0")"
trtexec --onnx=1/model.onnx --saveEngine=1/model.plan {precision}\\
  --minShapes={input}:1x{shape} --optShapes={input}:{best}x{shape} --maxShapes={input}:{most}x{shape}
sed -e 's/^backend: .*/backend: "tensorrt"/' -e 's/^default_model_filename: .*/default_model_filename: "model.plan"/' \\
  config.pbtxt > config.pbtxt.new
mv config.pbtxt.new config.pbtxt
"""


def write(model: Path, repository: Path, name: str | None = None, most: int = 32, half: bool = True) -> list[Path]:
    """The files of `name` (else the folder's) in a model repository, for batches of at most `most`; `half`: the engine may
    use fp16. Raises UserError for a file that is no classifier of ours, or a place where something else lies."""
    classifier = predict.open_model(model)
    file = model / "model.onnx" if model.is_dir() else model
    name = name or (model.absolute().name if model.is_dir() else file.stem)
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name[:80]}: becomes a folder's name: letters, digits, `.`, `_` and `-`, at most 64")
    own = repository / name
    if own.exists() and not (own / "config.pbtxt").is_file():
        raise UserError(f"{own}: holds something else than a model of Triton; give another --name")
    takes, gives = classifier.session.get_inputs()[0], classifier.session.get_outputs()[0]
    shape = runtime.image_shape(classifier.session, file)
    preferred = [size for size in (4, 8, 16, 32, 64) if size <= most] or [most]
    told = {"name": name, "most": most, "input": takes.name, "output": gives.name, "delay": DELAY}
    told |= {
        "dims": ", ".join(map(str, shape)),
        "outputs": len(classifier.labels),
        "preferred": ", ".join(map(str, preferred)),
    }
    told |= {"shape": "x".join(map(str, shape)), "best": preferred[-1], "precision": "--fp16 " if half else ""}
    texts = {"config.pbtxt": CONFIG.format(**told), "build-tensorrt.sh": SCRIPT.format(**told)}
    texts["labels.txt"] = "".join(f"{' '.join(label.split())}\n" for label in classifier.labels)
    texts["preprocessing.json"] = json.dumps(_preparation(classifier), indent=1) + "\n"
    try:
        (own / "1").mkdir(parents=True, exist_ok=True)
        made = [own / "1" / "model.onnx"]
        shutil.copyfile(file, made[0])
        for beside in external.check(file):
            made.append(own / "1" / beside.name)
            shutil.copyfile(beside, made[-1])
        for title, text in texts.items():
            write_text(own / title, text)
            made.append(own / title)
        (own / "build-tensorrt.sh").chmod(0o755)
    except OSError as error:
        raise explain(error, own) from error
    return made


def _preparation(classifier: predict.Classifier) -> dict[str, object]:
    """How a client prepares an image."""
    one = classifier.preprocessing
    return {
        "channels": one.channels, "size": list(one.size), "interpolation": one.interpolation, "crop_pct": one.crop_pct,
        "crop_mode": one.crop_mode, "mean": list(one.mean), "std": list(one.std), "layout": "NCHW float32",
    }  # fmt: skip
