"""The audit: its statistics are right, it finds what is there, and it catches mechanisms that break their promise.

Noise comes from the operating system, so bounds on it are so wide that a false alarm is rarer than one in a million.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from tiny import SIZES, TRAINING, Tiny, initial
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from ist_fed.axes import infer
from ist_fed.cli import app
from ist_fed.errors import PrivacyError
from ist_fed.privacy import Mechanism, Privacy, mechanism
from ist_fed.privacy.accounting import Claim
from ist_fed.privacy.audit import Setting, canaries, membership_inference, update_inversion
from ist_fed.privacy.audit.bounds import area_bounds, epsilon_bound, rate_bounds
from ist_fed.rules import Disjoint, Full, Nested, Private, Rule
from ist_fed.tasks.digits import Digits
from ist_fed.train import train

NORMAL = NormalDist()


def promised(rule: Rule, noise: float, **settings: float) -> Mechanism:
    made = Privacy(**{"mode": "central", "epsilon": 8.0, "noise_multiplier": noise, **settings})  # type: ignore[arg-type]
    return mechanism(made, rule, clients=8, rounds=1)


# --- Statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doubt", [0.025, 1e-7])
@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (1, 1), (0, 4000), (1, 50), (30, 2000), (2000, 2000), (7, 9)])
def test_bounds_of_a_rate_are_quantiles_of_the_beta(hits: int, trials: int, doubt: float) -> None:
    low, high = rate_bounds(hits, trials, doubt)
    assert low == pytest.approx(beta.ppf(doubt, hits, trials - hits + 1) if hits else 0.0, rel=1e-6)
    assert high == pytest.approx(beta.isf(doubt, hits + 1, trials - hits) if hits < trials else 1.0, rel=1e-6)


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(PrivacyError, match="hits out of trials"):
        rate_bounds(3, 2, 0.05)


def test_the_area_is_sklearns_and_its_interval_holds_as_often_as_it_says() -> None:
    rng, truth, inside = np.random.default_rng(0), NORMAL.cdf(0.5 / 2**0.5), 0
    for _ in range(300):
        above, below = rng.normal(0.5, 1, 60), rng.normal(0, 1, 80)
        area, low, high = area_bounds(above, below, 0.025)
        inside += low <= truth <= high
    assert area == pytest.approx(roc_auc_score([1] * 60 + [0] * 80, np.concatenate([above, below])))
    assert 0.92 < inside / 300 < 0.98
    tied = area_bounds(np.array([1.0, 1, 2]), np.array([1.0, 0, 2]), 0.025)[0]
    assert tied == pytest.approx(roc_auc_score([1, 1, 1, 0, 0, 0], [1, 1, 2, 1, 0, 2]))


def delta_of_gaussian(shift: float, epsilon: float) -> float:
    """Balle and Wang, ICML 2018, theorem 8."""
    return NORMAL.cdf(shift / 2 - epsilon / shift) - exp(epsilon) * NORMAL.cdf(-shift / 2 - epsilon / shift)


@pytest.mark.parametrize("delta", [1e-5, 0.1])
@pytest.mark.parametrize("turned", [False, True])
def test_a_bound_of_epsilon_is_below_the_true_one_and_grows_towards_it(delta: float, turned: bool) -> None:
    """Of a Gaussian, whose ε is known; from whichever side it is easier to see."""
    rng, bounds = np.random.default_rng(1), []
    for trials in (1000, 100_000):
        present, absent = rng.normal(2, 1, trials), rng.normal(0, 1, trials)
        bounds.append(epsilon_bound(-absent if turned else present, -present if turned else absent, delta, 1e-6))
    assert 1.0 < bounds[0] < bounds[1]
    assert delta_of_gaussian(2.0, bounds[1]) > delta  # a larger ε than the bound is needed for this δ


def test_a_bound_is_wrong_as_seldom_as_it_says() -> None:
    """Where both distributions are one, every bound above zero is wrong."""
    rng = np.random.default_rng(2)
    wrong = sum(epsilon_bound(rng.normal(size=200), rng.normal(size=200), 0.0, 0.1) > 0 for _ in range(100))
    assert wrong / 100 <= 0.1


# --- Canaries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (Full(), {}),
        (Full(), {"sampling": 0.5}),
        (Private(groups=4), {}),
        (Private(groups=4), {"quantile": 0.5}),
        (Disjoint(groups=4), {}),
    ],
    ids=str,
)
def test_the_mechanism_leaks_no_more_than_is_reported(rule: Rule, settings: dict[str, float]) -> None:
    found = canaries(promised(rule, 0.4, **settings), rule, rounds=1, trials=2000)
    assert found.verdict == "promise holds"
    for row in found.numbers["epsilon"]:
        assert row["at least"] <= row["reported"]
    assert found.numbers["epsilon"][0]["at least"] > 0.3  # the attack sees something; usually 0.8 to 2


def test_noise_divided_by_the_blocks_is_caught() -> None:
    """The known mistake: the mean of k clients a block takes zC/k, not zC/(dk)."""
    rule = Private(groups=4)
    made = promised(rule, 1.0)
    less = replace(made, noise_multiplier=made.noise_multiplier / made.blocks)
    assert canaries(less, rule, rounds=1, trials=1500, claimed=made).verdict == "promise broken"


def test_a_permutation_with_the_amplified_epsilon_is_caught() -> None:
    """Other clients know a client's block by elimination; accounted as one block the same run keeps its promise."""
    rule = Disjoint(groups=24)
    wrong = promised(Private(groups=24), 0.8)
    assert canaries(wrong, rule, rounds=4, trials=2000, claimed=wrong).verdict == "promise broken"
    assert canaries(promised(rule, 0.8), rule, rounds=1, trials=500).verdict == "promise holds"


