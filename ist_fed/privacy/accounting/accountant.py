"""Interprets events: ε for a δ, δ for an ε, and the noise that a target takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, inf, log
from typing import Literal

import numpy as np

from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting import losses, moments
from ist_fed.privacy.accounting.events import Event, Step, steps_of

Method = Literal["rdp", "pld"]

_FEWEST, _MOST = 32, 1024  # Rényi orders looked at; more are, while the best stands near the end

QUIETEST = 0.05
"""Noise multipliers below this are no privacy, and neither quadrature nor Opacus' accountant is made for them."""


@dataclass(frozen=True)
class Claim:
    """What releases cost.

    Args:
        epsilon: for the δ asked for.
        order: the Rényi order at which it was found.
        direction: which of the two ways is the dearer: the client's contribution taken away, or added.
    """

    epsilon: float
    order: float
    direction: Literal["remove", "add"]


def epsilon(event: Event, delta: float, method: Method = "rdp") -> float:
    """The smallest ε for which the releases are proven (ε, δ)-private.

    One client's contribution, to all of them, is replaced by zero.

    Args:
        event: what was released.
        delta: from 0 to 1, both left out.
        method: `rdp`, exact Rényi divergences, converted; `pld`, an upper bound by privacy loss distributions, tighter
            and slower, which needs the extra `privacy`.

    Raises:
        PrivacyError: there is no proof for such an event, or a number is out of its range.
    """
    steps = steps_of(event)
    if method == "pld":
        _check(steps, delta)
        return losses.epsilon(steps, delta)
    return epsilon_of(steps, delta).epsilon


def epsilon_of(steps: Mapping[Step, int], delta: float) -> Claim:
    """The same from steps and how often each happened, by Rényi divergences.

    Source: Balle et al., AISTATS 2020, theorem 21, for the conversion.
    """
    _check(steps, delta)
    return _dearer(steps, lambda orders, spent: _epsilons(orders, spent, delta))


def delta_of(steps: Mapping[Step, int], epsilon: float) -> float:
    """The smallest δ for an ε: the same bound, turned round."""
    _check(steps, 0.5)
    if not 0 <= epsilon < inf:
        raise PrivacyError(f"epsilon must be finite and not negative, but is {epsilon}")
    claim = _dearer(steps, lambda orders, spent: _log_deltas(orders, spent, epsilon))
    return min(1.0, exp(min(0.0, claim.epsilon)))


def _epsilons(orders: np.ndarray, spent: np.ndarray, delta: float) -> np.ndarray:
    bound: np.ndarray = spent + np.log1p(-1 / orders) - (log(delta) + np.log(orders)) / (orders - 1)
    return bound.clip(min=0.0)


def _log_deltas(orders: np.ndarray, spent: np.ndarray, epsilon: float) -> np.ndarray:
    logs: np.ndarray = (orders - 1) * (spent - epsilon + np.log1p(-1 / orders)) - np.log(orders)
    return logs


def _dearer(steps: Mapping[Step, int], bound: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Claim:
    """The larger of the two directions' least bounds.

    "Remove" is cheap at many orders at once; "add" is a quadrature for each. If at the order that is best for "remove"
    "add" is no larger, its own best is smaller still, and nothing more need be known.
    """
    if not steps:
        return Claim(0.0, inf, "remove")
    orders, spent = _removing(steps, bound)
    bounds = bound(orders, spent)
    best = int(bounds.argmin())
    claim = Claim(float(bounds[best]), float(orders[best]), "remove")
    if _adding(steps, orders[best]) <= spent[best] * (1 + 1e-12):
        return claim
    added = np.array([_adding(steps, order) for order in orders])
    bounds = bound(orders, added)
    best = int(bounds.argmin())
    return max(claim, Claim(float(bounds[best]), float(orders[best]), "add"), key=lambda claim: claim.epsilon)


def _removing(
    steps: Mapping[Step, int], bound: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and what is spent at each, until more of them would not help."""
    most = _FEWEST
    while True:
        orders = np.arange(2, most + 1)
        spent = np.sum([count * moments.remove(step, most) for step, count in steps.items()], axis=0)
        if most >= _MOST or bound(orders, spent).argmin() < most // 2:
            return orders, spent
        most *= 2


def _adding(steps: Mapping[Step, int], order: float) -> float:
    return sum(count * moments.add(step, float(order)) for step, count in steps.items())


def _check(steps: Mapping[Step, int], delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must lie between 0 and 1, but is {delta}")
    for step in steps:
        if step.noise < QUIETEST:
            raise PrivacyError(
                f"the accountant is made for noise multipliers from {QUIETEST}, but one is {step.noise:g}; so little "
                f"noise protects nobody"
            )


def calibrate(release: Callable[[float], Event], target: float, delta: float) -> float:
    """The least noise multiplier, to four digits and never too small, at which releases stay within a target.

    Args:
        release: everything that would be released with a noise multiplier; more noise must not cost more.
        target: ε, positive.
        delta: δ.

    Raises:
        PrivacyError: no noise multiplier up to a million is enough.
    """
    if not 0 < target < inf:
        raise PrivacyError(f"a target for epsilon must be positive and finite, but is {target}")

    def enough(noise: float) -> bool:
        return epsilon_of(steps_of(release(noise)), delta).epsilon <= target

    low, high = QUIETEST, 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e6:
            raise PrivacyError(f"no noise brings epsilon to {target} at delta {delta}; allow more, or release less")
    while high / low > 1 + 1e-4:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
