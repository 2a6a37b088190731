"""Nested tables, as TOML gives them, to frozen dataclasses; what does not fit is an error that says what would."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ist_fed.errors import IstFedError, ScenarioError, nearest


def override(table: dict[str, Any], setting: str) -> None:
    """Set one key of a nested table, in place.

    Args:
        table: as read from a file.
        setting: `key=value`, the value in TOML, as in `training.lr=0.05`.

    Raises:
        ScenarioError: it is not written so, or a part of the key is a value.
    """
    path, equals, text = (part.strip() for part in setting.partition("="))
    *parents, last = path.split(".")
    if not (equals and last and all(parents)):
        raise ScenarioError(f"an override is written key=value, as in training.lr=0.05, but is '{setting}'")
    for depth, parent in enumerate(parents, 1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ScenarioError(f"'{path}' cannot be set: '{'.'.join(parents[:depth])}' is a value, not a table")
    table[last] = value_of(text)


def value_of(text: str) -> Any:
    """A TOML value; what is none is an unquoted string, as a shell leaves it."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def from_table(
    cls: Any, table: Mapping[str, Any], where: str = "", owner: str = "", elsewhere: Sequence[str] = ()
) -> Any:
    """A dataclass from a table, its keys and types checked.

    Args:
        cls: the dataclass; tables within the table make the dataclasses of its fields.
        table: as read from a file.
        where: the table's own key, for messages.
        owner: whose keys these are, for messages.
        elsewhere: keys of other tables, to point at where a key stands in the wrong one.

    Raises:
        ScenarioError: a key is unknown or missing, or a value has the wrong type or is refused by the dataclass.
    """
    hints, known = get_type_hints(cls), [f.name for f in fields(cls)]
    prefix = f"{where}." if where else ""
    for key in table:
        if key not in known:
            raise ScenarioError(f"there is no key '{prefix}{key}'{owner}{_meant(prefix, key, known, elsewhere)}")
    for f in fields(cls):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in table:
            raise ScenarioError(
                f"there must be a key '{prefix}{f.name}'{owner}, but it is missing; add it{_meaning(cls, f.name)}"
            )
    values = {key: _convert(hints[key], value, f"{prefix}{key}", elsewhere) for key, value in table.items()}
    try:
        return cls(**values)
    except (ValueError, IstFedError) as error:
        raise ScenarioError(f"[{where}] {error}" if where else str(error)) from error


def _meant(prefix: str, key: str, known: list[str], elsewhere: Sequence[str]) -> str:
    """What an unknown key may have been: the same word in another table, or the nearest in its own."""
    for other in elsewhere:
        if other.rpartition(".")[2] == key and other != f"{prefix}{key}":
            return f"; did you mean '{other}'?"
    return nearest(key, known) or "; it has no keys"


def _convert(kind: Any, value: Any, where: str, elsewhere: Sequence[str]) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ScenarioError(f"'{where}' must be a table, written [{where}], but is {value!r}")
        return from_table(kind, value, where, elsewhere=elsewhere)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise ScenarioError(f"'{where}' must be a list of tables, each written [[{where}]], but is {value!r}")
        return tuple(_convert(item, part, f"{where}[{at}]", elsewhere) for at, part in enumerate(value, 1))
    if get_origin(kind) is dict:
        item = get_args(kind)[1]
        if not isinstance(value, dict):
            raise ScenarioError(f"'{where}' must be a table, written [{where}], but is {value!r}")
        if item is Any:
            return dict(value)
        return {key: _convert(item, value[key], f"{where}.{key}", elsewhere) for key in value}
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ScenarioError(f"'{where}' must be one of {', '.join(map(repr, get_args(kind)))}, but is {value!r}")
        return value
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ScenarioError(f"'{where}' must be {_NAMES.get(kind, kind)}, but is {value!r}")
    return value


_NAMES = {
    int: "a whole number",
    float: "a number with a digit on each side of its point, such as 0.05",
    str: 'text, written in "quotes"',
    bool: "true or false",
}


def _meaning(cls: Any, name: str) -> str:
    """What a field means, in brackets, if the class's docstring says so."""
    lines = (line.strip() for line in (cls.__doc__ or "").splitlines())
    said = next((line.partition(": ")[2] for line in lines if line.startswith(f"{name}:")), "")
    return f" ({said.rstrip('.')})" if said else ""
