"""How a task is run: one TOML file, read into frozen dataclasses."""

from ist_fed.scenario.compare import differences
from ist_fed.scenario.description import Scenario
from ist_fed.scenario.reading import every_key, from_run_config, load_scenario, parse_scenario
from ist_fed.scenario.settings import Record, Rounds

__all__ = [
    "Record",
    "Rounds",
    "Scenario",
    "differences",
    "every_key",
    "from_run_config",
    "load_scenario",
    "parse_scenario",
]
