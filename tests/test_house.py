"""Imports go one way: a room stands on the rooms listed before it, and nothing looks back up."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    ["errors"],
    ["seeds", "files", "tensors", "arrays", "flat", "device", "board", "tables", "pki", "capacity", "clock"],
    ["axes", "models"],
    ["places", "tasks"],
    ["subnet", "batches"],
    ["symmetry", "coverage", "rules", "server_optimizer", "optimizer_state"],
    ["batchnorm"],
    ["train", "evaluate", "wire"],
    ["rescale", "travelling"],
    ["cohort", "batched", "phases", "privacy", "robust"],
    ["round", "cost", "network", "updates"],
    ["secrecy", "budget"],
    ["worker"],
    ["liveness"],
    ["exchange"],
    ["roster", "sealed"],
    ["lending", "options"],
    ["conductor"],
    ["strategy", "scenario"],
    ["checkpoints", "metrics"],
    ["run"],
    ["federation", "report", "progress", "methods", "search"],
    ["engines"],
    ["cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
STRANGERS_TO_AXES = {"models", "tasks", "batches", "batchnorm", "train", "evaluate"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def files() -> list[Path]:
    entrances = {ROOT / "ist_fed" / "__init__.py", ROOT / "ist_fed" / "__main__.py"}
    return [path for path in (ROOT / "ist_fed").rglob("*.py") if path not in entrances]


def own_room(path: Path) -> str:
    return path.relative_to(ROOT / "ist_fed").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    here = own_room(path)
    for module in imported(path):
        if module.startswith("ist_fed."):
            there = room(module)
            if there in FLOOR and there != here:
                assert FLOOR[there] < FLOOR[here], f"{here} must not import {there}"
        assert not re.match(r"(server|client|scenarios|tests|benchmarks)\b", module), f"{here} looks back at its users"


def test_every_room_stands_on_a_floor() -> None:
    assert {own_room(path) for path in files()} == FLOOR.keys()


@pytest.mark.parametrize("stranger", sorted(STRANGERS_TO_AXES))
def test_models_tasks_and_training_know_nothing_of_axes_or_flower(stranger: str) -> None:
    for path in files():
        if own_room(path) == stranger:
            modules = imported(path)
            assert not any(re.match(r"ist_fed\.(axes|places|subnet|rules|wire)\b", module) for module in modules)
            assert not any(module.split(".")[0] == "flwr" for module in modules)


def test_server_and_client_do_not_know_each_other() -> None:
    for one, other in (("server", "client"), ("client", "server")):
        for path in (ROOT / one).rglob("*.py"):
            assert not any(module.split(".")[0] == other for module in imported(path))


def test_only_wire_reads_flowers_records() -> None:
    for path in files():
        if own_room(path) != "wire":
            assert not re.search(r"\.(array|config|metric)_records\b", path.read_text()), path


def test_nothing_is_pickled() -> None:
    for path in [*files(), *(ROOT / "server").rglob("*.py"), *(ROOT / "client").rglob("*.py")]:
        assert not re.search(r"\bpickle\b|torch\.load\(|torch\.save\(|allow_pickle=True", path.read_text()), path


def test_the_public_face_is_what_the_design_says() -> None:
    import ist_fed

    assert sorted(ist_fed.__all__) == sorted(
        ["IndependentSubnetTraining", "Merge", "Task", "Training", "Worker", "extract", "infer", "rules"]
    )
    assert all(hasattr(ist_fed, name) for name in ist_fed.__all__)


def test_the_version_is_said_once() -> None:
    import ist_fed

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ist_fed.__version__ == project["version"]
