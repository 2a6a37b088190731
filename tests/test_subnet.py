"""Cut and merge, against the laws and an oracle that gathers by `np.ix_` and averages coordinate by coordinate."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Network
from torch import Tensor

from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.axes import Axes, Dim, infer, parse, sizes_of
from ist_fed.errors import AxesError
from ist_fed.flat import joined
from ist_fed.places import Units
from ist_fed.rules import Disjoint, Node
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, MergeInPlace, alike, axes_apart, extract, extract_each, small

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.uint8, torch.bool)
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(scope="module", params=["small", "small, by rows", "not small"], autouse=True)
def how_small(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every law holds for networks that are handled many subnets at once, and for those that are not."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "not small":
            patch.setattr(small, "SMALL", -1)
        if request.param == "small, by rows":
            patch.setattr(alike, "_LONG", 1)
        yield


# --- Random networks, plans and parts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A made-up wide network: any number of dimensions, axes that meet or repeat, blocks outside and inside a unit.

    Arrays may be owned by one block, by two, or by none.
    """

    sizes: dict[str, int]
    axes: dict[str, tuple[Dim, ...]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def random(self, seed: int, *, finite: bool = True) -> dict[str, Tensor]:
        """Arrays of any finite value; or of any bits at all: infinities, every nan, both zeros."""
        rng = np.random.default_rng(seed)
        return {name: _random(rng, self.shapes[name], self.dtypes[name], finite) for name in self.axes}

    def part(self, units: Units, seed: int, *, finite: bool = True) -> dict[str, Tensor]:
        """What a holder of `units` might send."""
        return extract(self.random(seed, finite=finite), self.axes, units)


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, finite: bool) -> Tensor:
    if dtype == torch.bool:
        return torch.as_tensor(rng.random(shape) < 0.5)
    if finite or not dtype.is_floating_point:
        return torch.as_tensor(20 * rng.standard_normal(shape)).to(dtype)
    any_bits = torch.as_tensor(rng.integers(-(1 << 62), 1 << 62, size=shape)).to(BITS[dtype.itemsize]).view(dtype)
    special = torch.as_tensor(rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], size=shape)).to(dtype)
    return torch.where(torch.as_tensor(rng.random(shape) < 0.5), special, any_bits)


@st.composite
def cases(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES) -> Case:
    sizes = {axis: draw(st.integers(1, 5)) for axis in "abc"} | {"o": 1, "p": 1}
    blocks = st.integers(1, 2)
    split = st.builds(Dim, st.sampled_from("abc"), blocks, blocks)
    owner = st.builds(Dim, st.sampled_from("op"), owner=st.just(True))
    axes, shapes = {}, {}
    for number in range(draw(st.integers(1, 4))):
        dims = tuple(draw(st.lists(st.just(Dim()) | split, max_size=4)))
        axes[f"array{number}"] = (*draw(st.lists(owner, max_size=2, unique=True)), *dims)
        shapes[f"array{number}"] = tuple(
            dim.outer * sizes[dim.axis] * dim.inner if dim.axis else draw(st.integers(1, 3)) for dim in dims
        )
    present = {dim.axis for own in axes.values() for dim in own}
    sizes = {axis: size for axis, size in sizes.items() if axis in present}
    return Case(sizes, axes, shapes, {name: draw(st.sampled_from(dtypes)) for name in axes})


def subsets(case: Case) -> st.SearchStrategy[dict[str, Tensor]]:
    """Units in any order, sometimes none of an axis; an axis may be left out."""

    def some(size: int) -> st.SearchStrategy[Tensor]:
        indices = st.lists(st.integers(0, size - 1), unique=True)
        return indices.map(lambda units: torch.tensor(units, dtype=torch.int64))

    each = {axis: some(size) for axis, size in case.sizes.items()}
    return st.fixed_dictionaries({}, optional=each)


def partition(case: Case, groups: int, seed: int) -> list[dict[str, Tensor]]:
    """Every axis cut at random into disjoint groups, some of which may be empty."""
    rng = np.random.default_rng(seed)
    owner = {axis: rng.integers(groups, size=size) for axis, size in case.sizes.items()}
    return [
        {axis: torch.from_numpy(np.flatnonzero(o == group)) for axis, o in owner.items()} for group in range(groups)
    ]


