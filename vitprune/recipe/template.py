"""The recipe that `vitprune recipe new` prints."""

from __future__ import annotations

TEMPLATE = """\
# A recipe for your own model and images. Check it: vitprune recipe check THIS_FILE. Run it: vitprune run THIS_FILE
version: 1
name: my-model                # results go to exported/my-model/
model:
  name: vit_base_patch16_224.augreg_in21k_ft_in1k   # a timm name, `bundled`, or local-dir:FOLDER
  pretrained: true            # timm's weights; without a network use  checkpoint: FILE  instead
data:
  path: path/to/images        # one folder of images per class, named as the model's labels; or a .csv, .parquet, .tar
  # probe: DIR                # in place of `path`: images of your own to choose with,
  # test: DIR                 #   and to judge with
  # labels: classes.txt       # where folders and the model name the classes differently; or the word by-order
  on_corrupt: fail            # or skip: leave unreadable images out and count them in the report
split: {seed: 0, probe: 0.8}  # 80 % of each class to choose with, 20 % for the exam
# classes: [tench, goldfish]  # prune for these classes only; without it for all of them
criterion: {name: fisher-obs, probe_per_class: 40}   # see `vitprune criteria`; jas for the paper's neuron paths
budget: {macs: 0.5}           # half of the model's multiply-adds are left; or params, latency, size_mb, loss_points
# prune: [ffn]                # leave attention as it is; without it heads and their dimensions go beside FFN units
# keep: 25%                   # in the place of budget, share of the FFNs' hidden units; `400 units` per block
# round_to: 64                # widths of the FFNs as multiples of this, for the hardware's sake
recovery: auto                # layer by layer, from probe images without labels; or none, mean, affine, sequential
baselines: [activation, random]
export: {onnx: true, latency_batches: [1, 8, 32]}
out: exported
"""
