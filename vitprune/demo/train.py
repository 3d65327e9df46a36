"""Train the bundled model: a plain timm ViT (6 blocks x 96 wide x 384 hidden units, patch 4) on Fashion-MNIST.

    python -m vitprune.demo.train --data /usr/share/datasets/fashion-mnist --work runs/demo-model --out vitprune/demo/model

Only the 60,000 training images are used; the 10,000 test images, which are the demo's probe and test data, are read
once, after the last epoch, to record the accuracy. Recipe: a small CNN is trained first and then distilled into the
ViT on the same augmented view (DeiT; Beyer et al. 2022, "A good teacher is patient and consistent"); attention starts
from the mimetic initialisation of Trockman & Kolter 2023. First part: half of the patches are dropped (PatchDropout),
which nearly halves the cost, Muon for the matrices. Second part: all patches, AdamW with strong weight decay and a
dropout of 0.1 on the hidden units, as in the ViT paper's own training from scratch. Third part, short: a dropout of
0.6 on the hidden units, which gives this small FFN the slack that large pretrained ones have. Warm-up, a constant
rate, a linear cool-down; an exponential average of the weights is what is saved. A second call with --start goes on
from there: no teacher, so that the probabilities are the labels' own, and 0.75 of the units dropped; a third does so
again. The last call is ten epochs without hidden dropout (--slack 0.0), as people train models of their own: after
strong dropout, units at random are nearly as good as chosen ones. The script resumes from its own checkpoint in --work;
--epochs may be changed on resume as long as the cool-down has not begun.

Legend: B images, C classes, all images are [B, 1, 28, 28] float32, normalised.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprune.images.sources.bundled import CLASSES
from vitprune.images.sources.idx import read_idx

MEAN, STD = 0.2860, 0.3530
MODEL_ARGS = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 96, "depth": 6, "num_heads": 3}


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(read_idx(folder / f"{part}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz").copy()).long()
    return ((images.float() / 255 - MEAN) / STD)[:, None], labels


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Per image: a mirror image with p = 1/2, a shift of up to 2 pixels, a black box of up to 10 pixels with p = 1/4."""
    n, blank = len(x), -MEAN / STD
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    x = F.pad(x, (2, 2, 2, 2), value=blank)
    rows = torch.randint(0, 5, (n, 1), generator=generator) + torch.arange(28)
    cols = torch.randint(0, 5, (n, 1), generator=generator) + torch.arange(28)
    x = x[torch.arange(n)[:, None, None], 0, rows[:, :, None], cols[:, None, :]]
    centre = torch.randint(0, 28, (n, 2), generator=generator)
    half = torch.randint(2, 6, (n, 1), generator=generator)
    inside = ((torch.arange(28) - centre[:, :, None]).abs() < half[:, :, None]) & (
        torch.rand(n, 1, 1, generator=generator) < 0.25
    )
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    return x.masked_fill(box, blank)[:, None]


class Teacher(nn.Module):
    """A residual CNN of about 13 M multiply-adds; only the ViT is shipped."""

    def __init__(self) -> None:
        super().__init__()

        def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        self.stem = nn.Sequential(conv(1, 24), conv(24, 48, 2))
        self.res1 = conv(48, 48)
        self.down = conv(48, 96, 2)
        self.res2 = conv(96, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x + self.res1(x))
        x = x + self.res2(x)
        return self.head(F.dropout(x.amax((2, 3)), 0.2, self.training))


@torch.no_grad()
def mimetic_init(model: VisionTransformer) -> None:
    """Query-key products near a scaled identity, value-projection products near a negative one (arXiv 2305.09828)."""
    width = model.embed_dim
    grid = model.patch_embed.grid_size
    model.pos_embed.copy_(torch.cat([torch.zeros(1, 1, width), sincos(grid, width)], 1) * 0.5)
    for block in model.blocks:
        attn = block.attn
        heads, dim = attn.num_heads, width // attn.num_heads
        u, s, vh = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
        attn.qkv.weight[2 * width :] = s.sqrt()[:, None] * vh
        attn.proj.weight.copy_(u * s.sqrt())
        for h in range(heads):
            u, s, vh = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width))
            attn.qkv.weight[h * dim : (h + 1) * dim] = (u[:, :dim] * s[:dim].sqrt()).T
            attn.qkv.weight[width + h * dim : width + (h + 1) * dim] = s[:dim].sqrt()[:, None] * vh[:dim]


def sincos(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding, [1, tokens, width]."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    omega = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4 - 1))
    y, x = y.flatten()[:, None] * omega, x.flatten()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)[None]


