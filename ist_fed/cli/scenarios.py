"""The scenario that a command is given: a file, or the name of one that ships with ist_fed."""

from pathlib import Path

from ist_fed.engines.flower import app_folder
from ist_fed.errors import ScenarioError
from ist_fed.scenario import Scenario, load_scenario


def find_scenario(name: str, settings: list[str] | None) -> Scenario:
    """The scenario at a path, or the shipped one of that name.

    Raises:
        ScenarioError: there is neither.
    """
    shipped = app_folder() / "scenarios"
    path = Path(name)
    if path.is_dir() or not path.exists():
        path = shipped / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
        folder = ", only a folder of that name" if Path(name).is_dir() else ""
        raise ScenarioError(f"there is no scenario file '{name}'{folder}; shipped scenarios are {known}")
    return load_scenario(path, settings or [])
