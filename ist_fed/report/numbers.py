"""How the report writes numbers; a unit never stands on a line without its number."""

from collections.abc import Mapping
from typing import Any


def size(count: float | None) -> str:
    """Bytes, in powers of 1000."""
    value = float(count or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g}\N{NO-BREAK SPACE}{unit}"
        value /= 1000
    return f"{value:,.3g}\N{NO-BREAK SPACE}TB"


def percent(share: float) -> str:
    """A share; only what is everything is 100 %, and only what is nothing 0 %."""
    if 0.999 < share < 1:
        return "over 99.9\N{NO-BREAK SPACE}%"
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def shares(least_and_most: tuple[float, float]) -> str:
    """A share, or from the least to the most of several."""
    least, most = map(percent, least_and_most)
    return most if least == most else least.removesuffix("\N{NO-BREAK SPACE}%") + f" to {most}"


def amount(value: float) -> str:
    """A number to three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def score(metric: str, value: float) -> str:
    """A metric; an accuracy is a percentage."""
    return f"{100 * value:.4g}\N{NO-BREAK SPACE}%" if metric == "accuracy" else f"{value:.4g}"


def count(number: int, noun: str) -> str:
    """`1 client`, `1,000 clients`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rule_text(rule: Mapping[str, Any]) -> str:
    """A scenario's rule: its name, and the fields it sets."""
    given = ", ".join(f"{key} {value}" for key, value in rule.items() if key != "name")
    return f"{rule.get('name', '')} ({given})" if given else str(rule.get("name", ""))
