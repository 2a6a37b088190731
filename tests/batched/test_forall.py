"""A module called for all clients is `torch.vmap` of `functional_call`, to the last bit."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from ist_fed.arrays import arrays_of
from ist_fed.batched.forall import ForAll


class Tied(nn.Module):
    """One weight under two names, on which a third name does not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.last.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.last(self.middle(self.first(inputs)).tanh())
        return found


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = (self.model(inputs) - targets).square().mean()
        return found


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "statistics": lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5)),
    "a parametrised weight": lambda: register_parametrization(nn.Linear(5, 5), "weight", nn.Tanh()),
}


def stacked(module: nn.Module, clients: int) -> dict[str, Tensor]:
    """Each client's own arrays, near the module's."""
    made = {}
    for name, array in arrays_of(module).items():
        own = array.repeat(clients, *[1] * array.ndim)
        made[name] = own + 0.1 * torch.rand_like(own) if own.is_floating_point() else own
    return made


@pytest.mark.parametrize("name", MODULES)
def test_it_is_vmap_of_a_functional_call(name: str) -> None:
    torch.manual_seed(0)
    module = Loss(MODULES[name]()).train()
    inputs, targets = torch.randn(2, 3, 4, 5).unbind()
    ours = stacked(module, 3)
    theirs = {key: array.clone() for key, array in ours.items()}
    weights = [key for key, _ in module.named_parameters()]
    for arrays in (ours, theirs):
        for key in weights:
            arrays[key].requires_grad_()
    call = torch.vmap(partial(functional_call, module))
    expected = [call(theirs, (inputs, targets)) for _ in range(2)]  # statistics move on from one to the other
    for_all = ForAll(module, ours)
    found = [for_all(ours, inputs, targets) for _ in range(2)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        one.sum().backward()  # type: ignore[no-untyped-call]
        other.sum().backward()  # type: ignore[no-untyped-call]
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    for key in weights:
        assert torch.equal(ours[key].grad, theirs[key].grad), key  # type: ignore[arg-type]


def test_what_is_no_tensor_is_said() -> None:
    class Number(nn.Module):
        def forward(self, inputs: Tensor) -> float:
            return 3.0

    with pytest.raises(TypeError, match="a tensor is wanted of each client, but float was given"):
        ForAll(Number(), [])({}, torch.zeros(2, 3))


def test_torchs_warning_to_its_developers_is_not_the_users_and_no_other_is_hidden() -> None:
    """Warnings are errors here, as everywhere; weights' norms are what `vmap` takes one by one."""

    class Warns(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            warnings.warn("of the network", stacklevel=1)
            return super().forward(inputs)

    module = Loss(weight_norm(nn.Linear(5, 5)))
    arrays, inputs = stacked(module, 3), torch.randn(2, 3, 4, 5)
    expected = [
        functional_call(module, {name: array[at] for name, array in arrays.items()}, tuple(inputs[:, at]))
        for at in range(3)
    ]
    assert torch.allclose(ForAll(module, arrays)(arrays, *inputs), torch.stack(expected))
    with pytest.warns(UserWarning, match="performance drop"):
        torch.vmap(lambda v, g: torch._weight_norm(v, g, 0))(torch.rand(3, 2, 5), torch.rand(3, 2, 1))
    other = Loss(Warns(5, 5))
    arrays = stacked(other, 3)
    with pytest.warns(UserWarning, match="of the network"):
        ForAll(other, arrays)(arrays, *inputs)