def there(case: Case, name: str, units: Units) -> bool:
    """Whether the units have the array at all."""
    return all(dim.axis not in units or len(units[dim.axis]) == 1 for dim in case.axes[name] if dim.owner)


def positions(case: Case, name: str, units: Units) -> tuple[np.ndarray, ...]:
    """The oracle: `np.ix_` of the entries that the units own in each dimension."""
    held = []
    for dim, length in zip([dim for dim in case.axes[name] if not dim.owner], case.shapes[name], strict=True):
        entries = np.arange(length)
        if dim.axis in units:
            entries = entries.reshape(dim.outer, -1, dim.inner)[:, units[dim.axis].numpy()].ravel()
        held.append(entries)
    return np.ix_(*held)


def bits(array: Tensor) -> Tensor:
    return array.view(BITS[array.itemsize])


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(bits(one[name]), bits(other[name])) for name in one
    )


Part = tuple[Units, Mapping[str, Tensor], float]


def merged(arrays: Mapping[str, Tensor], axes: Axes, parts: Sequence[Part]) -> dict[str, Tensor]:
    merge = Merge(arrays, axes)
    for units, part, weight in parts:
        merge.add(units, part, weight)
    return merge.result()


weights = st.floats(1e-3, 1e3)
seeds = st.integers(0, 1 << 32)

# --- extract ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_extract_is_numpys_ix(data: st.DataObject) -> None:
    case = data.draw(cases())
    units, arrays = data.draw(subsets(case)), case.random(data.draw(seeds), finite=False)
    part = extract(arrays, case.axes, units)
    assert list(part) == [name for name in arrays if there(case, name, units)]
    for name in part:
        expected = bits(arrays[name]).numpy()[positions(case, name, units)]
        assert np.array_equal(bits(part[name]).numpy(), expected)


@given(st.data())
def test_several_are_cut_as_one_by_one(data: st.DataObject) -> None:
    case = data.draw(cases())
    plan = [data.draw(subsets(case)) for _ in range(data.draw(st.integers(0, 20)))]
    arrays = case.random(1, finite=False)
    cut = [*extract_each(arrays, case.axes, plan)]
    assert len(cut) == len(plan)
    for units, part in zip(plan, cut, strict=True):
        alone = extract(arrays, case.axes, units)
        assert part.keys() == alone.keys()
        assert same_bits({name: part[name] for name in alone}, alone)


@given(st.data())
def test_what_a_merge_cut_itself_it_takes_back_like_any_other(data: st.DataObject) -> None:
    case = data.draw(cases())
    arrays = case.random(data.draw(seeds), finite=False)
    overlapping = st.lists(subsets(case), max_size=8)
    plan = data.draw(st.builds(partial(partition, case), st.integers(1, 8), seeds) | overlapping)
    merge = Merge(arrays, case.axes)
    for part, alone in zip(merge.cut(plan), extract_each(arrays, case.axes, plan), strict=True):
        assert same_bits(dict(part), dict(alone))
    sent: list[Part] = []
    for units in data.draw(st.lists(st.sampled_from(plan), max_size=12)) if plan else []:  # some fail, some are cohorts
        part = joined(case.part(units, data.draw(seeds), finite=False))
        sent.append((units, part if data.draw(st.booleans()) else dict(part), data.draw(weights)))
        same = units if data.draw(st.booleans()) else {axis: index.clone() for axis, index in units.items()}
        merge.add(same, *sent[-1][1:])
    assert same_bits(merge.result(), merged(arrays, case.axes, sent))


