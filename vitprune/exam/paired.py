"""How much of top-1 a model may have lost, and what loss so many images can show, from the images that only one of two
models gets right.

Tango's score interval for the difference of paired proportions (T. Tango, Statistics in Medicine 17, 1998, 891-908), its
upper end at one-sided 95 %. It has the exact variance under each loss that it tries, not that of the images at hand, so it
is never a single point: without a differing image among n it is z² / (n + z²).
"""

from __future__ import annotations

ONE_SIDED = 0.95
HALVINGS = 60
TWO_SIDED, POWER = 0.05, 0.8  # of the test that `detectable` speaks of


def upper(lost: int, gained: int, n: int, level: float = ONE_SIDED) -> float:
    """The largest loss of a share right that goes with `lost` and `gained` among n images: those that only the first model
    gets right, and those that only the second does."""
    from scipy.special import ndtri  # what scipy.stats.norm.ppf is, of which the import takes far more memory

    z = float(ndtri(level))
    low, high = (lost - gained) / n, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if score(lost, gained, n, middle) >= -z else (low, middle)
    return high


def interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """The two-sided 95 % interval of a loss of a share right, negative where it is a gain: `upper` from both sides."""
    level = 1 - TWO_SIDED / 2
    return -upper(gained, lost, n, level), upper(lost, gained, n, level)


def detectable(differing: int, n: int) -> float:
    """The smallest loss of a share right that McNemar's test at 5 % shows of n images with a probability of 80 %, where
    `differing` of them, or all that are lost if that is more, are right by one model only.

    After R. J. Connor (Biometrics 43, 1987, 207-211): n δ² = (z₁ √d + z₂ √(d − δ²))², solved for δ. At most 1.
    """
    from scipy.special import ndtri

    below, above = float(ndtri(1 - TWO_SIDED / 2)), float(ndtri(POWER))

    def shown(loss: float) -> bool:
        share = max(differing / n, loss)
        return n**0.5 * loss >= below * share**0.5 + above * max(0.0, share - loss * loss) ** 0.5

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def score(lost: int, gained: int, n: int, loss: float) -> float:
    """How many standard errors lost − gained is above n·loss, with the variance that is likeliest where `loss` is true."""
    above = lost - gained - n * loss
    if above == 0:
        return 0.0
    middle = (2 * n - lost + gained) * loss - lost - gained
    inner = max(0.0, middle * middle + 8 * n * gained * loss * (1 - loss))
    likeliest = max(
        0.0, (inner**0.5 - middle) / (4 * n)
    )  # the share that only the second gets right, where loss is true
    variance = n * (2 * likeliest + loss * (1 - loss))
    return above / variance**0.5 if variance > 0 else float("-inf")
