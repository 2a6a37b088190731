"""Memory that is handed out again: the same, and nothing of what stood in it comes through."""

from collections.abc import Hashable

import pytest
import torch
from test_together import Double, apart, federate
from torch import Tensor

from ist_fed import rules
from ist_fed.batched import Workspace
from ist_fed.train import Training


def test_a_name_is_given_its_memory_again() -> None:
    workspace, like = Workspace(), torch.zeros(1)
    large = workspace.empty("a", like, (4, 6))
    assert workspace.empty("a", like, (4, 6)).data_ptr() == large.data_ptr()
    assert workspace.empty("a", like, (3, 5)).data_ptr() == large.data_ptr()
    assert workspace.empty("a", like, (24,)).data_ptr() == large.data_ptr()
    assert workspace.empty("b", like, (4, 6)).data_ptr() != large.data_ptr()


@pytest.mark.parametrize("like", [torch.zeros(1), torch.zeros(1, dtype=torch.float64)])
def test_what_is_handed_out_is_as_asked(like: Tensor) -> None:
    workspace = Workspace()
    workspace.empty("a", torch.zeros(1), (2, 3))
    for shape in ((2, 3), (5, 7), (0, 3), (2, 3)):
        given = workspace.empty("a", like, shape)
        assert (given.shape, given.dtype, given.device) == (shape, like.dtype, like.device)
        assert given.is_contiguous()


def test_autograd_lets_anyone_write_to_it() -> None:
    workspace, weight = Workspace(), torch.ones(3, requires_grad=True)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(_: object, given: Tensor) -> Tensor:
            return torch.mul(given, 2, out=workspace.empty("a", given, given.shape))

        @staticmethod
        def backward(_: object, grad: Tensor) -> Tensor:
            return 2 * grad

    for _ in range(2):
        Doubled.apply(weight).relu_().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.tolist() == [4, 4, 4]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("examples", [6, 20])  # more than once a round, and once at most
def test_nothing_comes_of_what_stood_there(momentum: float, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other jobs have left what they left, perhaps of a client whose training failed."""
    task, training = Double(examples=examples), Training(lr=0.1, momentum=momentum, batch_size=4)
    rule, empty = rules.Disjoint(groups=2, min_units=1), Workspace.empty

    def spoilt(self: Workspace, name: Hashable, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return empty(self, name, like, shape).fill_(float("nan"))

    options = {"training": training, "local_steps": 4}
    before = federate(task, rule, 5, "factored", **options)
    monkeypatch.setattr(Workspace, "empty", spoilt)
    after = federate(task, rule, 5, "factored", **options)
    assert after[-1].merged == 5
    assert apart(before[-1].arrays, after[-1].arrays) == 0
