"""What one would use instead, on the same scenario and at equal budgets."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ist_fed.engines import ENGINES
from ist_fed.errors import RuleError, ScenarioError
from ist_fed.methods import METHODS, a_round, first_plan, in_all, method
from ist_fed.network import Network, Tier
from ist_fed.phases import Stretch
from ist_fed.rules import Full
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario
from ist_fed.server_optimizer import ServerOptimizer

SCENARIO = parse_scenario("""
name = "tiny"
task = "digits"
clients = 8
rounds = 4
local_steps = 5
record = { tensorboard = false, evaluate_every = 2 }
sizes = { hidden1 = 64, hidden2 = 64 }
rule = { name = "disjoint", groups = 4, min_units = 4 }
""")
UNEQUAL = replace(
    SCENARIO, network=Network(tiers={"large": Tier(), "half": Tier(width=0.5), "small": Tier(width=0.25)})
)


@pytest.mark.parametrize("name", METHODS)
def test_equal_steps_are_equal(name: str) -> None:
    made = method(name, SCENARIO, "steps")
    assert made.rounds * made.local_steps == SCENARIO.rounds * SCENARIO.local_steps
    assert (made.name, made.seed, made.clients) == (name, SCENARIO.seed, SCENARIO.clients)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", ["bytes", "arithmetic"])
def test_equal_bytes_and_arithmetic_are_equal_but_for_a_round(name: str, budget: str) -> None:
    long = replace(SCENARIO, rounds=400)
    made = method(name, long, budget)  # type: ignore[arg-type]
    spent, price = long.rounds * a_round(long)[budget], a_round(made)[budget]
    assert 0 <= made.rounds * price - spent < price


def test_phases_count_as_they_are() -> None:
    full = {"name": "full"}
    phased = replace(SCENARIO, phases=(Stretch(), Stretch(rounds=1, rule=full, local_steps=15)))
    dense = replace(SCENARIO, rule=full, local_steps=15)
    ends = {key: 3 * a_round(SCENARIO)[key] + a_round(dense)[key] for key in ("steps", "bytes", "arithmetic")}
    assert in_all(phased) == pytest.approx(ends)
    assert method("fedavg", phased, "steps").rounds == 6
    assert method("ist", phased, "bytes").phases == phased.phases


def test_the_scenario_as_it_stands_is_ist() -> None:
    assert replace(method("ist", SCENARIO, "bytes"), name="tiny") == SCENARIO


def test_ddp_is_one_step_at_a_time() -> None:
    made = method("ddp", SCENARIO, "steps")
    assert (made.local_steps, made.rounds, made.record.evaluate_every) == (1, 20, 10)
    assert made.make_rule() == Full()


def test_ddp_is_one_optimiser_with_momentum(tmp_path: Path) -> None:
    """With all examples in a batch, four rounds of it are four steps of torch's SGD."""
    change = [
        "clients=1",
        "rounds=1",
        "local_steps=4",
        "training.batch_size=5000",
        'options={norm="layer"}',
        "device=cpu",
    ]
    steps = parse_scenario(SCENARIO.to_toml(), [*change, 'rule={name="full"}'])
    found = []
    for made in (method("local", steps, "steps"), method("ddp", steps, "steps")):
        run = Run.create(tmp_path / made.name, made)
        ENGINES["inprocess"](run)
        found.append(load_file(run.folder / "model.safetensors"))
    local, ddp = found
    assert max(float((local[name] - ddp[name]).abs().max()) for name in local) < 1e-5
    afresh = replace(method("ddp", steps, "steps"), name="afresh", server=ServerOptimizer())
    run = Run.create(tmp_path / "afresh", afresh)
    ENGINES["inprocess"](run)
    other = load_file(run.folder / "model.safetensors")
    assert max(float((local[name] - other[name]).abs().max()) for name in local) > 1e-3


def test_the_weak_hold_what_they_can() -> None:
    held = [
        len(plan["hidden1"])
        for name in ("heterofl", "fedrolex", "dropout")
        for plan in [first_plan(method(name, UNEQUAL, "steps"))[node.id] for node in UNEQUAL.nodes()]
    ]
    limits = [int(64 * node.limit) for _ in range(3) for node in UNEQUAL.nodes()]
    assert held == limits


def test_the_weak_are_excluded() -> None:
    made = method("exclude-weak", UNEQUAL, "steps")
    strong = [node.id for node in UNEQUAL.nodes() if node.limit == 1]
    assert sorted(first_plan(made)) == strong
    assert 0 < len(strong) < 8


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ScenarioError, match="known: ") as caught:
        method("foo", SCENARIO, "steps")
    assert str(caught.value).count("heterofl") == 1
    with pytest.raises(ScenarioError, match="did you mean 'fedavg'"):
        method("fedvg", SCENARIO, "steps")


# --- Clients that can hold less, in simulation ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["inprocess", "stacked"])
def test_a_run_gives_the_weak_no_more_than_they_hold(engine: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", replace(method("heterofl", UNEQUAL, "steps"), rounds=1))
    ENGINES[engine](run)
    (line,) = run.metrics()
    assert line["limits"] == [node.limit for node in UNEQUAL.nodes()]
    assert line["bytes_down"] == pytest.approx(8 * a_round(run.scenario)["bytes"] / 2)


def test_a_run_without_the_weak(tmp_path: Path) -> None:
    made = method("exclude-weak", UNEQUAL, "steps")
    run = Run.create(tmp_path / "run", replace(made, rounds=1))
    ENGINES["inprocess"](run)
    assert run.metrics()[0]["clients"] == [node.id for node in made.nodes()]
    none = replace(made, rounds=1, network=Network(tiers={"half": Tier(width=0.5)}))
    with pytest.raises(RuleError, match="all 8 are such"):
        ENGINES["inprocess"](Run.create(tmp_path / "none", none))
