"""The two signatures of a criterion, and the row that tells what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vitprune.criteria.settings import Nothing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitprune.core.least_squares import Sums
    from vitprune.criteria.curves import Curve
    from vitprune.model.sites.attention import AttentionSite
    from vitprune.model.sites.ffn import FfnSite


class ImageScore(Protocol):
    """Scores every hidden unit for every image, for each t in `ts`: per block [B, N]."""

    def __call__(
        self,
        model: nn.Module,
        sites: Sequence[FfnSite],
        images: Tensor,
        labels: Tensor,
        *,
        ts: Sequence[int],
        how: Any,
    ) -> dict[int, list[Tensor]]: ...


class WholeScore(Protocol):
    """Scores every hidden unit for every class, or for all of them: per block [C, N] or [1, N], or a curve where it knows
    what each removal costs."""

    def __call__(
        self, model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Any
    ) -> Sequence[Tensor | Curve]: ...


class Trained(Protocol):
    """The same, and the trained copy of the model, which is what is then pruned."""

    def __call__(
        self, model: nn.Module, sites: Sequence[FfnSite], batches: Batches, *, how: Any
    ) -> tuple[list[Tensor], nn.Module]: ...


class SumsOf(Protocol):
    """What is summed over batches of images; `classes` are those of all images, `first` the sums of the first part."""

    def __call__(
        self,
        model: nn.Module,
        sites: Sequence[FfnSite],
        batches: Batches,
        *,
        classes: Sequence[int],
        how: Any,
        first: Sums | None,
    ) -> Sums: ...


class FromSums(Protocol):
    """What a `WholeScore` gives, from the sums over all of the images."""

    def __call__(
        self, model: nn.Module, sites: Sequence[FfnSite], found: Sums, *, how: Any
    ) -> Sequence[Tensor | Curve]: ...


@dataclass(frozen=True, slots=True)
class Summed:
    """A criterion by sums over images, which several processes can share. Those of one `name` have the same sums.

    A sum's name has the position of its site among its words, so that a site's scores can be made of its own sums alone.
    """

    name: str
    sums: SumsOf
    scores: FromSums


class OneAttention(Protocol):
    """A curve of one attention, or scores of its heads and dimensions, and the tensors that it is made of again."""

    @property
    def site(self) -> AttentionSite: ...

    def tensors(self) -> dict[str, Tensor]: ...


class AttentionCurves(Protocol):
    """One for each of `sites` (None: of the model's attentions); `found` are the sums, where it has some."""

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        found: Sums | None,
        *,
        how: Any,
        sites: Sequence[AttentionSite] | None = None,
    ) -> Sequence[OneAttention]: ...


@dataclass(frozen=True, slots=True)
class OfAttention:
    """What a criterion says of heads and their dimensions. `sums`, by their name: those of FFNs and attentions together, in
    the place of the FFNs' own."""

    curves: AttentionCurves
    sums: tuple[str, SumsOf] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One criterion: what computes it, what it needs, where it comes from, what it depends on.

    `settings`: the frozen dataclass of its settings, read without torch; the function is given one as `how`.

    `ranks_by`: a class's units are ranked by how often they are among an image's t best (`frequency`, the paper's way)
    or by their mean score (`mean`, then t plays no part).
    `path_dependent`: so does t, beyond the ranking. `across_blocks`: the scores of all blocks are in one unit of account,
    so `allocation: auto` cuts them by one threshold.
    `trains`: `whole` where `train_weights` asks for weights as well. `class_token`: it looks at that token whatever the
    settings say (one that has the setting `tokens` does so by default). `halves`: it needs blocks that come in halves.
    `summed`: `whole` in two steps, where it needs no more of the images than sums over them. `attention`: it chooses heads
    and their dimensions too.
    """

    source: str
    score: ImageScore | None = None
    whole: WholeScore | None = None
    needs: tuple[Literal["labels", "gradients", "training", "images"], ...] = ()
    ranks_by: Literal["frequency", "mean"] = "frequency"
    settings: type[Any] = Nothing
    path_dependent: bool = False
    across_blocks: bool = False
    trains: Trained | None = None
    class_token: bool = False
    halves: bool = False
    summed: Summed | None = None
    attention: OfAttention | None = None

    def sums(self, attention: bool) -> Summed | None:
        """What it sums over images, for FFNs alone or with `attention`."""
        both = self.attention.sums if attention and self.attention else None
        return replace(self.summed, name=both[0], sums=both[1]) if both and self.summed else self.summed

    @property
    def sites(self) -> list[str]:
        """The kinds of sites that it chooses in."""
        return ["ffn", "attention"] if self.attention else ["ffn"]

    @property
    def uses(self) -> tuple[str, ...]:
        """The names of its settings: a change of one of them changes the scores."""
        return tuple(field.name for field in fields(self.settings))

    @property
    def integrates(self) -> bool:
        """Whether it needs several passes for every image."""
        return "nodes" in self.uses


Batches = Callable[[], Iterable[tuple[Any, Any]]]  # of Tensors: images [N, C, H, W] and labels [N]
