"""How sure one can be of a rate, of an area under a curve, and of an ε, after so many trials."""

from math import inf, lgamma, log
from statistics import NormalDist

import numpy as np

from ist_fed.errors import PrivacyError


def rate_bounds(hits: int, trials: int, doubt: float) -> tuple[float, float]:
    """Between what a probability lies; each side is wrong with a chance of at most `doubt`.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if not (0 <= hits <= trials and trials > 0 and 0 < doubt < 1):
        raise PrivacyError(f"a rate is hits out of trials, but these are {hits} of {trials}, at a doubt of {doubt}")
    # The upper side is the lower one of the misses.
    return _least(hits, trials, doubt), 1 - _least(trials - hits, trials, doubt)


def _least(hits: int, trials: int, doubt: float) -> float:
    """The probability at which so many hits, or more, happen with a chance of `doubt`."""
    if hits == 0:
        return 0.0
    counts = np.arange(hits, trials + 1)
    ways = np.array([lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) for k in counts.tolist()])
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):  # the log of a chance of 0 is -inf, and times 0 it is not looked at
            misses = np.where(counts == trials, 0.0, (trials - counts) * np.log1p(-middle) if middle < 1 else -inf)
            tail = float(np.exp(ways + counts * np.log(middle) + misses).sum()) if middle > 0 else 0.0
        low, high = (middle, high) if tail < doubt else (low, middle)
    return low


def area_bounds(above: np.ndarray, below: np.ndarray, doubt: float) -> tuple[float, float, float]:
    """The chance that one of `above` is larger than one of `below` (half of it if equal), and between what it lies.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, for the variance.
    """
    one, other = np.sort(above), np.sort(below)
    wins = (np.searchsorted(other, above) + np.searchsorted(other, above, side="right")) / (2 * len(other))
    losses = 1 - (np.searchsorted(one, below) + np.searchsorted(one, below, side="right")) / (2 * len(one))
    area = float(wins.mean())
    spread = (float(wins.var(ddof=1)) / len(wins) + float(losses.var(ddof=1)) / len(losses)) ** 0.5
    wide = NormalDist().inv_cdf(1 - doubt) * spread
    return area, max(0.0, area - wide), min(1.0, area + wide)


def epsilon_bound(present: np.ndarray, absent: np.ndarray, delta: float, doubt: float) -> float:
    """An ε below which no release with these scores can be (ε, δ)-private; wrong with a chance of at most `doubt`.

    Half of the scores choose where to cut and in which direction, the other half are counted.

    Args:
        present: a score for each trial in which the client took part.
        absent: the same for those in which it added nothing.
        delta: δ.
        doubt: of the answer.

    Source: Nasr et al., IEEE S&P 2021, for the bound from two rates.
    """
    (some, more), (other, others) = (np.array_split(scores, 2) for scores in (present, absent))
    sign, cut = max(
        ((sign, cut) for sign in (1, -1) for cut in _cuts(sign * np.concatenate([some, other]))),
        key=lambda at: _guess(*_hits(some, other, *at), len(some), len(other), delta),
    )
    hits, false = _hits(more, others, sign, cut)
    sure = more if sign > 0 else others
    base = others if sign > 0 else more
    low = rate_bounds(hits, len(sure), doubt / 2)[0]
    high = rate_bounds(false, len(base), doubt / 2)[1]
    return max(0.0, log((low - delta) / high)) if low > delta else 0.0


def _cuts(scores: np.ndarray) -> np.ndarray:
    return np.unique(np.quantile(scores, np.linspace(0, 1, 101)))


def _hits(present: np.ndarray, absent: np.ndarray, sign: int, cut: float) -> tuple[int, int]:
    """How many scores beyond the cut are right, and how many wrong; a cut from the other side looks for absence."""
    sure, base = (present, absent) if sign > 0 else (absent, present)
    return int((sign * sure > cut).sum()), int((sign * base > cut).sum())


def _guess(hits: int, false: int, sure: int, base: int, delta: float) -> float:
    """About what the bound would be: by intervals that are quick to compute."""
    wide = 25.0  # five standard deviations, squared
    low = (hits - (wide * hits * (1 - hits / sure)) ** 0.5) / sure
    high = (false + wide / 2 + (wide * false + wide**2 / 4) ** 0.5) / base
    return log((low - delta) / min(1.0, high)) if low > delta else low - 10
