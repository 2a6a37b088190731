"""Engines by name, and where the time goes."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_cli import Command, ist_fed  # noqa: F401 - a fixture

from ist_fed.cli.profile import PHASES, phases


@pytest.mark.parametrize("engine", ["auto", "stacked", "factored"])
def test_engines_by_name_give_the_same_network(ist_fed: Command, engine: str) -> None:  # noqa: F811
    for name in (engine, "inprocess"):
        code, _, _ = ist_fed("simulate", "tiny.toml", "--engine", name, "--run", name)
        assert code == 0
    one, other = (load_file(f"{name}/model.safetensors") for name in (engine, "inprocess"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_an_interrupted_run_may_go_on_with_little_memory_and_ends_the_same(ist_fed: Command) -> None:  # noqa: F811
    ist_fed("simulate", "tiny.toml", "--memory", "1KiB", "--run", "whole")
    ist_fed("simulate", "tiny.toml", "--memory", "1KiB", "--set", "rounds=1", "--run", "part")
    code, _, _ = ist_fed("simulate", "tiny.toml", "--resume", "part", "--memory", "1KiB")
    assert code == 0
    assert Path("whole/model.safetensors").read_bytes() == Path("part/model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's profiler, of the machine
def test_profile_writes_a_trace_and_a_table(ist_fed: Command) -> None:  # noqa: F811
    code, out, _ = ist_fed("simulate", "tiny.toml", "--profile")
    assert code == 0
    assert "where the time goes" in out
    assert "runs/tiny/trace.json" in out
    names = {event.get("name") for event in json.loads(Path("runs/tiny/trace.json").read_text())["traceEvents"]}
    assert {"assign", "extract", "merge"} <= names


def test_options_of_this_process_are_refused_for_ray_before_anything_is_made(ist_fed: Command) -> None:  # noqa: F811
    for option in (["--profile"], ["--memory", "1GiB"]):
        code, _, err = ist_fed("simulate", "tiny.toml", "--engine", "ray", *option)
        assert code == 1
        assert "leave them out with --engine ray" in err
    assert not Path("runs").exists()


def test_memory_must_be_an_amount(ist_fed: Command) -> None:  # noqa: F811
    code, _, err = ist_fed("simulate", "tiny.toml", "--memory", "much")
    assert code == 1
    assert "an amount of memory is written like 2GiB" in err


def test_phases_are_medians_without_the_first_round() -> None:
    seconds = {"assign": 1.0, "extract": 2.0, "wait": 9.0, "train": 5.0, "merge": 3.0, "evaluate": 4.0, "record": 0.5}
    lines = [{"seconds": dict.fromkeys(seconds, 100.0)}, *[{"seconds": seconds}] * 3]
    assert phases(lines) == {
        "assign": 1.0, "extract": 2.0, "train": 5.0, "merge": 3.0, "other": 1.0, "evaluate": 4.0, "record": 0.5
    }  # fmt: skip
    assert phases(lines).keys() == PHASES.keys()
