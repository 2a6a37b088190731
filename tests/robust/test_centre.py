"""Centres of cohorts: laws that hold for any members, whatever some of them hold."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ist_fed.flat import flat, joined
from ist_fed.robust import centre
from ist_fed.robust.centre import cut

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


def of(rows: list[list[float]], kind: str, weights: list[float] | None = None, trim: float = 0.2) -> list[float]:
    parts = [joined({"a": torch.tensor(row, dtype=torch.float32)}) for row in rows]
    return centre(parts, weights or [1.0] * len(parts), kind, trim)["a"].tolist()  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_minority_cannot_move_a_coordinate_out_of_the_range_of_the_others(data: st.DataObject) -> None:
    members = data.draw(st.integers(3, 9))
    kind, trim = data.draw(st.sampled_from(["median", "trimmed"])), data.draw(st.floats(0.05, 0.49))
    most = (members - 1) // 2 if kind == "median" else cut(members, trim)
    liars = data.draw(st.integers(0, most))
    rows = [data.draw(st.lists(NUMBERS, min_size=3, max_size=3)) for _ in range(members)]
    made = of(data.draw(st.permutations(rows)), kind, trim=trim)
    honest = rows[liars:]
    for at, value in enumerate(made):
        assert min(row[at] for row in honest) <= value <= max(row[at] for row in honest)


@given(st.lists(NUMBERS, min_size=3, max_size=9), st.floats(0.05, 0.49))
@settings(max_examples=100, deadline=None)
def test_centres_are_those_of_the_textbook(numbers: list[float], trim: float) -> None:
    rows, ordered = [[number] for number in numbers], sorted(numbers)
    out = cut(len(numbers), trim)
    scale = max(map(abs, numbers)) * 1e-6
    assert of(rows, "median")[0] == pytest.approx(statistics.median(numbers), rel=1e-6, abs=scale)
    expected = statistics.fmean(ordered[out : len(ordered) - out])
    assert of(rows, "trimmed", trim=trim)[0] == pytest.approx(expected, rel=1e-6, abs=scale)
    weights = [float(at + 1) for at in range(len(numbers))]
    expected = statistics.fmean(numbers, weights)
    assert of(rows, "mean", weights)[0] == pytest.approx(expected, rel=1e-6, abs=scale)


@pytest.mark.parametrize("kind", ["mean", "median", "trimmed"])
@pytest.mark.parametrize("members", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_all_agree_every_centre_is_what_they_agree_on(kind: str, members: int, dtype: torch.dtype) -> None:
    array = torch.tensor([0.0, -0.0, 1.0, 3.0, -2.5]).to(dtype)
    parts = [joined({"a": array.clone()}) for _ in range(members)]
    made = centre(parts, [1.0 + at for at in range(members)], kind)["a"]  # type: ignore[arg-type]
    assert made.dtype == dtype
    assert bits(made) == bits(array)


@pytest.mark.parametrize("kind", ["median", "trimmed"])
def test_two_members_give_their_weighted_mean(kind: str) -> None:
    assert of([[0.0], [3.0]], kind, [1.0, 2.0]) == [2.0]


@pytest.mark.parametrize(
    ("members", "trim", "out"), [(3, 0.1, 1), (5, 0.2, 1), (10, 0.1, 1), (10, 0.3, 3), (4, 0.49, 1)]
)
def test_at_least_one_is_left_out_and_one_stays(members: int, trim: float, out: int) -> None:
    assert cut(members, trim) == out


def test_arrays_longer_than_a_chunk_and_of_several_dtypes() -> None:
    torch.manual_seed(0)
    parts = [{"a": torch.randn(300_000), "n": torch.tensor([step]), "b": torch.randn(7, 5)} for step in (4, 900, 5)]
    made = centre([flat(part) for part in parts], [1.0] * 3, "median")
    assert torch.equal(made["a"], torch.stack([part["a"] for part in parts]).median(dim=0).values)
    assert torch.equal(made["b"], torch.stack([part["b"] for part in parts]).median(dim=0).values)
    assert made["n"].tolist() == [5]


def bits(array: Tensor) -> bytes:
    return array.contiguous().view(torch.uint8).numpy().tobytes()
