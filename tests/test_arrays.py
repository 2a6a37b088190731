"""A module's state goes out once a tensor, and comes back only where it fits exactly."""

import pytest
import torch
from networks import NETWORKS, Network
from torch import Tensor, nn

from ist_fed.arrays import arrays_of, build_on_meta, build_undrawn, load_arrays
from ist_fed.errors import AxesError
from ist_fed.seeds import seeded


class Buffered(nn.Module):
    """One array of each kind that a state dict may hold, and some that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.register_buffer("kept", self.scratch)  # the same tensor, this time persistent
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("nothing", None)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_whole_state_dict_is_there_each_tensor_once(network: Network) -> None:
    module = network.build(**network.sizes)
    state = module.state_dict(keep_vars=True)
    arrays = arrays_of(module)
    assert {tensor.data_ptr() for tensor in arrays.values()} == {tensor.data_ptr() for tensor in state.values()}
    assert len({tensor.data_ptr() for tensor in arrays.values()}) == len(arrays)
    assert [name for name in state if name in arrays] == list(arrays)  # in the state dict's order


def test_arrays_are_views_without_gradients() -> None:
    module = nn.Linear(2, 2)
    array = arrays_of(module)["weight"]
    assert array.data_ptr() == module.weight.data_ptr()
    assert not array.requires_grad


def test_persistent_buffers_are_there_and_others_are_not() -> None:
    assert list(arrays_of(Buffered())) == ["weight", "kept", "count", "mask"]


def test_extra_state_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Tensor:
            return torch.ones(1)

    with pytest.raises(AxesError, match="'_extra_state' is neither"):
        arrays_of(Extra(2, 2))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_what_is_loaded_is_what_was_there(network: Network) -> None:
    torch.manual_seed(0)
    source, target = network.build(**network.sizes).eval(), network.build(**network.sizes).eval()
    load_arrays(target, arrays_of(source))
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert torch.equal(network.function()(source), network.function()(target))


def test_loading_copies_and_keeps_ties() -> None:
    network = NETWORKS["gpt"]
    module = network.build(**network.sizes)
    arrays = {name: torch.ones_like(array) for name, array in arrays_of(module).items()}
    load_arrays(module, arrays)
    arrays["tokens.weight"].zero_()
    assert module.head.weight is module.tokens.weight
    assert bool((module.head.weight == 1).all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bias": None}, r"on one side only: \['bias'\]"),
        ({"spare": torch.ones(1)}, r"on one side only: \['spare'\]"),
        ({"bias": torch.ones(3)}, r"'bias' must be \(2,\) torch.float32, but is \(3,\)"),
        ({"bias": torch.ones(1)}, "'bias' must be"),  # would broadcast
        ({"bias": torch.ones(2, dtype=torch.float64)}, "but is .* torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(changed: dict[str, Tensor | None], message: str) -> None:
    module = nn.Linear(3, 2)
    before = {name: array.clone() for name, array in arrays_of(module).items()}
    arrays = {name: array + 1 for name, array in before.items()} | changed
    with pytest.raises(AxesError, match=message):
        load_arrays(module, {name: array for name, array in arrays.items() if array is not None})
    assert all(torch.equal(array, before[name]) for name, array in arrays_of(module).items())


def test_a_module_on_the_meta_device_has_shapes_and_no_memory() -> None:
    module = build_on_meta(nn.Linear, {"in_features": 1 << 30, "out_features": 1 << 30})
    assert arrays_of(module)["weight"].shape == (1 << 30, 1 << 30)
    assert arrays_of(module)["weight"].is_meta


def test_a_lazy_module_is_named() -> None:
    def build(hidden: int) -> nn.Module:
        return nn.Sequential(nn.LazyLinear(hidden), nn.Linear(hidden, 3))

    with pytest.raises(
        AxesError, match=r"in build\(hidden=4\) '0.weight' of a lazy module gets its own from the first"
    ):
        build_on_meta(build, {"hidden": 4})


def test_a_size_that_the_factory_does_not_take_is_named() -> None:
    def build(hidden1: int, hidden2: int) -> nn.Module:
        return nn.Linear(hidden1, hidden2)

    def any_size(**sizes: int) -> nn.Module:
        return build(**sizes)

    sizes = {"hidden1": 2, "hidden2": 3, "hidden3": 64}
    with pytest.raises(AxesError) as caught:
        build_on_meta(build, sizes)
    assert str(caught.value) == (
        "[sizes] names 'hidden3', but build() takes hidden1, hidden2; leave it out, or let build() take it"
    )
    with pytest.raises(AxesError, match=r"the factory must build at any sizes.*raised TypeError"):
        build_on_meta(any_size, sizes)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_module_built_undrawn_is_the_same_once_its_state_is_there(network: Network) -> None:
    torch.manual_seed(1)
    drawn = network.build(**network.sizes)
    torch.manual_seed(1)
    undrawn = build_undrawn(network.build, network.sizes)
    load_arrays(undrawn, arrays_of(drawn))
    own, other = drawn.state_dict(), undrawn.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    hidden = dict(drawn.named_buffers()).keys() - own.keys()
    assert all(torch.equal(dict(drawn.named_buffers())[name], dict(undrawn.named_buffers())[name]) for name in hidden)


def test_what_is_drawn_beside_the_state_is_drawn_as_ever() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("projection", torch.randn(3), persistent=False)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.projection = torch.randn(3)

    for build in (Projected, Plain):
        with seeded(0):
            drawn = build()
        with seeded(0):
            undrawn = build_undrawn(build, {})
        assert torch.equal(drawn.projection, undrawn.projection)


def test_what_is_frozen_is_frozen_undrawn() -> None:
    def build() -> nn.Module:
        return nn.Linear(4, 4).requires_grad_(False)

    assert not any(parameter.requires_grad for parameter in build_undrawn(build, {}).parameters())


def test_undrawn_weights_cost_no_time_and_no_memory() -> None:
    before = torch.get_rng_state()
    module = build_undrawn(
        nn.Linear, {"in_features": 1 << 20, "out_features": 1 << 12}
    )  # 16 GiB, of which none is touched
    assert module.weight.shape == (1 << 12, 1 << 20)
    assert torch.equal(torch.get_rng_state(), before)
