"""Rényi divergences of one release by blocks, both ways, in log space.

The release is dominated by Q = N(0, s²I) over d blocks against P = (1−q)Q + (q/d) Σⱼ N(eⱼ, s²I): a client takes part
with probability q, in a block drawn uniformly. Their likelihood ratio is (1−q) + q·V·mean(Wᵢ), where W₁ … W_d are
independent and log-normal, LogNormal(−1/(2s²), 1/s²), and V is that of what everyone adds, LogNormal(−κ/2, κ).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from math import ceil, exp, lgamma, log, log1p, pi, sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ist_fed.privacy.accounting.events import Step

Vector = np.ndarray

_DEEP = 42.0  # e^-42 of the peak is nothing beside rounding
_LEAST_KAPPA = 1e-4  # what everyone adds is taken to be at least this loud; below, quadrature would need many points


@lru_cache(maxsize=256)
def remove(step: Step, most: int) -> Vector:
    """R_α(P‖Q) for α = 2 … `most`: the client's contribution is there, and was not. Exact."""
    orders = np.arange(2, most + 1)
    moments = _moments(step, most)
    if step.sampling == 1:
        return moments[2:] / (orders - 1)
    factorial = _log_factorials(most)
    j = np.arange(most + 1)
    left = orders[:, None] - j
    chosen = factorial[orders][:, None] - factorial - factorial[np.maximum(left, 0)]
    terms = chosen + left * log1p(-step.sampling) + j * log(step.sampling) + moments
    summed: Vector = _log_sum(np.where(left >= 0, terms, -np.inf)) / (orders - 1)
    return summed


def _moments(step: Step, most: int) -> Vector:
    """log E (V·mean(Wᵢ))ʲ under Q for j = 0 … `most`: coefficients of a power of a power series, (a) and (f)."""
    j, factorial = np.arange(most + 1), _log_factorials(most)
    series = (j * j - j) / (2 * step.noise**2) - factorial
    moments = factorial - j * log(step.blocks) + _power(series, step.blocks)
    moments[:2] = 0.0  # known, and so not to be rounded
    raised: Vector = moments + (j * j - j) / 2 * step.shared
    return raised


def _power(series: Vector, exponent: int) -> Vector:
    """The logarithms of a power series' coefficients, raised to a power by repeated squaring; all are positive."""
    result = np.full_like(series, -np.inf)
    result[0] = 0.0
    while exponent:
        if exponent & 1:
            result = _product(result, series)
        exponent >>= 1
        if exponent:
            series = _product(series, series)
    return result


def _product(one: Vector, other: Vector) -> Vector:
    most = len(one)
    padded = np.concatenate([np.full(most - 1, -np.inf), one])
    return _log_sum(sliding_window_view(padded, most) + other[::-1])


@lru_cache(maxsize=4096)
def add(step: Step, order: float) -> float:
    """R_α(Q‖P) for real α > 1: the client's contribution is not there, and was. By quadrature, (c).

    E Y⁻ᵖ = Γ(p)⁻¹ ∫ tᵖ⁻¹ E e^(−tY) dt with p = α − 1. In u = log t the integrand is log-concave (a marginal of a
    log-concave function of u and of the normal variables), so it has one peak, and a trapezoid over it converges fast.
    """
    p, q, kappa = order - 1, step.sampling, step.shared
    alone = 0.0
    if q == 1:  # V is a factor of its own
        alone, kappa = (p + 1) * kappa / 2, 0.0

    def integrand(u: Vector, fine: bool = True) -> Vector:
        blocks = _mixed(u, step, max(kappa, _LEAST_KAPPA), fine) if kappa else _blocks(u, step)
        left = (1 - q) * np.exp(np.minimum(u, 700.0)) if q < 1 else 0.0
        logs: Vector = p * u - left + blocks
        return logs

    points = np.linspace(*_support(partial(integrand, fine=False), p, q), 513)
    total = float(_log_sum(integrand(points))) + log(points[1] - points[0])
    return alone + (total - lgamma(p)) / p