def test_clipping_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ist_fed.privacy.central.clipped", lambda update, limit: (dict(update), 0.0))
    found = canaries(promised(Full(), 1.0), Full(), rounds=1, trials=500)
    assert found.verdict == "promise broken"
    assert "do not release anything" in found.meaning


def test_rules_that_are_not_worked_out_are_said() -> None:
    found = canaries(promised(Full(), 1.0), Nested(), rounds=1, trials=100)
    assert found.verdict == "does not apply"
    assert "Nested" in found.meaning


# --- Update inversion -------------------------------------------------------------------------------------------------


def setting(rule: Rule, norm: str = "none", steps: int = 1) -> Setting:
    task = Tiny(norm=norm)
    return Setting(
        task=task,
        sizes=SIZES,
        axes=infer(task.build, SIZES),
        arrays=initial(task),
        rule=rule,
        clients=8,
        local_steps=steps,
        training=TRAINING,
        seed=1,
    )


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("rule", [Full(), Disjoint(groups=2, min_units=2), Private(groups=2, min_units=2)], ids=str)
def test_without_privacy_the_update_is_the_example(rule: Rule, norm: str) -> None:
    """Also by the direction alone, where the layer has no bias; and after several steps on the one example."""
    found = update_inversion(setting(rule, norm, steps=3), None, trials=10)
    assert found.verdict == "succeeds"
    assert found.numbers["recovered"] >= 9  # now and then every unit of a narrow layer is off


@pytest.mark.parametrize("rule", [Full(), Disjoint(groups=2, min_units=2), Private(groups=2, min_units=2)], ids=str)
def test_it_is_the_noise_that_hides_the_example_and_not_the_clipping(rule: Rule) -> None:
    made = promised(rule, 1.0)
    off = update_inversion(setting(rule), replace(made, noise_multiplier=0.0), trials=10)
    on = update_inversion(setting(rule), made, trials=10)
    assert off.numbers["recovered"] >= 9
    assert (on.verdict, on.numbers["recovered"]) == ("fails", 0)
    assert on.numbers["median correlation"] < 0.9


