"""Reading a scenario: TOML and overrides → `Scenario`. Unknown keys and wrong types are errors."""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from ist_fed.errors import ScenarioError
from ist_fed.rules import RULES
from ist_fed.scenario.description import Scenario
from ist_fed.tables import from_table, override


def load_scenario(path: Path | str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file.

    Args:
        path: of the TOML file.
        overrides: `key=value`, the value in TOML, as in `training.lr=0.05`.

    Raises:
        ScenarioError: the file cannot be read, or a key, a type or a value is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScenarioError(f"scenario '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"a scenario is a text file in UTF-8, but '{path}' is not: {error}") from error
    try:
        return parse_scenario(text, overrides)
    except ScenarioError as error:
        changed = "".join(f" --set {shlex.quote(setting)}" for setting in overrides)
        raise ScenarioError(f"{path}{' with' if changed else ''}{changed}: {error}") from error


def parse_scenario(text: str, overrides: Sequence[str] = ()) -> Scenario:
    """The same from the text of a scenario file."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ScenarioError(f"a scenario is written in TOML, but this is not: {error}") from error
    for setting in overrides:
        override(table, setting)
    privacy = table.get("privacy")
    if isinstance(privacy, dict) and privacy and "mode" not in privacy:
        raise ScenarioError(
            "[privacy] says by privacy.mode what is promised, 'central' or 'secure', and without it nothing is; add "
            "it, or leave [privacy] out"
        )
    scenario: Scenario = from_table(Scenario, table, elsewhere=every_key())
    scenario.make_rule()
    scenario.make_phases()
    return scenario


def from_run_config(config: Mapping[str, object], app: Path) -> Scenario:
    """The scenario that Flower's run configuration describes.

    Args:
        config: `scenario` is a path within the app, or the text of a scenario; `set` is overrides, space between them.
        app: the app's folder.
    """
    value, overrides = str(config["scenario"]), shlex.split(str(config.get("set", "")))
    return parse_scenario(value, overrides) if "\n" in value else load_scenario(app / value, overrides)


@cache
def every_key() -> tuple[str, ...]:
    """Every key that a scenario may have, as `training.lr`; but for those of `options` and `sizes`."""
    hints = get_type_hints(Scenario)
    keys = [f.name for f in fields(Scenario)]
    keys += [f"{name}.{f.name}" for name in keys if is_dataclass(kind := hints[name]) for f in fields(kind)]
    rules: list[Any] = [rule for rule in RULES.values() if is_dataclass(rule)]
    return (*keys, *(f"rule.{f.name}" for rule in rules for f in fields(rule)))
