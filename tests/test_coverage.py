"""Coverage counts coordinates exactly: the same fraction as marking every one of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Network
from torch import Tensor

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import Axes, infer, parse
from ist_fed.coverage import Coverage
from ist_fed.errors import AxesError
from ist_fed.places import Units
from ist_fed.rules import Disjoint, Full, Node
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract
from ist_fed.tensors import read, written


def counted(arrays: dict[str, Tensor], axes: Axes, plan: list[Units]) -> float:
    """The oracle: merge ones into zeros, and count."""
    arrays = {name: array for name, array in arrays.items() if array.is_floating_point()}
    zeros, ones = (
        {name: fill(array) for name, array in arrays.items()} for fill in (torch.zeros_like, torch.ones_like)
    )
    merge = Merge(zeros, axes)
    for units in plan:
        merge.add(units, extract(ones, axes, units))
    result = merge.result().values()
    return sum(int(array.count_nonzero()) for array in result) / sum(array.numel() for array in result)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@settings(max_examples=5)
@given(st.integers(0, 6), st.integers(0, 1 << 32))
def test_the_fraction_is_what_counting_gives(network: Network, count: int, seed: int) -> None:
    axes, rng = infer(network.build, network.sizes, network.declared), np.random.default_rng(seed)
    arrays = arrays_of(network.build(**network.sizes))
    plan: list[Units] = []
    for _ in range(count):
        share = {axis: rng.integers(min(1, size - 1), size + 1) for axis, size in network.sizes.items()}
        plan.append({a: torch.from_numpy(rng.permutation(size)[: share[a]]) for a, size in network.sizes.items()})
        if rng.integers(2):  # an axis left out is held whole
            plan[-1] = {axis: held for axis, held in plan[-1].items() if axis != next(iter(plan[-1]))}
    coverage = Coverage(arrays, axes, network.sizes)
    for units in plan:
        coverage.mark(units)
    assert coverage.fraction() == pytest.approx(counted(arrays, axes, plan), abs=1e-12)


def test_nothing_is_covered_at_first_and_all_after_one_round_of_everything() -> None:
    network = NETWORKS["cnn"]
    coverage = Coverage(
        arrays_of(build_on_meta(network.build, network.sizes)), infer(network.build, network.sizes), network.sizes
    )
    assert coverage.fraction() == 0
    coverage.mark(Full()(1, [Node(1)], network.sizes, generator(0))[1])
    assert coverage.fraction() == 1


def test_one_round_of_disjoint_groups_covers_what_the_paper_says() -> None:
    """All of the first and last layers, 1/n of a hidden one."""
    sizes, axes = {"a": 64, "b": 32}, {"in": parse("a ."), "mid": parse("b a"), "out": parse(". b")}
    arrays = {"in": torch.empty(64, 10), "mid": torch.empty(32, 64), "out": torch.empty(5, 32)}
    coverage = Coverage(arrays, axes, sizes)
    for units in Disjoint(groups=4, min_units=1)(1, [Node(i) for i in range(4)], sizes, generator(0)).subnets:
        coverage.mark(units)
    assert coverage.fraction() == (640 + 32 * 64 / 4 + 160) / (640 + 32 * 64 + 160)


def test_marks_are_taken_up_again() -> None:
    network = NETWORKS["mlp"]
    arrays, axes = arrays_of(network.build(**network.sizes)), infer(network.build, network.sizes)
    one, other = (Coverage(arrays, axes, network.sizes) for _ in range(2))
    one.mark({"hidden1": torch.tensor([1, 4]), "hidden2": torch.tensor([0])})
    state = {name: marks.clone() for name, marks in one.state().items()}
    other.load(state)
    assert other.fraction() == one.fraction() > 0
    other.mark({})
    assert other.fraction() == 1
    assert all(torch.equal(marks, state[name]) for name, marks in one.state().items())  # nothing is shared


def test_trainings_of_units_are_counted_and_taken_up_again() -> None:
    axes = {"w": parse("a b")}
    one, other = (Coverage({"w": torch.empty(2, 3)}, axes, {"a": 2, "b": 3}) for _ in range(2))
    one.mark({"a": torch.tensor([1]), "b": torch.tensor([0, 2])})
    one.mark({"a": torch.tensor([0, 1])})  # an axis left out is held whole
    assert {axis: counts.tolist() for axis, counts in one.trained.items()} == {"a": [1, 2], "b": [2, 1, 2]}
    other.load({name: marks.clone() for name, marks in one.state().items()})
    other.mark({})
    assert {axis: counts.tolist() for axis, counts in other.trained.items()} == {"a": [2, 3], "b": [3, 2, 3]}


def test_a_checkpoint_of_before_units_were_counted_is_taken_up() -> None:
    axes = {"w": parse("a b")}
    coverage = Coverage({"w": torch.empty(2, 3)}, axes, {"a": 2, "b": 3})
    coverage.load({"a/b": torch.ones(2, 3).bool()})
    assert coverage.fraction() == 1
    assert coverage.trained["a"].tolist() == [0, 0]


def test_marks_of_another_network_are_refused() -> None:
    axes = {"w": parse("a b")}
    coverage = Coverage({"w": torch.empty(2, 3)}, axes, {"a": 2, "b": 3})
    for state in (
        {},
        {"a/b": torch.ones(3, 2).bool()},
        {"a/b": torch.ones(2, 3).bool(), "a": torch.ones(2).bool()},
        {"a/b": torch.ones(2, 3).bool(), "trained:a": torch.ones(2)},
    ):
        with pytest.raises(AxesError, match="must be this network's"):
            coverage.load(state)
    assert coverage.fraction() == 0


def test_marks_that_are_all_the_same_take_no_memory_and_are_saved_and_changed_like_others(tmp_path: Path) -> None:
    axes, sizes = {"w": parse("a b")}, {"a": 200, "b": 300}
    one, other = (Coverage({"w": torch.empty(200, 300)}, axes, sizes) for _ in range(2))
    half = {"a": torch.arange(100), "b": torch.arange(300)}
    rest = {"a": torch.arange(100, 200), "b": torch.arange(300)}
    states = [one.state()]
    for units in (half, rest):
        one.mark(units)
        one.fraction()
        states.append(one.state())
    assert [int(state["a/b"].sum()) for state in states] == [0, 30_000, 60_000]
    assert [state["a/b"].untyped_storage().nbytes() for state in states] == [1, 60_000, 1]
    for state, (share, marked) in zip(states, [(0, 0.5), (0.5, 0.5), (1, 1)], strict=True):
        path = tmp_path / "marks"
        path.write_bytes(b"".join(written(state)))
        other.load(read(path))
        assert other.fraction() == share
        other.mark(half)
        assert other.fraction() == marked