def rate(since: int, warm: int, total: int, cool: float, step: int) -> float:
    """Warm-up from the start of a part, constant, linear cool-down over the last `cool` of all steps; in (0, 1]."""
    return min(1.0, (since + 1) / warm, max(0.01, (total - step) / (cool * total)))


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return hits / len(y)


def save_checkpoint(path: Path, state: dict) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train_teacher(x: Tensor, y: Tensor, args: argparse.Namespace) -> Teacher:
    teacher, path = Teacher().to(memory_format=torch.channels_last), args.work / "teacher.pt"
    if path.exists():
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher.eval()
    g = torch.Generator().manual_seed(args.seed)
    opt = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps, batch = args.teacher_epochs * (len(x) // 128), 128
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, steps, pct_start=0.2)
    for epoch in range(args.teacher_epochs):
        teacher.train()
        start, hits = time.time(), 0
        for index in torch.randperm(len(x), generator=g)[: len(x) // batch * batch].split(batch):
            logits = teacher(augment(x[index], g).contiguous(memory_format=torch.channels_last))
            opt.zero_grad()
            F.cross_entropy(logits, y[index], label_smoothing=0.05).backward()
            opt.step()
            sched.step()
            hits += int((logits.argmax(1) == y[index]).sum())
        print(f"teacher epoch {epoch + 1}: train {hits / len(x):.4f}, {time.time() - start:.0f} s", flush=True)
    save_checkpoint(path, teacher.state_dict())
    return teacher.eval()


def build_student(args: argparse.Namespace) -> VisionTransformer:
    torch.manual_seed(args.seed)
    model = VisionTransformer(**MODEL_ARGS, num_classes=10, patch_drop_rate=0.5)
    if not args.plain_init:
        mimetic_init(model)
    return model


def optimisers(model: VisionTransformer, second_part: bool, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """First part: Muon for the blocks' matrices. Second: AdamW with the ViT paper's strong weight decay."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks.")]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    if second_part:
        return [
            torch.optim.AdamW(matrices, lr=1e-3, weight_decay=args.decay),
            torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0),
        ]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0),
    ]


def set_dropout(model: VisionTransformer, hidden: float, patches: float) -> None:
    """Dropout of hidden units inside the FFNs, and of whole patches."""
    model.patch_drop.prob = patches
    for block in model.blocks:
        block.mlp.drop1.p = hidden


def begun(
    model: nn.Module, ema: nn.Module, path: Path, args: argparse.Namespace, third_from: int
) -> tuple[int, list[dict], dict]:
    """The epoch to go on with, the log so far and the state that was saved; both models are as they were then."""
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        return state["epoch"], state["log"], state
    if args.start:
        weights = load_file(str(args.start / "model.safetensors"))
        model.load_state_dict(weights)
        ema.load_state_dict(weights)
        return third_from, [], {"part": None}
    return 0, [], {"part": None}


def loss_of(teacher: Teacher | None, view: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy; with a teacher mostly the divergence from its softened answers."""
    loss = F.cross_entropy(logits, target)
    if teacher is None:
        return loss
    with torch.inference_mode():
        soft = F.log_softmax(teacher(view.contiguous(memory_format=torch.channels_last)) / 2, 1)
    soft = soft.clone()
    distil = F.kl_div(F.log_softmax(logits / 2, 1), soft, reduction="batchmean", log_target=True) * 4
    return 0.3 * loss + 0.7 * distil


def factor_of(step: int, part: int, third_from: int, per_epoch: int, args: argparse.Namespace) -> float:
    """What the learning rates are multiplied with at a step of a part of the training."""
    if part == 3:
        since, last = step - third_from * per_epoch, args.third * per_epoch
        return rate(since, 100, last, 1.0, since)
    return rate(step - args.drop_epochs * per_epoch * (part == 2), 400, args.epochs * per_epoch, args.cool, step)


def update(model: nn.Module, ema: nn.Module, opts: Sequence[torch.optim.Optimizer], loss: Tensor, step: int) -> None:
    """One step of the weights, and of their moving average."""
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 2.0)
    for opt in opts:
        opt.step()
    with torch.no_grad():
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


def train_student(teacher: Teacher | None, x: Tensor, y: Tensor, args: argparse.Namespace) -> tuple[nn.Module, dict]:
    model = build_student(args)
    ema = copy.deepcopy(model)
    opts: list[torch.optim.Optimizer] = []
    path, per_epoch, third_from = args.work / "student.pt", len(x) // args.batch, min(args.second_until, args.epochs)
    first, log, state = begun(model, ema, path, args, third_from)
    for epoch in range(first, third_from + args.third):
        g = torch.Generator().manual_seed(args.seed * 100_003 + epoch)
        torch.manual_seed(args.seed * 100_003 + epoch)
        model.train()
        part = 1 + (epoch >= args.drop_epochs) + (epoch >= third_from)
        set_dropout(model, {1: 0.0, 2: 0.1, 3: args.slack}[part], 0.5 if part == 1 else 0.0)
        if not opts or epoch in (args.drop_epochs, third_from):
            opts = optimisers(model, part > 1, args)
            base = [group["lr"] for opt in opts for group in opt.param_groups]
            if state.get("part") == part:
                for opt, saved in zip(opts, state["opts"], strict=True):
                    opt.load_state_dict(saved)
        start, hits, loss_sum = time.time(), 0, 0.0
        for i, index in enumerate(torch.randperm(len(x), generator=g)[: per_epoch * args.batch].split(args.batch)):
            step = epoch * per_epoch + i
            factor = factor_of(step, part, third_from, per_epoch, args)
            for lr, group in zip(base, (q for opt in opts for q in opt.param_groups), strict=True):
                group["lr"] = lr * factor
            view, target = augment(x[index], g), y[index]
            logits = model(view)
            loss = loss_of(teacher, view, logits, target)
            update(model, ema, opts, loss, step)
            hits += int((logits.argmax(1) == target).sum())
            loss_sum += float(loss)
            if i % 50 == 0 and sys.stdout.isatty():
                print(f"\repoch {epoch + 1} step {i}/{per_epoch} loss {loss_sum / (i + 1):.4f}", end="", flush=True)
        top1, mean = round(hits / (per_epoch * args.batch), 4), round(loss_sum / per_epoch, 4)
        log.append({"epoch": epoch + 1, "train_top1": top1, "loss": mean, "seconds": round(time.time() - start)})
        print(json.dumps(log[-1]), flush=True)
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "opts": [o.state_dict() for o in opts]}
        save_checkpoint(path, state | {"epoch": epoch + 1, "log": log, "part": part})
    return ema, {"seconds": sum(row["seconds"] for row in log), "epochs": len(log)}


