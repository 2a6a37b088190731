"""Server optimisers: the formulas, the law that nobody's coordinate is touched, and resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ist_fed import extract, rules
from ist_fed.errors import AxesError
from ist_fed.scenario import parse_scenario
from ist_fed.server_optimizer import Kind, Server, ServerOptimizer, apply_change, trained_where

HALVES = rules.Disjoint(groups=2, min_units=1)
KINDS: tuple[Kind, ...] = ("momentum", "adam")


# --- The formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_are_those_of_the_papers(kind: Kind) -> None:
    """Against the papers' lines, written down in NumPy, coordinate by coordinate, over rounds that train only some."""
    rng = np.random.default_rng(0)
    how = ServerOptimizer(optimizer=kind, lr=0.5, momentum=0.8, beta2=0.7, epsilon=0.1)
    x = rng.standard_normal(6)
    m, v = np.zeros(6), np.zeros(6)
    arrays, moments = {"w": torch.tensor(x)}, dict[str, Tensor]()
    for _ in range(5):
        mask, change = rng.random(6) < 0.5, rng.standard_normal(6)
        after = np.where(mask, x + change, x)
        for i in np.flatnonzero(mask):
            delta = after[i] - x[i]
            if kind == "momentum":
                m[i] = 0.8 * m[i] + delta
                x[i] += 0.5 * m[i]
            else:
                m[i] = 0.8 * m[i] + (1 - 0.8) * delta
                v[i] = 0.7 * v[i] + (1 - 0.7) * delta**2
                x[i] += 0.5 * m[i] / (np.sqrt(v[i]) + 0.1)
        trained = {"w": torch.tensor(mask)}
        arrays, moments = apply_change(how, arrays, {"w": torch.tensor(after)}, trained, moments)
        assert arrays["w"].numpy() == pytest.approx(x, abs=1e-12)
        assert moments["first/w"].numpy() == pytest.approx(m, abs=1e-12)


def test_where_somebody_trained_is_where_the_subnets_stand() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES)
    arrays = tiny.initial(tiny.Tiny())
    held = [{"hidden1": torch.tensor([1, 4]), "hidden2": torch.tensor([0])}, {"hidden1": torch.tensor([5])}]
    found = trained_where(arrays, made.axes, held)
    for units in held:
        assert all(bool(part.all()) for part in extract(found, made.axes, units).values())
    assert found["4.weight"].sum() == 2 + 20  # hidden2 × hidden1; who names no unit of hidden2 holds all
    assert found["1.weight"].sum() == 3 * tiny.INPUTS


# --- In a run ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(KINDS), refused=st.sets(st.integers(0, 2), max_size=2))
def test_a_coordinate_that_nobody_trained_keeps_its_bits_and_its_moments(kind: Kind, refused: set[int]) -> None:
    """Law 4, of the network and of the moments, also where the holder's reply was refused."""
    task = tiny.Tiny(poisoned=sorted(refused))
    run = tiny.federate(
        task, rules.Disjoint(groups=3, min_units=1), 3, rounds=2, server_optimizer=ServerOptimizer(optimizer=kind)
    )
    one, two = run.reports
    held = [run.plans[1][node] for node in range(3) if node not in refused]
    trained = trained_where(run.before, run.strategy.axes, held)
    before = tiny.federate(
        task, rules.Disjoint(groups=3, min_units=1), 3, rounds=1, server_optimizer=ServerOptimizer(optimizer=kind)
    ).strategy.server.state()
    moved = False
    for name, mask in trained.items():
        assert torch.equal(one.arrays[name][~mask], two.arrays[name][~mask])
        moved |= bool((one.arrays[name] != two.arrays[name])[mask].any())
    for key, moment in run.strategy.server.state().items():
        mask = trained[key.partition("/")[2]]
        assert torch.equal(moment[~mask], before[key][~mask])
    assert moved


def test_none_is_the_merge_and_buffers_are_always_as_merged() -> None:
    plain = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=1)
    assert tiny.same(plain.after, tiny.federate(tiny.Tiny(), HALVES, 2, server_optimizer=ServerOptimizer()).after)
    still = ServerOptimizer(optimizer="momentum", momentum=0.0)
    run = tiny.federate(tiny.Tiny(), HALVES, 2, server_optimizer=still)
    assert run.after.keys() == plain.after.keys()
    for name, array in run.after.items():
        assert torch.allclose(array, plain.after[name], atol=1e-6)
    for name in ("2.running_mean", "2.num_batches_tracked"):
        assert torch.equal(run.after[name], plain.after[name])
    assert not any("running" in key for key in run.strategy.server.state())


SCENARIO = replace(runs.DIGITS, server=ServerOptimizer(optimizer="adam", lr=0.05))


@pytest.mark.parametrize("kind", KINDS)
def test_resume(tmp_path: Path, kind: Kind) -> None:
    scenario = replace(SCENARIO, server=replace(SCENARIO.server, optimizer=kind))
    whole, run = runs.whole(tmp_path / "whole", scenario), runs.resumed(tmp_path / "run", scenario)
    assert tiny.same(runs.model_of(run), runs.model_of(whole))
    assert tiny.same(*(dict(sorted(one.restore().moments.items())) for one in (run, whole)))


def test_moments_of_another_network_are_refused() -> None:
    server = Server(ServerOptimizer(optimizer="adam"), ["w"], {})
    with pytest.raises(AxesError, match="must be of this network's parameters; 'v' is none"):
        server.load({"first/v": torch.zeros(1)})


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("server.lr=0.0", r"\[server\] lr must be positive and finite, but is 0.0"),
        ("server.momentum=1.0", r"\[server\] momentum must be at least 0 and less than 1, but is 1.0"),
        ("server.optimizer=adamw", "'server.optimizer' must be one of 'none', 'momentum', 'adam', but is 'adamw'"),
        ("server.beta1=0.5", "there is no key 'server.beta1'; did you mean 'beta2'"),
    ],
)
def test_a_wrong_value_is_named(setting: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parse_scenario(SCENARIO.to_toml(), [setting])
