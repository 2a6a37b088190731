"""What a scenario may say of itself, on the command line and in its run's folder."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ist_fed.cli import app
from ist_fed.cli.privacy import disclosure_of
from ist_fed.engines.local import simulate
from ist_fed.errors import PrivacyError, RunError, ScenarioError
from ist_fed.privacy import Privacy
from ist_fed.privacy.accounting import Gaussian, Partition, Repeated, Sampled, epsilon
from ist_fed.report.holdings import plans_of
from ist_fed.run import Run
from ist_fed.scenario import Record, Rounds, Scenario, parse_scenario

SCENARIO = Scenario(
    name="private",
    task="digits",
    sizes={"hidden1": 32},
    rule={"name": "private", "groups": 2},
    clients=4,
    rounds=2,
    local_steps=1,
    device="cpu",
    round=Rounds(weighting="uniform"),
    record=Record(checkpoint_every=1, tensorboard=False),
    privacy=Privacy(mode="central", epsilon=50.0, noise_multiplier=1.0, sampling=0.5, quantile=0.5),
)


def with_rule(**rule: object) -> Scenario:
    return replace(SCENARIO, rule=rule)


def test_the_numbers_are_the_accountants() -> None:
    said = disclosure_of(SCENARIO)
    together = Gaussian(((2 * 1.0) ** -2 + 2.0**-2) ** -0.5)  # shared parameters and the count, each at z = 2
    rounds = Repeated(2, Sampled(0.5, Partition(2, Gaussian(1.0), together)))
    assert said.epsilons["rdp"] == pytest.approx(epsilon(rounds, 1e-5))
    assert said.curve[2] == said.epsilons["rdp"] > said.curve[1]
    known = Repeated(2, Gaussian((1 + 0.25 + 0.25) ** -0.5))
    assert said.epsilons["rdp, who knows the draws (d = 1, q = 1)"] == pytest.approx(epsilon(known, 1e-5))
    drawn = [noise for noise, _ in said.needed.values()]
    assert drawn == sorted(drawn, reverse=True)
    assert all(drawn < known for drawn, known in said.needed.values())


def test_a_permutation_is_accounted_without_blocks_and_says_why() -> None:
    said = disclosure_of(with_rule(name="disjoint", groups=2))
    assert said.facts["d"] == 1
    assert "not amplified" in said.facts["why"]
    assert said.epsilons["rdp"] > disclosure_of(SCENARIO).epsilons["rdp"]


@pytest.mark.parametrize("output", ["text", "json"])
def test_the_command_prints_the_whole_disclosure(tmp_path: Path, output: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO.to_toml())
    result = CliRunner().invoke(app, ["privacy", str(path), "--format", output])
    assert result.exit_code == 0, result.output
    text = " ".join(re.sub(r"[│┃]", " ", result.output).split())
    for word in ("adjacency", "adversary", "assignment", "denominators", "delta", "not"):
        assert word in text
    assert output == "text" or json.loads(result.output)["facts"]["T"] == 2


@pytest.mark.parametrize("delta", [1e-12, 1e-20])
def test_a_tiny_delta_is_said_in_json_or_left_out(tmp_path: Path, delta: float) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO.to_toml())
    asked = ["privacy", str(path), "--pld", "--set", f"privacy.delta={delta}", "--format", "json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    said = json.loads(result.output, parse_constant=pytest.fail)["epsilons"]
    assert ("pld" in said) == (delta > 1e-15)


def test_a_delta_that_promises_nothing_is_refused() -> None:
    with pytest.raises(PrivacyError, match="below one over the number of clients"):
        disclosure_of(replace(SCENARIO, privacy=replace(SCENARIO.privacy, delta=0.25)))


def test_without_a_promise_there_is_nothing_to_say() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.mode = 'central'"):
        disclosure_of(replace(SCENARIO, privacy=Privacy()))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("round.weighting=examples", "no client counts more than another"),
        ("round.adapt=true", "nothing may follow how long clients take"),
        ("privacy.epsilon=0.0", "the budget of a private run"),
        ("privacy.sampling=0.0", "a probability above 0"),
        ("privacy.delta=1.0", "delta must lie"),
        ("privacy.clip=0.0", "clip must be positive"),
        ("privacy.noise_multiplier=-1.0", "not negative"),
        ("privacy.quantile=1.0", "at least 0 and below 1"),
        ("privacy.mode='central '", "must be one of"),
        ("privacy.seed=1", "there is no key 'privacy.seed'"),
    ],
)
def test_a_scenario_that_breaks_a_condition_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        parse_scenario(SCENARIO.to_toml(), [setting])


def test_a_run_writes_what_it_spent_and_nothing_of_any_client(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", SCENARIO)
    simulate(run)
    longer = Run.open(run.folder, replace(SCENARIO, rounds=3))
    simulate(longer, resume=True)
    lines = longer.metrics()
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert (line["train_loss"], line["merged"], line["refused"]) == (None, None, [])
        assert line["seconds"].keys() <= {"evaluate", "record"}
        assert (line["bytes_up"], line["coverage"]) == (lines[0]["bytes_up"], pytest.approx(line["coverage"]))
    spent = [line["epsilon"] for line in lines]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(disclosure_of(replace(SCENARIO, rounds=3)).epsilons["rdp"])
    ledger = [json.loads(line) for line in (run.folder / "privacy.jsonl").read_text().splitlines()]
    assert [entry["round"] for entry in ledger] == [1, 2, 3]
    assert [entry["clip"] for entry in ledger[1:]] == [entry["next_clip"] for entry in ledger[:-1]]
    with pytest.raises(RunError, match="nobody knows of a private run"):
        plans_of(SCENARIO, lines)
