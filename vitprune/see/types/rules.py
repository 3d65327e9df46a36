"""The three rules that give a unit its type, as arithmetic on arrays; no model in sight.

    counts   of the unit's `top` samples, each is visual-activated where more than t of 10 (of the unit's own greatest value)
             is reached at n or more visual tokens, text-activated likewise; the type is what most of them are. The numbers
             are those of "Deciphering Functions of Neurons in Vision-Language Models" (arXiv 2502.18485), known second hand
    rates    the same with shares of the tokens in place of counts, so that longer images change nothing
    test     per sample D = the share of visual tokens at or above the unit's own quantile − that of text tokens; visual or
             text where a test that flips the samples' signs says so after Benjamini and Hochberg and |mean D| ≥ delta;
             multimodal where both shares are at least `least` and |mean D| < delta by two one-sided tests; else unknown

Activations are strengths, never negative: the sign of a gated unit is a free choice (see `reading.strength`). The quantile
counts both modalities alike, however many tokens each has. Tokens of one image are not independent: a test over tokens calls
units without any preference visual or text, which is why samples are what is flipped; nor are samples of one image, whose
rates are averaged first.
Legend: S samples, T tokens, H units. Types are numbers into TYPES; where two are equal, the earlier one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitprune.model.vlm.tokens import TYPES as TYPES

VISUAL, TEXT, MULTIMODAL, UNKNOWN = range(4)
RULES = ("test", "counts", "rates")
BINS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Every number of the three rules. `q`: of Benjamini and Hochberg; `alpha`: of the two one-sided tests; `flips`: random
    signs drawn; `shares`: of visual and of text tokens, in place of counts (4 of 576 and 2 of 100)."""

    top: int = 50
    t_visual: float = 2.0
    n_visual: int = 4
    t_text: float = 3.0
    n_text: int = 2
    share_visual: float = 4 / 576
    share_text: float = 2 / 100
    quantile: float = 0.95
    q: float = 0.05
    delta: float = 0.03
    least: float = 0.01
    alpha: float = 0.05
    flips: int = 999
    seed: int = 0


def scaled(strength: Tensor, most_H: Tensor) -> Tensor:
    """Strengths [..., H] in tenths of the unit's greatest value, 0 to 10; 0 for a unit that never fires."""
    some = most_H > 0
    return torch.where(some, 10 * strength / torch.where(some, most_H, 1), 0).clamp(0, 10)


def activated(visual: Tensor, text: Tensor) -> Tensor:
    """Types of samples from whether each is visual-activated and text-activated, bool of any shape."""
    kinds = torch.full(visual.shape, UNKNOWN, dtype=torch.int8, device=visual.device)
    kinds[visual & ~text], kinds[text & ~visual], kinds[visual & text] = VISUAL, TEXT, MULTIMODAL
    return kinds


def hits(scaled_BTH: Tensor, tokens_BT: Tensor, threshold: float) -> Tensor:
    """Per sample and unit [B, H] the number of these tokens that are above the threshold."""
    return ((scaled_BTH > threshold) & tokens_BT[..., None]).sum(1)


def by_counts(visual_BH: Tensor, text_BH: Tensor, how: Settings) -> Tensor:
    """Types of samples [B, H] from hits among visual and text tokens."""
    return activated(visual_BH >= how.n_visual, text_BH >= how.n_text)


def by_rates(visual_BH: Tensor, text_BH: Tensor, tokens: tuple[Tensor, Tensor], how: Settings) -> Tensor:
    """Types of samples [B, H] from hits and the numbers of visual and of text tokens [B] each."""
    shares = [hit / count.clamp_min(1)[:, None] for hit, count in zip((visual_BH, text_BH), tokens, strict=True)]
    return activated((shares[0] >= how.share_visual) & (visual_BH > 0), (shares[1] >= how.share_text) & (text_BH > 0))


def shares(kinds_SH: Tensor) -> Tensor:
    """Per unit [4, H] the shares of samples of each type; all unknown where there is no sample."""
    if not len(kinds_SH):
        return torch.nn.functional.one_hot(torch.full(kinds_SH.shape[1:], UNKNOWN), 4).T.double()
    return torch.stack([(kinds_SH == kind).double().mean(0) for kind in range(4)])


def prone(shares_4H: Tensor, fires_H: Tensor) -> Tensor:
    """The type [H] with the largest share; unknown for a unit that never fires."""
    return torch.where(fires_H, shares_4H.argmax(0).to(torch.int8), UNKNOWN).to(torch.int8)


def bins(strength: Tensor) -> Tensor:
    """The bin of every strength, int64: a thirty-second of a power of two wide, 0 to BINS − 1; larger means stronger."""
    return strength.clamp(0, 65504).half().view(torch.int16).long() >> 5