@given(st.data())
def test_how_the_arrays_lie_in_memory_is_of_no_account(data: st.DataObject) -> None:
    case = data.draw(cases([torch.float32, torch.float64, torch.int64, torch.bool]))
    units, arrays = data.draw(subsets(case)), case.random(data.draw(seeds))
    part = case.part(units, data.draw(seeds))

    def turned(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same values, in column-major order."""
        return {name: torch.from_numpy(np.asarray(array.numpy(), order="F")) for name, array in arrays.items()}

    assert same_bits(extract(turned(arrays), case.axes, units), extract(arrays, case.axes, units))
    sent = [(units, part, 1.0), ({}, arrays, 2.0), (units, part, 0.5), (units, part, 3.0)]
    for parts in (sent[:1], sent[1:2], sent[:2], sent):  # copied, averaged between subnets, and within one
        turned_parts = [(units, turned(part), weight) for units, part, weight in parts]
        assert same_bits(merged(turned(arrays), case.axes, turned_parts), merged(arrays, case.axes, parts))


def test_a_transposed_array_is_written_like_any_other() -> None:
    arrays, axes = {"w": torch.arange(30.0).view(5, 6).T}, {"w": parse("h k")}
    units = {"h": torch.tensor([1, 3]), "k": torch.tensor([0, 4])}
    result = merged(arrays, axes, [(units, {"w": torch.full((2, 2), -1.0)}, 1.0)])["w"]
    expected = arrays["w"].clone()
    expected[units["h"][:, None], units["k"]] = -1
    assert torch.equal(result, expected)


def test_large_arrays_are_cut_in_chunks_without_a_seam() -> None:
    arrays = {
        "block": torch.arange(1200 * 900.0).view(1200, 900),
        "columns": torch.arange(1000 * 900.0).view(1000, 900),
        "rows": torch.arange(1200 * 300.0).view(1200, 300),
        "filters": torch.arange(400 * 500 * 9).view(400, 500, 3, 3),
    }
    axes = {"block": parse("a b"), "columns": parse(". b"), "rows": parse("a ."), "filters": parse("c d . .")}
    units = some_units(sizes_of(arrays, axes), seed=0)
    part = extract(arrays, axes, units)
    assert torch.equal(part["block"], arrays["block"][units["a"]][:, units["b"]])
    assert torch.equal(part["columns"], arrays["columns"][:, units["b"]])
    assert torch.equal(part["rows"], arrays["rows"][units["a"]])
    assert torch.equal(part["filters"], arrays["filters"][units["c"]][:, units["d"]])
    blank = {name: torch.zeros_like(array) for name, array in arrays.items()}
    result = merged(blank, axes, [(units, part, 1.0)])
    assert same_bits(extract(result, axes, units), part)
    assert all(result[name].count_nonzero() == part[name].count_nonzero() for name in arrays)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", ["h k", ". k"])
def test_long_rows_are_written_in_every_dtype(dtype: torch.dtype, table: str) -> None:
    rng = np.random.default_rng(0)
    arrays, axes = {"w": torch.from_numpy(rng.integers(0, 100, (40, 900))).to(dtype)}, {"w": parse(table)}
    sizes = sizes_of(arrays, axes)
    units = {axis: torch.from_numpy(rng.permutation(size)[: size // 3]) for axis, size in sizes.items()}
    at = np.ix_(units["h"] if "h" in units else np.arange(40), units["k"])
    part = {"w": torch.from_numpy(rng.integers(0, 100, (len(at[0]), 300))).to(dtype)}
    expected = arrays["w"].double().numpy().copy()
    expected[at] = part["w"].double().numpy()
    result = merged(arrays, axes, [(units, part, 1.0)])["w"]
    in_place = MergeInPlace(arrays, axes)
    in_place.add(units, part)
    for wide in (result, in_place.result()["w"]):
        assert wide.dtype == dtype
        assert np.array_equal(wide.double().numpy(), expected)


def test_what_is_held_whole_is_not_copied() -> None:
    arrays = {"bias": torch.ones(3), "weight": torch.ones(3, 4)}
    axes = {"bias": parse("."), "weight": parse(". h")}
    assert extract(arrays, axes, {"h": torch.tensor([2, 1])})["bias"] is arrays["bias"]
    assert extract(arrays, axes, {"h": torch.arange(4)})["weight"] is arrays["weight"]
    assert extract(arrays, axes, {})["weight"] is arrays["weight"]


def test_gradients_do_not_come_along() -> None:
    arrays = {"w": torch.ones(4, 4, requires_grad=True)}
    axes, units = {"w": parse("h k")}, {"h": torch.tensor([1]), "k": torch.tensor([2])}
    part = extract(arrays, axes, units)
    assert not part["w"].requires_grad
    assert not merged(arrays, axes, [(units, {"w": part["w"].requires_grad_()}, 1.0)])["w"].requires_grad


# --- Law 2: get-put and put-get ---------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data())
def test_parts_that_come_back_unchanged_change_no_bit(data: st.DataObject) -> None:
    """Whoever holds what, however often, with whatever weights; every dtype; infinities, nan and -0.0 included."""
    case = data.draw(cases())
    arrays = case.random(data.draw(seeds), finite=False)
    plan = data.draw(st.lists(st.tuples(subsets(case), weights), max_size=12))
    parts = [(units, extract(arrays, case.axes, units), weight) for units, weight in plan]
    cohorts = [part for part in parts for _ in range(data.draw(st.integers(1, 3)))]
    assert same_bits(merged(arrays, case.axes, cohorts), arrays)


@given(st.data())
def test_what_one_holder_sent_is_read_back(data: st.DataObject) -> None:
    """To the bit, in every dtype, whatever the others sent elsewhere."""
    case = data.draw(cases())
    arrays = case.random(data.draw(seeds), finite=False)
    groups = data.draw(st.integers(1, 4))
    plan = partition(case, groups, data.draw(seeds))
    parts = [(units, case.part(units, data.draw(seeds), finite=False), data.draw(weights)) for units in plan]
    result = merged(arrays, case.axes, parts)
    split = [name for name in arrays if groups == 1 or any(dim.axis for dim in case.axes[name])]  # the others have all
    for units, part, _ in parts:
        back = extract(result, case.axes, units)
        assert same_bits(*({name: a for name, a in some.items() if name in split} for some in (back, part)))


# --- The oracle -------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data())
def test_merge_is_the_weighted_mean_of_each_coordinates_holders(data: st.DataObject) -> None:
    """Random overlapping plans, cohorts among them; enough parts that they are added up on the way."""
    case = data.draw(cases(DTYPES))
    arrays = case.random(data.draw(seeds))
    plan = data.draw(st.lists(st.tuples(subsets(case), weights), max_size=6))
    plan = data.draw(st.lists(st.sampled_from(plan), max_size=12)) if plan else []
    parts = [(units, case.part(units, data.draw(seeds)), weight) for units, weight in plan]
    result = merged(arrays, case.axes, parts)
    for name, array in arrays.items():
        wide = array.double().numpy()
        total, weight, holders = np.zeros(wide.shape), np.zeros(wide.shape), np.zeros(wide.shape)
        most, largest = np.full(wide.shape, -np.inf), np.zeros(wide.shape)
        for units, part, share in parts:
            assert (name in part) == there(case, name, units)
            if name not in part:
                continue
            at, value = positions(case, name, units), part[name].double().numpy()
            total[at] += share * value
            weight[at] += share
            holders[at] += 1
            most[at] = np.maximum(most[at], value)
            largest[at] = np.maximum(largest[at], abs(value))
        got = result[name].double().numpy()
        assert result[name].dtype == array.dtype
        assert np.array_equal(got[holders == 0], wide[holders == 0])
        if not array.is_floating_point():
            assert np.array_equal(got[holders > 0], most[holders > 0])
            continue
        last = largest[holders == 1]
        assert np.array_equal(abs(got[holders == 1]), last)  # one holder: exact
        several = holders > 1
        error = abs(got[several] - total[several] / weight[several])
        rounding = torch.finfo(array.dtype).eps / 2 + 64 * np.finfo(np.float64).eps
        assert (error <= rounding * largest[several] + torch.finfo(array.dtype).smallest_normal).all()


def test_weights_are_shares_of_the_mean() -> None:
    arrays, axes = {"w": torch.tensor([7.0, 7.0, 7.0])}, {"w": parse("h")}
    one, two, three = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([1, 0])
    parts = [
        ({"h": one}, {"w": torch.tensor([10.0, 20.0])}, 1.0),
        ({"h": two}, {"w": torch.tensor([50.0, 60.0])}, 2.0),
        ({"h": three}, {"w": torch.tensor([30.0, 40.0])}, 3.0),  # in the other order
    ]
    assert merged(arrays, axes, parts)["w"].tolist() == [(10 + 3 * 40) / 4, (20 + 2 * 50 + 3 * 30) / 6, 60.0]


def test_the_paper_s_network_is_copied_and_only_the_heads_bias_averaged() -> None:
    arrays = {"in": torch.rand(8, 3), "out": torch.rand(2, 8), "bias": torch.zeros(2)}
    axes = {"in": parse("h ."), "out": parse(". h"), "bias": parse(".")}
    parts: list[Part] = []
    for unit in range(8):
        units = {"h": torch.tensor([unit])}
        parts.append((units, {name: torch.full_like(a, unit) for name, a in extract(arrays, axes, units).items()}, 1.0))
    result = merged(arrays, axes, parts)
    assert torch.equal(result["in"], torch.arange(8.0)[:, None].expand(8, 3))
    assert torch.equal(result["out"], torch.arange(8.0).expand(2, 8))
    assert torch.equal(result["bias"], torch.full((2,), 3.5))


# --- Law 3: order -----------------------------------------------------------------------------------------------------


@given(st.data())
def test_order_is_of_no_account_where_each_coordinate_has_one_holder(data: st.DataObject) -> None:
    case = data.draw(cases())
    arrays = case.random(data.draw(seeds), finite=False)
    split = [name for name, dims in case.axes.items() if any(dim.axis for dim in dims)]  # the others have three holders
    parts = []
    for units in partition(case, 3, data.draw(seeds)):
        part = case.part(units, data.draw(seeds), finite=False)
        parts.append((units, {name: array for name, array in part.items() if name in split}, data.draw(weights)))
    arrays = {name: arrays[name] for name in split}
    assert same_bits(merged(arrays, case.axes, data.draw(st.permutations(parts))), merged(arrays, case.axes, parts))


@given(st.data())
def test_order_is_of_no_account_for_float32_with_integer_weights(data: st.DataObject) -> None:
    """To the bit: differences of float32 of like size, and their sums times integers, are exact in float64."""
    case = data.draw(cases([torch.float32]))
    arrays = case.random(0)
    plan = data.draw(st.lists(st.tuples(subsets(case), st.integers(1, 1000)), min_size=1, max_size=5))
    parts = []
    for units, weight in data.draw(st.lists(st.sampled_from(plan), max_size=10)):
        part = case.part(units, data.draw(seeds))
        # Full mantissas, of sizes from 2⁻⁴ to 2⁵.
        part = {name: x.sign() * (1 + x.abs().frac()) * 2 ** x.clamp(-4, 4).round() for name, x in part.items()}
        parts.append((units, part, float(weight)))
    assert same_bits(merged(arrays, case.axes, data.draw(st.permutations(parts))), merged(arrays, case.axes, parts))


@given(st.data())
def test_order_shows_only_in_the_last_bits_of_float64(data: st.DataObject) -> None:
    """The tolerance stated in general: 2⁻⁴⁵ of the largest value, before rounding to the array's dtype."""
    case = data.draw(cases([torch.float64]))
    arrays = case.random(0)
    plan = data.draw(st.lists(st.tuples(subsets(case), weights), max_size=10))
    parts = [(units, case.part(units, data.draw(seeds)), weight) for units, weight in plan]
    one, other = merged(arrays, case.axes, parts), merged(arrays, case.axes, data.draw(st.permutations(parts)))
    for name in arrays:
        given_back = [part[name] for _, part, _ in parts if name in part]
        largest = max((float(array.abs().max()) for array in given_back if array.numel()), default=0.0)
        assert bool(((one[name] - other[name]).abs() <= 2**-45 * largest).all())


# --- Law 4: untouched -------------------------------------------------------------------------------------------------


@given(st.data())
def test_what_nobody_sent_keeps_its_bits(data: st.DataObject) -> None:
    case = data.draw(cases())
    arrays = case.random(data.draw(seeds), finite=False)
    plan = data.draw(st.lists(subsets(case), max_size=8))
    result = merged(arrays, case.axes, [(units, case.part(units, data.draw(seeds)), 1.5) for units in plan])
    for name, array in arrays.items():
        untouched = np.ones(array.shape, dtype=bool)
        for units in plan:
            if there(case, name, units):
                untouched[positions(case, name, units)] = False
        assert np.array_equal(bits(result[name]).numpy()[untouched], bits(array).numpy()[untouched])


def test_a_holder_that_fails_leaves_its_block_as_it_was() -> None:
    network = NETWORKS["mlp"]
    arrays = arrays_of(network.build(**network.sizes))
    axes = infer(network.build, network.sizes)
    plan = Disjoint(groups=2, min_units=1)(1, [Node(0), Node(1)], network.sizes, generator(0))
    part = {name: array + 1 for name, array in extract(arrays, axes, plan[0]).items()}
    result = merged(arrays, axes, [(plan[0], part, 1.0)])
    assert same_bits(extract(result, axes, plan[0]), part)
    before, after = extract(arrays, axes, plan[1]), extract(result, axes, plan[1])
    shared = [name for name in arrays if not any(dim.axis for dim in axes[name])]  # the head's bias, the counts
    assert same_bits({**after, **{name: before[name] for name in shared}}, before)


def test_nothing_given_is_changed_and_the_result_can_be_asked_for_on_the_way() -> None:
    arrays = {"w": torch.rand(6, 6), "n": torch.tensor(3)}
    axes = {"w": parse("h k"), "n": ()}
    before = {name: array.clone() for name, array in arrays.items()}
    merge = Merge(arrays, axes)
    assert all(merge.result()[name] is arrays[name] for name in arrays)
    rng = np.random.default_rng(0)
    added: list[tuple[Units, dict[str, Tensor], float]] = []
    for number in range(30):
        units = {
            axis: torch.from_numpy(rng.permutation(6)[:count]) for axis, count in (("h", 4), ("k", 1 + number % 6))
        }
        added.append((units, {"w": torch.rand(4, 1 + number % 6), "n": torch.tensor(number)}, 1.0 + number))
        sent = {name: array.clone() for name, array in added[-1][1].items()}
        merge.add(*added[-1])
        assert same_bits(merge.result(), merge.result())
        assert same_bits(added[-1][1], sent)
    assert same_bits(merge.result(), merged(arrays, axes, added))
    assert same_bits(arrays, before)


# --- In place ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_in_place_is_merge_bit_for_bit_and_no_subnet_sees_another(data: st.DataObject) -> None:
    case = data.draw(cases())
    arrays, groups = case.random(data.draw(seeds), finite=False), data.draw(st.integers(1, 4))
    own = {name: array.clone() for name, array in arrays.items()}
    plan = data.draw(st.permutations(partition(case, groups, data.draw(seeds))))
    assert axes_apart(plan, case.sizes) == set(case.sizes)
    parts, merge = [], MergeInPlace(own, case.axes)
    for units in plan:
        assert same_bits(extract(own, case.axes, units), extract(arrays, case.axes, units))
        if data.draw(st.booleans()):  # else its holder failed
            part = case.part(units, data.draw(seeds), finite=False)
            parts.append((units, part, data.draw(weights)))
            merge.add(*parts[-1])
    result = merge.result()
    assert same_bits(result, merged(arrays, case.axes, parts))
    split = [name for name, dims in case.axes.items() if any(dim.axis for dim in dims)]
    assert all(result[name] is own[name] for name in split)


def test_in_place_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    arrays, axes = {"w": torch.arange(12.0).view(4, 3), "b": torch.zeros(3)}, {"w": parse("h ."), "b": parse(".")}
    before, merge = {name: array.clone() for name, array in arrays.items()}, MergeInPlace(arrays, axes)
    units = {"h": torch.tensor([0, 2])}
    fitting = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    for part, weight in [({**fitting, "b": torch.ones(2)}, 1.0), ({"w": fitting["w"]}, 1.0), (fitting, 0.0)]:
        with pytest.raises(AxesError):
            merge.add(units, part, weight)
    assert same_bits(merge.result(), before)


def test_axes_are_apart_where_no_two_subnets_share_a_unit() -> None:
    one, other = {"a": torch.tensor([0, 2]), "b": torch.tensor([0])}, {"a": torch.tensor([1]), "b": torch.tensor([0])}
    assert axes_apart([one, other], {"a": 3, "b": 2}) == {"a"}
    assert axes_apart([one, other], {"a": 3, "b": 2, "c": 1}) == {"a"}  # an axis left out is held whole
    assert axes_apart([one], {"a": 3, "b": 2, "c": 1}) == {"a", "b", "c"}


# --- Law 6: narrow ----------------------------------------------------------------------------------------------------


def some_units(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Some of every axis; a block, which has one unit, perhaps not."""
    rng = np.random.default_rng(seed)
    count = {axis: rng.integers(min(1, size - 1), size + 1) for axis, size in sizes.items()}
    return {axis: torch.from_numpy(np.sort(rng.permutation(size)[: count[axis]])) for axis, size in sizes.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_narrow_module_loads_its_arrays_strictly(network: Network, seed: int) -> None:
    axes = infer(network.build, network.sizes, network.declared)
    units = some_units(network.sizes, seed)
    part = extract(arrays_of(network.build(**network.sizes)), axes, units)
    narrow = {axis: len(held) for axis, held in units.items()}
    told = sizes_of(part, axes)
    assert {**narrow, **told} == narrow
    assert all(dim.axis in told for name in part for dim in axes[name] if dim.axis)
    assert told == narrow or 0 in narrow.values()  # of what is left out nothing is told
    module = network.build(**narrow)
    load_arrays(module, part)
    module.load_state_dict(part, strict=len(part) == len(module.state_dict()))
    assert torch.isfinite(network.function()(module.eval())).all()


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("mlp", ["hidden1", "hidden2"]),
        ("cnn", ["c1", "c2", "hidden"]),
        ("resnet", ["stem", "mid", "out"]),
        ("gpt", ["heads0", "ffn0"]),  # not width: the layer norms see all of it
        ("gpt_fused", ["heads0", "ffn0"]),
        ("lstm", ["hidden"]),
    ],
)
def test_a_subnet_computes_what_the_network_does_with_the_others_silenced(name: str, cut: list[str]) -> None:
    """An oracle that needs no narrow module: zero every weight that listens to a unit not held (dimension 1)."""
    network = NETWORKS[name]
    torch.manual_seed(1)
    wide = network.build(**network.sizes).double().eval()
    axes = infer(network.build, network.sizes, network.declared)
    units = some_units({axis: network.sizes[axis] for axis in cut}, seed=2)
    narrow = network.build(**{**network.sizes, **{axis: len(held) for axis, held in units.items()}})
    load_arrays(narrow.double().eval(), extract(arrays_of(wide), axes, units))
    for array_name, array in arrays_of(wide).items():
        dims = axes[array_name]
        if len(dims) > 1 and dims[1].axis in units:
            silent = torch.ones(dims[1].outer, network.sizes[dims[1].axis], dims[1].inner, dtype=torch.bool)
            silent[:, units[dims[1].axis]] = False
            array[:, silent.flatten()] = 0
    assert torch.allclose(network.function()(narrow), network.function()(wide), rtol=1e-9, atol=1e-12)


def test_a_tied_weight_travels_once() -> None:
    network = NETWORKS["gpt"]
    axes = infer(network.build, network.sizes)
    arrays = arrays_of(network.build(**network.sizes))
    units = some_units(network.sizes, seed=3)
    part = extract(arrays, axes, units)
    assert "head.weight" not in part
    part = {name: array + 1 for name, array in part.items()}
    module = network.build(**network.sizes)
    load_arrays(module, merged(arrays, axes, [(units, part, 1.0)]))
    assert module.head.weight is module.tokens.weight
    assert torch.equal(module.head.weight[:, units["width"]], part["tokens.weight"])


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_replies_are_not_kept_however_many_come() -> None:
    """Two hundred different subnets of a quarter of the network: never more than twice its size is held."""
    arrays, axes = {"w": torch.rand(40, 40)}, {"w": parse("h k")}
    merge, rng = Merge(arrays, axes), np.random.default_rng(0)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    for _ in range(200):
        values = np.ones((20, 20), dtype=np.float32)
        alive.append(weakref.ref(values))
        units = {axis: torch.from_numpy(rng.permutation(40)[:20]) for axis in "hk"}
        merge.add(units, {"w": torch.from_numpy(values)})
        del values
        most = max(most, sum(ref() is not None for ref in alive))
    assert 4 <= most <= 8
    assert torch.equal(merge.result()["w"], torch.ones(40, 40))


# --- What is refused --------------------------------------------------------------------------------------------------


WIDE = {"w": torch.ones(4, 6), "b": torch.ones(4)}
AXES = {"w": parse("h (k 2)"), "b": parse("h")}
UNITS = {"h": torch.tensor([0, 2]), "k": torch.tensor([1])}


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"h": torch.tensor([0, 4])}, "'h' are numbered 0 to 3, but 0 to 4"),
        ({"h": torch.tensor([-1])}, "'h' are numbered 0 to 3, but -1 to -1"),
        ({"k": torch.tensor([3])}, "'k' are numbered 0 to 2"),
        ({"h": torch.tensor([1, 2, 1])}, "one of 'h' stands in it twice"),
        ({"hidden": torch.tensor([0])}, "no array has an axis 'hidden'"),
        ({"h": torch.tensor([True, False, True, False])}, "list of integers, but are .* torch.bool"),
        ({"h": torch.tensor([0.0, 1.0])}, "list of integers"),
        ({"h": torch.tensor(2)}, "list of integers"),
    ],
)
def test_units_that_are_none_are_refused(units: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AxesError, match=message):
        extract(WIDE, AXES, units)
    with pytest.raises(AxesError, match=message):
        Merge(WIDE, AXES).add(units, extract(WIDE, AXES, UNITS))


def test_a_table_of_another_network_is_refused() -> None:
    for arrays in ({"v": torch.ones(4)}, {"w": torch.ones(4)}, {**WIDE, "b": torch.ones(5)}):
        with pytest.raises(AxesError):
            extract(arrays, AXES, UNITS)
        with pytest.raises(AxesError):
            Merge(arrays, AXES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b": None}, r"on one side only: \['b'\]"),
        ({"spare": torch.ones(2)}, r"on one side only: \['spare'\]"),
        ({"b": torch.ones(3)}, r"'b' \[h\] of this part must be \(2,\) torch.float32, but is \(3,\)"),
        ({"b": torch.ones(1)}, "'b' .* must be"),  # would broadcast
        ({"w": torch.ones(2, 1)}, r"'w' \[h \(k 2\)\] of this part must be \(2, 2\)"),
        ({"b": torch.ones(2, dtype=torch.float64)}, "but is .* torch.float64"),
        ({"b": torch.ones(2, dtype=torch.float16)}, "but is .* torch.float16"),
    ],
)
def test_a_part_of_another_subnet_is_refused_and_changes_nothing(
    changed: dict[str, Tensor | None], message: str
) -> None:
    merge, part = Merge(WIDE, AXES), extract(WIDE, AXES, UNITS)
    bad = {name: array for name, array in (part | changed).items() if array is not None}
    for _ in range(2):  # as the first of its cohort and as a later one
        with pytest.raises(AxesError, match=message):
            merge.add(UNITS, bad)
        assert same_bits(merge.result(), WIDE)
        merge.add(UNITS, part)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    merge = Merge(WIDE, AXES)
    with pytest.raises(AxesError, match="a weight must be positive and finite"):
        merge.add(UNITS, extract(WIDE, AXES, UNITS), weight)
    assert same_bits(merge.result(), WIDE)


# --- Law 12: expectation ----------------------------------------------------------------------------------------------


def test_the_mean_iterate_is_the_one_the_theory_says() -> None:
    """One oracle for partition, cut, merge and bias: the quadratic ½xᵀLx − bᵀx under random disjoint groups.

    A group of q coordinates out of d sees only its own block of L, so two coordinates meet with probability
    p = (q−1)/(d−1), and a local gradient step is, in the mean over groups, one on (D + p(L−D))x = b with D = diag L.
    The groups of a round do not depend on x, and the step is linear in it, so the mean iterate goes to that solution
    whatever the step size. (With more local steps powers of the blocks come in, and the law holds to first order.)

    Source: Shulgin and Richtárik, 2024, for the quadratic; the mean over groups is elementary.
    """
    d, groups, step, rounds = 6, 3, 0.2, 1500
    q = d // groups
    rng = np.random.default_rng(12)
    roots = rng.standard_normal((d, d))
    L = torch.from_numpy(0.6 * np.ones((d, d)) + 0.05 * roots @ roots.T + 0.4 * np.eye(d))
    b = torch.from_numpy(rng.uniform(1, 3, d))

    def solution(p: float) -> Tensor:
        D = torch.diag(torch.diag(L))
        return torch.linalg.solve(D + p * (L - D), b)

    rule, axes, nodes = Disjoint(groups=groups, min_units=1), {"x": parse("h")}, [Node(i) for i in range(groups)]
    arrays = {"x": solution((q - 1) / (d - 1))}  # start there, so that nothing need wear off
    iterates = []
    for number in range(rounds):
        plan = rule(number, nodes, {"h": d}, generator(12, number, "assign"))
        merge = Merge(arrays, axes)
        for units in plan.subnets:
            x, held = extract(arrays, axes, units)["x"], units["h"]
            merge.add(units, {"x": x - step * (L[held][:, held] @ x - b[held])})
        arrays = merge.result()
        iterates.append(arrays["x"])
    batches = torch.stack(iterates).view(30, -1, d).mean(dim=1)  # long enough to be independent
    mean, error = batches.mean(dim=0), batches.std(dim=0) / 30**0.5
    assert ((mean - solution((q - 1) / (d - 1))).abs() < 4 * error).all()
    for wrong in (q / d, (q - 1) / d, q / (d - 1), 1.0):
        assert ((mean - solution(wrong)).abs() > 8 * error).any(), f"the test is too weak to tell p = {wrong}"
