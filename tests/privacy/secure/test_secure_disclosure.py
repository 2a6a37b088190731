"""What may be said of secure rounds, and on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ist_fed.cli import app
from ist_fed.cli.privacy import disclosure_of
from ist_fed.errors import PrivacyError, ScenarioError
from ist_fed.privacy.secure import Secure, fit_grid
from ist_fed.privacy.secure.accounting import epsilon, release
from ist_fed.privacy.secure.disclosure import CohortSize, disclose_secure, spent
from ist_fed.scenario import load_scenario

SCENARIO = Path(__file__).parents[3] / "scenarios" / "digits-secure.toml"
COHORTS = [CohortSize(members=6, length=1000), CohortSize(members=12, length=5000)]


def test_the_number_is_the_accountants_for_the_cohort_it_is_worst_for() -> None:
    settings = Secure(noise=4.0)
    said = disclose_secure(settings, COHORTS, rounds=30)
    each = [
        epsilon({release(fit_grid(clip=1.0, noise=4.0, length=1000, members=6, threshold=5), 5): 30}, 1e-5),
        epsilon({release(fit_grid(clip=1.0, noise=4.0, length=5000, members=12, threshold=9), 9): 30}, 1e-5),
    ]
    assert said.epsilons["rdp"] == said.curve[30] == max(each)
    assert list(said.curve) == [1, 2, 5, 10, 20, 30]
    assert list(said.curve.values()) == sorted(said.curve.values())


def test_the_noise_needed_is_just_enough() -> None:
    for target, needed in disclose_secure(Secure(), COHORTS, rounds=30).needed.items():
        assert 0.99 * target < spent(Secure(noise=needed["secure.noise"]), COHORTS, 30) <= target


def test_a_budget_that_no_noise_reaches_is_left_out() -> None:
    assert not disclose_secure(Secure(), COHORTS, rounds=10_000_000).needed


def test_without_noise_there_is_no_epsilon() -> None:
    said = disclose_secure(Secure(), COHORTS, rounds=30)
    assert not said.epsilons
    assert not said.curve
    assert "no differential privacy" in said.facts["noise counted"]


def test_the_command_says_it_of_a_scenario() -> None:
    result = CliRunner().invoke(app, ["privacy", str(SCENARIO), "--set", "secure.noise=4", "--format", "json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["facts"]["cohorts"] == "6 clients"
    assert said["epsilons"]["rdp"] == said["curve"]["40"] > 0
    shown = CliRunner().invoke(app, ["privacy", str(SCENARIO)])
    assert shown.exit_code == 0
    assert "secure.noise" in shown.output


def test_bad_input_is_told() -> None:
    scenario = load_scenario(SCENARIO)
    with pytest.raises(PrivacyError, match="leave --pld out"):
        disclosure_of(scenario, losses=True)
    with pytest.raises(ScenarioError, match="at least 5 clients"):
        disclosure_of(replace(scenario, clients=8))
    wide = replace(scenario, secure=Secure(noise=100.0), clients=4000, sizes={"hidden1": 40_000, "hidden2": 40_000})
    with pytest.raises(ScenarioError, match="does not fit in 32 bits"):
        disclosure_of(wide)
