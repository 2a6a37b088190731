"""The same by privacy loss distributions: tighter upper bounds, by the packages of the extra `privacy`."""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting.events import Step

_GRID = 0.01  # width of a cell of privacy loss for noise of one; losses are the smaller the more noise there is
_TAIL = 1e-12  # probability that may be cut off, and is counted as lost


def epsilon(steps: Mapping[Step, int], delta: float) -> float:
    """An upper bound of ε; see `accountant.epsilon`.

    Source: Feldman and Shenfeld, ICML 2026, for the draw of a block; `dp-accounting` for everything else.

    Raises:
        PrivacyError: a package is missing.
    """
    total: Any = None
    for step, count in steps.items():
        if count:
            composed = _loss(step).self_compose(count, _TAIL)
            total = composed if total is None else total.compose(composed, _TAIL)
    return float(total.get_epsilon_for_delta(delta)) if total is not None else 0.0


@lru_cache(maxsize=16)
def _loss(step: Step) -> Any:
    """The privacy loss of one release."""
    known, packages = _packages()
    cell = _GRID / max(1.0, step.noise)
    if step.blocks == 1 and not step.shared:
        return known.from_gaussian_mechanism(
            step.noise, value_discretization_interval=cell / 10, sampling_prob=step.sampling
        )
    params = packages.PrivacyParams(sigma=step.noise, num_steps=step.blocks)
    config = packages.AllocationSchemeConfig(loss_discretization=cell, tail_truncation=_TAIL)
    loss = packages.gaussian_allocation_pld(params=params, config=config)
    if step.shared:
        own = known.from_gaussian_mechanism(step.shared**-0.5, value_discretization_interval=cell)
        loss = loss.compose(own, _TAIL)
    if step.sampling < 1:
        loss = packages.subsample_pld(pld=loss, sampling_probability=step.sampling)
    return loss


def _packages() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # that it would be faster with numba
            import PLD_accounting
            from dp_accounting.pld import privacy_loss_distribution
    except ImportError as error:
        raise PrivacyError(
            "bounds by privacy loss distributions need two packages; install them with: pip install 'ist-fed[privacy]'"
        ) from error
    return privacy_loss_distribution, PLD_accounting
