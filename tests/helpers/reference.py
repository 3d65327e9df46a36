"""Slow, independent replicas of every formula: plain loops, numpy and autograd, float64. Nothing here imports vitprune.

Legend: T tokens (row 0 is the class token), D width, N hidden units of a block, L blocks, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Edit = Callable[[int, Tensor], Tensor]


def unchanged(block: int, hidden_TN: Tensor) -> Tensor:
    return hidden_TN


class Vit:
    """A timm VisionTransformer's forward written out by hand, one image at a time, from its weights in float64."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.acts = [block.mlp.act for block in model.blocks]
        self.heads = model.blocks[0].attn.num_heads
        self.eps = getattr(model.blocks[0].norm1, "eps", 0.0)
        self.depth = len(model.blocks)
        self.pos_on_class = not model.no_embed_class
        self.average = model.global_pool == "avg"
        self.prefix = sum(
            self.weights[name].shape[1] for name in ("cls_token", "reg_token") if self.weights.get(name) is not None
        )

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias

    def norm(self, name: str, x_TD: Tensor) -> Tensor:
        if f"{name}.weight" not in self.weights:
            return x_TD
        centred = x_TD - x_TD.mean(1, keepdim=True)
        spread = torch.sqrt((centred**2).mean(1, keepdim=True) + self.eps)
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def scale(self, name: str, x_TD: Tensor) -> Tensor:
        gamma = self.weights.get(f"{name}.gamma")
        return x_TD if gamma is None else x_TD * gamma

    def embed(self, image_CHW: Tensor) -> Tensor:
        kernel = self.weights["patch_embed.proj.weight"]
        size = kernel.shape[-1]
        patches = []
        for top in range(0, image_CHW.shape[1], size):
            for left in range(0, image_CHW.shape[2], size):
                patch = image_CHW[:, top : top + size, left : left + size].double()
                patches.append((kernel * patch).sum((1, 2, 3)) + self.weights["patch_embed.proj.bias"])
        prefix = [self.weights[name][0] for name in ("cls_token", "reg_token") if self.weights.get(name) is not None]
        position = self.weights["pos_embed"][0]
        if self.pos_on_class:
            return torch.cat([*prefix, torch.stack(patches)]) + position
        return torch.cat([*prefix, torch.stack(patches) + position])

    def attention(self, i: int, x_TD: Tensor) -> Tensor:
        qkv = self.linear(f"blocks.{i}.attn.qkv", x_TD)
        q, k, v = qkv.split(qkv.shape[1] // 3, dim=1)
        step = q.shape[1] // self.heads
        outs = []
        for h in range(self.heads):
            part = slice(h * step, (h + 1) * step)
            logits = q[:, part] @ k[:, part].T / math.sqrt(step)
            weight = torch.exp(logits - logits.max(1, keepdim=True).values)
            outs.append(weight / weight.sum(1, keepdim=True) @ v[:, part])
        return self.linear(f"blocks.{i}.attn.proj", torch.cat(outs, 1))

    def act(self, i: int, x: Tensor) -> Tensor:
        if isinstance(self.acts[i], nn.GELU):
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return self.acts[i](x)

    def __call__(self, image_CHW: Tensor, edit: Edit = unchanged) -> Tensor:
        """Logits [C]; `edit(block, hidden_TN)` may change a block's hidden units."""
        x_TD = self.embed(image_CHW)
        for i in range(self.depth):
            at = f"blocks.{i}"
            x_TD = x_TD + self.scale(f"{at}.ls1", self.attention(i, self.norm(f"{at}.norm1", x_TD)))
            hidden_TN = edit(i, self.act(i, self.linear(f"{at}.mlp.fc1", self.norm(f"{at}.norm2", x_TD))))
            x_TD = x_TD + self.scale(f"{at}.ls2", self.linear(f"{at}.mlp.fc2", hidden_TN))
        if self.average:
            pooled_D = x_TD[self.prefix :].mean(0, keepdim=True)
            return self.linear("head", self.norm("fc_norm", pooled_D))[0]
        return self.linear("head", self.norm("norm", x_TD)[:1])[0]

    def hidden(self, image_CHW: Tensor) -> list[Tensor]:
        """Hidden units of every block, [T, N]."""
        seen: list[Tensor] = []

        def keep(block: int, hidden_TN: Tensor) -> Tensor:
            seen.append(hidden_TN)
            return hidden_TN

        self(image_CHW, keep)
        return seen

    def logits(self, images: Tensor, edit: Edit = unchanged) -> Tensor:
        return torch.stack([self(image, edit) for image in images])


def stacked(model: nn.Module, images: Tensor) -> list[np.ndarray]:
    """Hidden units of every block over all tokens of all images, [rows, N]; of the last block only what the head reads."""
    vit = Vit(model)
    blocks: list[list[np.ndarray]] = [[] for _ in range(vit.depth)]
    for image in images:
        for i, hidden_TN in enumerate(vit.hidden(image)):
            for token, row in enumerate(hidden_TN.numpy()):
                read = token >= vit.prefix if vit.average else token == 0
                if read or i + 1 < vit.depth:
                    blocks[i].append(row)
    return [np.stack(rows) for rows in blocks]


def masking(keep: Sequence[Tensor], class_token_only: bool = False) -> Edit:
    """Zero what `keep` (per block bool [N]) drops, at every token or at the class token only."""

    def edit(block: int, hidden_TN: Tensor) -> Tensor:
        out = hidden_TN.clone()
        for j, kept in enumerate(keep[block].tolist()):
            if not kept:
                if class_token_only:
                    out[0, j] = 0
                else:
                    out[:, j] = 0
        return out

    return edit


def rule(name: str, count: int) -> list[tuple[float, float]]:
    """(α, weight) of a quadrature rule on [0, 1]; Gauss–Legendre by its defining equations, for up to 3 nodes."""
    if name == "gauss-legendre":
        known = {
            1: [(0.0, 2.0)],
            2: [(-math.sqrt(1 / 3), 1.0), (math.sqrt(1 / 3), 1.0)],
            3: [(-math.sqrt(3 / 5), 5 / 9), (0.0, 8 / 9), (math.sqrt(3 / 5), 5 / 9)],
        }
        return [((x + 1) / 2, w / 2) for x, w in known[count]]
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[name]
    return [((k + shift) / count, 1 / count) for k in range(count)]


def objective(logits_C: Tensor, label: int, kind: str) -> Tensor:
    if kind == "logit":
        return logits_C[label]
    p = torch.exp(logits_C - logits_C.max())[label] / torch.exp(logits_C - logits_C.max()).sum()
    return torch.log(p) if kind == "log-probability" else p


def jas_image(
    vit: Vit,
    image: Tensor,
    label: int,
    t: int,
    nodes: int,
    *,
    quadrature: str = "right",
    formula: str = "jas",
    tokens: str = "cls",
    kind: str = "probability",
    each: bool = False,
    authors: bool = False,
) -> tuple[list[np.ndarray], list[list[int]]]:
    """Scores per block [N] and the path per block, of one image: Eq. 3, greedy TopK. `tokens: cls` unless said.

    `authors`: as their code does it: in earlier blocks every unit that is not on the path stands at its clean value,
    and of each block's path only the lowest-ranked unit is counted.
    """
    where = {"cls": slice(0, 1), "all": slice(None), "patches": slice(vit.prefix, None)}[tokens]
    clean = [hidden_TN[where] for hidden_TN in vit.hidden(image)]
    path: list[list[int]] = []
    scores = []
    for block in range(vit.depth):
        width = clean[block].shape[1]
        groups = [[j] for j in range(width)] if each else [list(range(width))]
        score = np.zeros(width)
        for group in groups:
            units_of = dict(enumerate([*path, group]))
            gradients = [np.zeros(clean[i].shape) for i in units_of]
            for alpha, weight in rule(quadrature, nodes):
                leaves = {i: (alpha * clean[i]).requires_grad_() for i in units_of}

                def assign(i: int, hidden_TN: Tensor, leaves: dict = leaves, units_of: dict = units_of) -> Tensor:
                    if i not in leaves:
                        return hidden_TN
                    rows = clean[i] if authors and i < block else hidden_TN[where]  # noqa: B023
                    columns = [leaves[i][:, j] if j in units_of[i] else rows[:, j] for j in range(rows.shape[1])]
                    changed = torch.stack(columns, 1)
                    start, stop, _ = where.indices(len(hidden_TN))
                    return torch.cat([hidden_TN[:start], changed, hidden_TN[stop:]])

                p = objective(vit(image, assign), label, kind)
                for i, gradient in enumerate(torch.autograd.grad(p, list(leaves.values()))):
                    gradients[i] += weight * gradient.numpy()
            value = path_gradient = path_ig = 0.0
            for i in range(block):
                for j in path[i][-1:] if authors else path[i]:
                    value += float(clean[i][:, j].sum())
                    path_gradient += float(gradients[i][:, j].sum())
                    path_ig += float((clean[i][:, j].numpy() * gradients[i][:, j]).sum())
            for j in group:
                own = clean[block][:, j].numpy()
                if formula == "jas":  # a product of two sums
                    score[j] = (value + own.sum()) * (path_gradient + gradients[block][:, j].sum())
                else:
                    score[j] = path_ig + (own * gradients[block][:, j]).sum()
        scores.append(score)
        path.append(sorted(range(width), key=lambda j, score=score: (-score[j], j))[:t])
    return scores, path


def jas(
    model: nn.Module, images: Tensor, labels: Sequence[int], t: int, nodes: int, **settings: Any
) -> tuple[list[np.ndarray], list[list[list[int]]]]:
    """Scores per block [B, N] and paths per image and block, one image at a time."""
    vit = Vit(model)
    each = [
        jas_image(vit, image, int(label), t, nodes, **settings) for image, label in zip(images, labels, strict=True)
    ]
    return [np.stack([scores[i] for scores, _ in each]) for i in range(vit.depth)], [path for _, path in each]


def joint_gates(
    model: nn.Module, image: Tensor, label: int, alphas: Sequence[tuple[float, float]], kind: str = "probability"
) -> list[np.ndarray]:
    """Per block [N]: the mean over α of ∂(objective)/∂g_j with every unit's gate at α, by central differences."""
    vit = Vit(model)
    widths = [hidden_TN.shape[1] for hidden_TN in vit.hidden(image)]

    def value(alpha: float, at: tuple[int, int], step: float) -> float:
        def gate(i: int, hidden_TN: Tensor) -> Tensor:
            gates = torch.full((hidden_TN.shape[1],), alpha, dtype=torch.float64)
            if i == at[0]:
                gates[at[1]] += step
            return hidden_TN * gates

        return float(objective(vit(image, gate), label, kind))

    step = 1e-5
    return [
        np.array(
            [
                sum(w * (value(a, (i, j), step) - value(a, (i, j), -step)) / (2 * step) for a, w in alphas)
                for j in range(width)
            ]
        )
        for i, width in enumerate(widths)
    ]


def frequencies(
    paths: Sequence[Sequence[Sequence[int]]], labels: Sequence[int], widths: Sequence[int], classes: int
) -> list[np.ndarray]:
    """Per block [C, N]: share of the class's images whose path has the unit."""
    out = [np.zeros((classes, width)) for width in widths]
    for c in range(classes):
        own = [path for path, label in zip(paths, labels, strict=True) if label == c]
        for i, width in enumerate(widths):
            for j in range(width):
                if own:
                    out[i][c, j] = sum(j in path[i] for path in own) / len(own)
    return out


def best(scores: Sequence[float], ties: Sequence[float], count: int) -> list[bool]:
    """Keep the `count` best: larger score, then larger tie, then smaller index."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], -ties[j], j))
    kept = set(order[:count])
    return [j in kept for j in range(len(scores))]


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    return [power / sum(powers) for power in powers]


def vit_macs(
    *, pixels: int, patch: int, channels: int, dim: int, classes: int, widths: Sequence[int], prefix: int = 1
) -> int:
    """Multiply-adds of one image through a ViT: patch embedding, attention with its two products, FFNs, head."""
    patches = (pixels // patch) ** 2
    tokens = patches + prefix
    total = patches * patch * patch * channels * dim
    for width in widths:
        total += tokens * dim * 3 * dim  # q, k, v
        total += 2 * tokens * tokens * dim  # q·k and attention·v, over all heads
        total += tokens * dim * dim  # output projection
        total += 2 * tokens * dim * width  # fc1 and fc2
    return total + dim * classes


def hook_count(model: nn.Module) -> int:
    """Hooks of every kind on every module."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def snapshot(model: nn.Module) -> dict[str, tuple]:
    """Everything a call must leave alone: weights, gradients, flags, dtypes, hooks, and every module's mode."""
    state: dict[str, tuple] = {}
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        state[name] = (value.detach().clone(), value.requires_grad, value.grad is None, value.dtype)
    for name, module in model.named_modules():
        own = vars(module)
        state[f"{name}()"] = (module.training, own.get("in_features"), own.get("out_features"), "forward" in own)
    state["hooks"] = (hook_count(model),)
    return state


def same_state(before: dict[str, tuple], after: dict[str, tuple]) -> bool:
    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b

    return before.keys() == after.keys() and all(
        len(before[key]) == len(after[key]) and all(map(equal, before[key], after[key])) for key in before
    )


def eliminate(weight_DN: Tensor, covariance_NN: Tensor, ridge: float = 1e-3) -> tuple[list[int], list[float]]:
    """The order of optimal brain surgeon and its costs: the inverse and the weights updated at once after each removal."""
    n = len(covariance_NN)
    inverse = np.linalg.inv(
        (covariance_NN + ridge * covariance_NN.diagonal().mean() * torch.eye(n, dtype=torch.float64)).numpy()
    )
    weight, left = weight_DN.numpy().copy(), np.ones(n, bool)
    order, costs = [], []
    for _ in range(n):
        cost = np.where(left, (weight**2).sum(0) / np.where(left, inverse.diagonal(), 1), np.inf)
        j = int(cost.argmin())
        row, column = inverse[j] / inverse[j, j], weight[:, j].copy()
        weight -= np.outer(column, row)
        inverse -= np.outer(inverse[:, j].copy(), row)
        left[j] = False
        order.append(j)
        costs.append(float(cost[j]))
    return order, costs
