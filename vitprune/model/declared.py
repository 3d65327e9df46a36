"""Classifiers that are not timm's, and backbones made of them, behind the few names that the rest asks of a model.

A declared list of (fc1, act, fc2) paths stands for the family, of (fc1, act, fc2, gate) where act(gate(x)) · fc1(x) are
the hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vitprune.core.errors import UserError
from vitprune.core.reading import Json
from vitprune.model import plain
from vitprune.model.sites.base import TokenLayout
from vitprune.model.sites.ffn import FfnSite

NET = "net"
Tell = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]  # images → pooled [B, D'] and normed tokens [B, T, D]


class Foreign(nn.Module):
    """`net` as a classifier: images [B, C, H, W] → logits [B, C]. Its FFNs are those declared, in the order of the pass.

    `heads`: paths of its classifiers; `tell`: its features before them, which it gives where it has no head (`num_classes` 0).
    """

    def __init__(
        self,
        net: nn.Module,
        ffns: Sequence[tuple[str, ...]],
        input_shape: tuple[int, int, int],
        num_classes: int,
        layout: TokenLayout,
        pretrained_cfg: Json | None = None,
        heads: Sequence[str] = (),
        tell: Tell | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.ffns, self.input_shape, self.num_classes, self.layout = tuple(ffns), input_shape, num_classes, layout
        self.pretrained_cfg = {"input_size": input_shape, **(pretrained_cfg or {})}
        self.heads, self.tell = tuple(heads), tell

    def forward(self, images: Tensor) -> Tensor:
        if not self.num_classes and self.tell is not None:
            return self.tell(self.net, images)[0]
        out = self.net(images)
        return out if isinstance(out, Tensor) else out.logits

    def pooled_and_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One vector per image [B, D'], which a head reads or would, and its tokens after the final norm [B, T, D]. Raises
        UserError where the library's own class does not say them."""
        if self.tell is None:
            raise UserError(f"model: {type(self.net).__name__} has no features that are known")
        return self.tell(self.net, images)

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens after the final norm [B, T, D], by the name that timm has for them."""
        return self.pooled_and_tokens(images)[1]

    def remove_head(self) -> None:
        """Nothing; its outputs are features from now on. Raises UserError for one of one's own: nobody says its features."""
        if self.tell is None:
            raise UserError(
                f"model.head: none: nobody says what the features of a {type(self.net).__name__} are; take timm's model of it "
                "(`vitprune models`), of which the head can go"
            )
        for path in self.heads:
            parent, _, name = path.rpartition(".")
            setattr(self.net.get_submodule(parent), name, nn.Identity())
        self.num_classes = 0

    def sites(self) -> list[FfnSite]:
        """The declared FFNs. Raises UserError naming the layer that does not fit."""
        if not self.ffns:
            raise UserError("model: no FFNs are declared, there is nothing to prune")
        return [self._site(i, *paths) for i, paths in enumerate(self.ffns)]

    def _site(self, i: int, fc1: str, act: str, fc2: str, gate: str | None = None) -> FfnSite:
        first, second = self._linear(fc1), self._linear(fc2)
        plain.require_per_unit(act, self._layer(act), second.in_features)
        for path, layer in ((fc1, first), *([(gate, self._linear(gate))] if gate else [])):
            if layer.out_features != second.in_features:
                raise UserError(f"{fc2}: reads {second.in_features} hidden units, {path} makes {layer.out_features}")
        made = (f"{NET}.{fc1}", f"{NET}.{act}", f"{NET}.{fc2}", first.out_features)
        return FfnSite(i, *made, gate=gate and f"{NET}.{gate}")

    def _linear(self, path: str) -> nn.Linear:
        layer = self._layer(path)
        plain.require(path, layer, plain.LINEAR)
        assert isinstance(layer, nn.Linear)
        return layer

    def _layer(self, path: str) -> nn.Module:
        try:
            return self.net.get_submodule(path)
        except AttributeError as error:
            raise UserError(f"{path}: the model {type(self.net).__name__} has no such module") from error
