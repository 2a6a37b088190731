"""The same by privacy loss distributions: tighter upper bounds, composed by a package of the extra `privacy`."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting.events import Step
from ist_fed.privacy.accounting.ratios import finest, ratio, regrid

_TAIL = 1e-12  # probability that may be cut off, and is counted as lost; a ten-thousandth of δ if that is less
_FINEST = 1e-5  # width of a cell of privacy loss, at least
_ROUNDING = 2.0**-52  # by which a round may put δ wrong, for powers of a Fourier transform are taken


def epsilon(steps: Mapping[Step, int], delta: float) -> float:
    """An upper bound of ε, infinite where δ is no more than rounding; see `accountant.epsilon`.

    Source: `ratios` for the draw of a block; `dp-accounting` for one block, and for composing.

    Raises:
        PrivacyError: the package is missing.
    """
    counted = {step: count for step, count in steps.items() if count}
    if not counted:
        return 0.0
    cell = max(_FINEST, min(finest(step) * step.sampling for step in counted))
    total: Any = None
    tail = min(_TAIL, delta * 1e-4)
    with np.errstate(over="ignore"):  # where ε is in the hundreds
        for step, count in counted.items():
            composed = _loss(step, cell).self_compose(count, tail)
            total = composed if total is None else total.compose(composed, tail)
        return float(total.get_epsilon_for_delta(max(0.0, delta - _ROUNDING * sum(counted.values()))))


@lru_cache(maxsize=16)
def _loss(step: Step, cell: float) -> Any:
    """The privacy loss of one release, with the client and without it."""
    distributions, masses = _package()
    if step.blocks == 1 and not step.shared:
        return distributions.from_gaussian_mechanism(
            step.noise, value_discretization_interval=cell, sampling_prob=step.sampling
        )
    law = regrid(ratio(step), cell)
    likely, last = law.masses * np.exp(law.logs), law.low + len(law.masses) - 1
    taken = masses.DensePLDPmf(cell, law.low, likely, law.lost, pessimistic_estimate=True)
    added = masses.DensePLDPmf(cell, -last, law.masses[::-1].copy(), law.zero, pessimistic_estimate=True)
    return distributions.PrivacyLossDistribution(taken, added)


def _package() -> tuple[Any, Any]:
    try:
        from dp_accounting.pld import pld_pmf, privacy_loss_distribution
    except ImportError as error:
        raise PrivacyError(
            "bounds by privacy loss distributions need a package; install it with: pip install 'ist-fed[privacy]'"
        ) from error
    return privacy_loss_distribution, pld_pmf
