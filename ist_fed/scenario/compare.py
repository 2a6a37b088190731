"""In which keys two scenarios differ."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ist_fed.scenario.description import Scenario


def differences(one: Scenario, other: Scenario) -> list[str]:
    """The keys in which two scenarios differ, as `key: one's value → the other's`."""
    a, b = _flat(asdict(one)), _flat(asdict(other))
    changed = (key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key))
    return [f"{key}: {a.get(key, 'not set')} → {b.get(key, 'not set')}" for key in changed]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