def cut(visual: Tensor, text: Tensor, quantile: float) -> Tensor:
    """The bin [H] at or above which a unit counts as active: the largest that leaves at least 1 − quantile there, over counts
    [H, BINS] of visual and of text tokens, which weigh alike."""
    parts = [one.double() / one.sum(1, keepdim=True).clamp_min(1) for one in (visual, text)]
    above = (parts[0] + parts[1]).div(2).flip(1).cumsum(1).flip(1)
    return (above >= 1 - quantile - 1e-12).sum(1) - 1


def rate(bins_BTH: Tensor, tokens_BT: Tensor, cut_H: Tensor) -> Tensor:
    """Per sample and unit [B, H] the share of these tokens at or above the cut; strength 0 is never active."""
    active = (bins_BTH >= cut_H) & (bins_BTH > 0) & tokens_BT[..., None]
    return active.sum(1).double() / tokens_BT.sum(1).clamp_min(1)[:, None]


def by_image(rates_SH: Tensor, images_S: Tensor) -> Tensor:
    """Mean rates of every image's samples, images by their numbers; samples of one image are not independent, so images are
    what the test flips."""
    known, at, counts = images_S.unique(return_inverse=True, return_counts=True)
    if len(known) == len(images_S):
        return rates_SH[at.argsort()]
    of_image = torch.nn.functional.one_hot(at, len(known)).T.to(rates_SH)
    return (of_image @ rates_SH) / counts[:, None]


def sign_flip(differences_SH: Tensor, flips: int, seed: int) -> Tensor:
    """Two-sided p [H] of no preference, over samples: how often |Σ ±D| reaches |Σ D| under random signs.

    Where no draw does, Hoeffding's bound 2·exp(−(ΣD)² / 2ΣD²) stands in its place if it is smaller; 1 where all D are 0.
    """
    d = differences_SH.double()
    total, square = d.sum(0).abs(), d.square().sum(0)
    draw = torch.Generator().manual_seed(seed)
    reached = torch.zeros(d.shape[1], dtype=torch.long, device=d.device)
    for start in range(0, flips, 256):
        signs = torch.randint(0, 2, (min(256, flips - start), len(d)), generator=draw).to(d) * 2 - 1
        reached += ((signs @ d).abs() >= total - 1e-9 * square.sqrt()).sum(0)
    p = (1 + reached).double() / (1 + flips)
    bound = 2 * torch.exp(-total.square() / (2 * square).clamp_min(1e-300))
    return torch.where(reached > 0, p, torch.minimum(p, bound))


def significant(p: Tensor, q: float) -> Tensor:
    """Which of the tests [n] stand, bool, after Benjamini and Hochberg: false ones make up at most q of them on average."""
    order = p.argsort()
    fine = p[order] <= q * torch.arange(1, len(p) + 1, device=p.device) / max(len(p), 1)
    last = int(fine.nonzero().max()) + 1 if bool(fine.any()) else 0
    found = torch.zeros(len(p), dtype=torch.bool, device=p.device)
    found[order[:last]] = True
    return found


def equivalent(differences_SH: Tensor, delta: float, alpha: float) -> Tensor:
    """Whether |mean D| < delta stands for each unit [H], by two one-sided tests over samples (normal approximation)."""
    n = len(differences_SH)
    mean = differences_SH.mean(0)
    spread = differences_SH.std(0) if n > 1 else torch.full_like(mean, torch.inf)
    reach = torch.special.ndtri(torch.tensor(1 - alpha, dtype=torch.float64)).to(mean)
    return mean.abs() + reach * spread / n**0.5 < delta


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the test knows of units [H]: p, mean D, mean rates of visual and of text tokens, equivalence."""

    p: Tensor
    difference: Tensor
    visual: Tensor
    text: Tensor
    equal: Tensor

    @classmethod
    def of(cls, visual_SH: Tensor, text_SH: Tensor, how: Settings) -> Evidence:
        """From the rates of every sample."""
        d = visual_SH - text_SH
        return cls(
            sign_flip(d, how.flips, how.seed), d.mean(0), visual_SH.mean(0), text_SH.mean(0),
            equivalent(d, how.delta, how.alpha),
        )  # fmt: skip

    def labels(self, stands: Tensor, how: Settings) -> Tensor:
        """Types [H], where `stands` says for which units a preference stands among all that were tested."""
        found = torch.full(self.p.shape, UNKNOWN, dtype=torch.int8, device=self.p.device)
        both = (self.visual >= how.least) & (self.text >= how.least)
        found[both & self.equal] = MULTIMODAL
        found[stands & (self.difference >= how.delta)] = VISUAL
        found[stands & (self.difference <= -how.delta)] = TEXT
        return found