def _blocks(u: Vector, step: Step) -> Vector:
    """log φ(q·e^u/d)^d."""
    return step.blocks * log_laplace(log(step.sampling / step.blocks) + u, step.noise)


def _support(function: Callable[[Vector], Vector], p: float, q: float) -> tuple[float, float]:
    """Where a log-concave function of one peak is above e^-42 of it."""
    # Those who do not take part give p·u − (1−q)·e^u, and the others only less towards the right of its peak.
    low, high = -60.0 / min(p, 1.0), 60.0 if q == 1 else log(p / (1 - q)) + 4 + log1p(1 / p)
    while True:
        points = np.linspace(low, high, 97)
        values = function(points)
        peak = int(values.argmax())
        if peak == len(points) - 1:
            high += high - low
            continue
        if peak == 0:
            low -= high - low
            continue
        near = np.flatnonzero(values > values[peak] - _DEEP)
        left, right = max(0, int(near[0]) - 1), min(len(points) - 1, int(near[-1]) + 1)
        if near[-1] == len(points) - 1:
            high += high - low
        elif len(near) >= 24:
            return float(points[left]), float(points[right])
        else:
            low, high = float(points[left]), float(points[right])


def log_laplace(log_t: Vector, s: float) -> Vector:
    """log E e^(−tW) for log-normal W, LogNormal(−1/(2s²), 1/s²), at many t.

    In the normal variable the integrand peaks at −s·v, where v·eᵛ = t·e^(−1/(2s²))/s² (Lambert's W); the trapezoid
    is laid around that peak.
    """
    target = log_t - 1 / (2 * s * s) - 2 * log(s)
    w = np.where(target < 1, target, np.log(np.maximum(target, 1.0)))
    for _ in range(60):  # Newton on w + e^w, from the right of the root: it falls to it steadily
        grown = np.exp(w)
        step = (w + grown - target) / (1 + grown)
        w = w - step
        if np.abs(step).max() < 1e-15 * max(1.0, float(np.abs(w).max())):
            break
    v = np.exp(w)
    narrow = min(s / 4, 0.45 / sqrt(1 + float(v.max())))
    z = np.arange(-9.5, 9.5 + narrow, narrow)
    rise = np.expm1(z / s) - z / s
    exponent = -z * z / 2 - (s * s * v)[:, None] * rise
    total = _log_sum(exponent) + log(narrow) - log(2 * pi) / 2
    logs: Vector = total - s * s * v * v / 2 - s * s * v
    return logs


def _mixed(u: Vector, step: Step, kappa: float, fine: bool) -> Vector:
    """log E_V φ(q·e^u·V/d)^d at equally spaced u: V shifts u by a normal number, and shifts are steps of one grid.

    If it need not be fine, the grid is that of u: up to a constant the same, for which V is narrow beside its steps.
    """
    gap, width = float(u[1] - u[0]), sqrt(kappa)
    parts = max(1, ceil(gap / (0.4 * width))) if fine else 1
    h = gap / parts
    # The peak over V lies no lower than the slope of log φ^d, which is at most either of these.
    log_t = log(step.sampling / step.blocks) + float(u[-1])
    target = log_t - 1 / (2 * step.noise**2) - 2 * log(step.noise)
    v = exp(target) if target < 1 else target
    slope = min(step.blocks * step.noise**2 * v, step.sampling * exp(min(float(u[-1]), 700.0)))
    below, above = ceil((9 + width * slope) * width / h), ceil(9 * width / h)
    shifts = np.arange(-below, above + 1)
    grid = u[0] - kappa / 2 + h * np.arange(-below, parts * (len(u) - 1) + above + 1)
    normal = -((shifts * h / width) ** 2) / 2 + log(h / width) - log(2 * pi) / 2
    return _log_sum(sliding_window_view(_blocks(grid, step), len(shifts))[::parts] + normal)


def _log_sum(logs: Vector) -> Vector:
    """log Σ exp along the last dimension."""
    top = logs.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        summed: Vector = np.log(np.exp(logs - top).sum(axis=-1)) + top[..., 0]
    return summed


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> Vector:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