def test_where_it_does_not_apply_that_is_no_protection() -> None:
    images, sizes = Digits(model="cnn", norm="layer"), {"conv1": 16, "hidden1": 16}
    convolutions = replace(
        setting(Full()), task=images, sizes=sizes, axes=infer(images.build, sizes), arrays=initial(images, sizes)
    )
    for tried, why in ((setting(Full(), "batch"), "BatchNorm"), (convolutions, "no linear layer reads the examples")):
        found = update_inversion(tried, None)
        assert found.verdict == "does not apply"
        assert why in found.meaning
        assert "no protection" in found.meaning


# --- Membership inference ---------------------------------------------------------------------------------------------


def shown_to(steps: int) -> Any:
    """What is found of a network after so many steps on 40 examples whose labels are chance."""
    rng = np.random.default_rng(4)
    task = Tiny(norm="none")
    inputs, targets = rng.standard_normal((240, 12)), rng.integers(3, size=240)
    data = TensorDataset(torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets))
    members, others = TensorDataset(*data[:40]), TensorDataset(*data[40:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build(hidden1=64, hidden2=64)
    if steps:
        train(model, task, members, TRAINING, lr=0.1, steps=steps, rng=rng)
    return membership_inference(model, task, [members], others, rng)


def test_a_network_that_learnt_its_examples_by_heart_is_found_out() -> None:
    found = shown_to(500)
    assert found.verdict == "succeeds"
    assert found.numbers["AUC"] > 0.85
    assert found.numbers["TPR"] > 0.1 > 0.01 >= found.numbers["FPR"]


def test_a_network_that_saw_nothing_tells_nothing() -> None:
    found = shown_to(0)
    assert found.verdict == "fails"
    low, high = found.numbers["AUC, 95 %"]
    assert low < 0.5 < high


# --- The command ------------------------------------------------------------------------------------------------------

PRIVATE = ("privacy.mode=central", "privacy.epsilon=8.0", "round.weighting=uniform", 'rule={name="private",groups=4}')


def audited(*settings: str, output: str = "json", more: Sequence[str] = ()) -> tuple[int, str]:
    small = ("sizes.hidden1=64", "sizes.hidden2=64", "rounds=1", "local_steps=1", 'options.norm="none"', "device=cpu")
    sets = [word for text in (*small, *settings) for word in ("--set", text)]
    scenario = str(Path(__file__).parents[2] / "scenarios" / "digits-fedavg.toml")
    words = ["audit", scenario, *sets, "--trials", "300", "--rounds", "1", "--format", output]
    result = CliRunner().invoke(app, [*words, *more])
    return result.exit_code, result.stdout


def verdicts(text: str) -> Mapping[str, str]:
    return {finding["attack"]: finding["verdict"] for finding in json.loads(text)["findings"]}


def test_of_a_scenario_without_privacy_and_a_run_that_is_kept(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        code, text = audited(more=["--run", str(tmp_path / "run")])
        assert code == 0, text
        texts.append(text)
    assert texts[0] == texts[1]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    assert verdicts(text)["update inversion"] == "succeeds"
    assert verdicts(text)["canaries"] == "does not apply"


@pytest.mark.parametrize("output", ["json", "text"])
def test_of_a_private_one(output: str) -> None:
    code, text = audited(*PRIVATE, output=output)
    assert code == 0, text
    if output == "json":
        assert verdicts(text)["update inversion"] == "fails"
        assert verdicts(text)["canaries"] == "promise holds"
    else:
        assert "promise holds" in text
        assert "reported" in text


def test_a_broken_promise_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Claim(0.0, 2.0, "remove")
    monkeypatch.setattr("ist_fed.privacy.audit.canary.epsilon_of", lambda steps, delta: nothing)
    code, text = audited(*PRIVATE, "privacy.noise_multiplier=0.1", "privacy.epsilon=1000000.0")
    assert code == 1
    assert verdicts(text)["canaries"] == "promise broken"