def write_model(model: nn.Module, out: Path, record: dict) -> None:
    """A timm folder: `timm.create_model("local-dir:<out>", pretrained=True)` loads it."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "num_features": MODEL_ARGS["embed_dim"],
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "tag": "vitprune_demo",
            "custom_load": False,
            "input_size": [1, 28, 28],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [MEAN],
            "std": [STD],
            "num_classes": 10,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "mit",
            "label_names": list(CLASSES),
        },
    }
    weights = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo-model"), help="checkpoints; resume from here")
    parser.add_argument("--out", type=Path, default=Path("vitprune/demo/model"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--drop-epochs", type=int, default=16, help="first epochs, with half of the patches dropped")
    parser.add_argument("--cool", type=float, default=0.25, help="share of the steps in the final cool-down")
    parser.add_argument("--teacher-epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=2e-3, help="Muon's rate, matched to AdamW's update size")
    parser.add_argument("--limit", type=int, default=0, help="first N training images only (a trial)")
    parser.add_argument("--no-teacher", action="store_true")
    parser.add_argument("--second-until", type=int, default=22, help="where the second part ends, --epochs at most")
    parser.add_argument("--third", type=int, default=3, help="epochs of the third part")
    parser.add_argument("--slack", type=float, default=0.6, help="dropout of hidden units in the third part")
    parser.add_argument("--start", type=Path, help="a model folder; only the third part is run, from its weights")
    parser.add_argument("--decay", type=float, default=0.5, help="AdamW's weight decay in the second part")
    parser.add_argument("--plain-init", action="store_true", help="timm's own initialisation (a trial)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    x, y = load(args.data, "train")
    if args.limit:
        x, y = x[: args.limit], y[: args.limit]
    teacher = None if args.no_teacher else train_teacher(x, y, args)
    model, record = train_student(teacher, x, y, args)
    test_x, test_y = load(args.data, "t10k")
    record |= {
        "command": " ".join(["python -m vitprune.demo.train", *sys.argv[1:]]),
        "seed": args.seed,
        "torch": torch.__version__,
        "top1_10000": evaluate(model, test_x, test_y),
        "teacher_top1_10000": None if teacher is None else evaluate(teacher, test_x, test_y),
    }
    if args.start:
        record["started_from"] = json.loads((args.start / "training.json").read_text())
    write_model(model, args.out, record)
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
