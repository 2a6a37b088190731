"""Many labels: the loss in chunks is the plain formula's, and the input layer a linear one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ist_fed.errors import TaskError
from ist_fed.models import wide_output
from ist_fed.models.softmax import best_label, cross_entropy
from ist_fed.models.wide_output import packed

LABELS = 23


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """As the formula stands in a book, with torch's own cross-entropy for chances."""
    share = torch.zeros(len(hidden), len(weight), dtype=hidden.dtype)
    for at, of_one in enumerate(labels.tolist()):
        held = [label for label in of_one if label >= 0]
        for label in held:
            share[at, label] += 1 / len(held)
    return functional.cross_entropy(hidden @ weight.T + bias, share)


def drawn(examples: int, units: int, most: int, seed: int) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((examples, units), (LABELS, units), (LABELS,))
    arrays = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    labels = torch.randint(LABELS, (examples, most), generator=draw)
    fewer = torch.randint(1, most + 1, (examples, 1), generator=draw)
    return arrays, labels.where(torch.arange(most) < fewer, -1)


CASES = given(
    examples=st.integers(1, 6),
    units=st.integers(1, 5),
    most=st.integers(1, 4),
    chunk=st.integers(1, 200),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60, deadline=None)
@CASES
def test_loss_and_gradients_are_the_plain_formulas(examples: int, units: int, most: int, chunk: int, seed: int) -> None:
    arrays, labels = drawn(examples, units, most, seed)
    one, other = cross_entropy(*arrays, labels, chunk), plain(*arrays, labels)
    assert torch.allclose(one, other, rtol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(3 * one, arrays), torch.autograd.grad(3 * other, arrays), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14)


@settings(max_examples=30, deadline=None)
@CASES
def test_the_best_label_is_the_plain_one(examples: int, units: int, most: int, chunk: int, seed: int) -> None:
    (hidden, weight, bias), _ = drawn(examples, units, most, seed)
    assert torch.equal(best_label(hidden, weight, bias, chunk), (hidden @ weight.T + bias).argmax(1))


def test_gradients_are_the_differences_of_the_loss() -> None:
    arrays, labels = drawn(4, 3, 3, 0)
    assert torch.autograd.gradcheck(lambda *given: cross_entropy(*given, labels, 30), arrays)


def test_scores_far_from_zero_do_no_harm() -> None:
    arrays, labels = drawn(4, 3, 2, 1)
    far = [(1000 * array).detach().requires_grad_() for array in arrays]
    loss = cross_entropy(*far, labels, 17)
    assert torch.allclose(loss, plain(*far, labels), rtol=1e-12)
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(loss, far))


def test_it_is_the_same_in_mixed_precision() -> None:
    arrays, labels = drawn(4, 3, 2, 1)
    floats = [array.detach().float().requires_grad_() for array in arrays]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cross_entropy(floats[0].bfloat16(), *floats[1:], labels, 17)
    grads = torch.autograd.grad(mixed, floats)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, cross_entropy(floats[0].bfloat16().float(), *floats[1:], labels, 17), rtol=1e-6)
    assert [grad.dtype for grad in grads] == [torch.float32] * 3


def test_no_array_of_all_scores_is_ever_made() -> None:
    """Of 50 examples and 20 000 labels; the largest array there may be is the gradient of the weights."""
    examples, units, labels = 50, 4, 20_000

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                self.largest = max(self.largest, made.untyped_storage().nbytes() // 4)
            return made

    hidden, weight = torch.randn(examples, units, requires_grad=True), torch.randn(labels, units, requires_grad=True)
    bias, targets = torch.zeros(labels, requires_grad=True), torch.randint(labels, (examples, 3))
    with Watch() as watch:
        cross_entropy(hidden, weight, bias, targets, chunk=10_000).backward()
        best_label(hidden, weight, bias, chunk=10_000)
    assert watch.largest == labels * units


# --- The network ------------------------------------------------------------------------------------------------------


def test_a_sparse_input_layer_is_a_linear_one() -> None:
    draw = torch.Generator().manual_seed(0)
    index, values = torch.randint(9, (5, 4), generator=draw), torch.rand(5, 4, generator=draw)
    values[:, 3] = 0  # filled up
    dense = torch.zeros(5, 9)
    for row in range(5):
        for feature, value in zip(index[row], values[row], strict=True):
            dense[row, feature] += value
    sparse, other = wide_output(9, 6)(hidden1=7), wide_output(9, 6, sparse=False)(hidden1=7)
    state = sparse.state_dict()
    other.load_state_dict({**state, "hidden.0.weight": state["hidden.0.weight"].T})
    assert torch.allclose(sparse(packed(index, values)), other(dense), atol=1e-6)


def test_all_scores_give_the_same_loss() -> None:
    model = wide_output(9, LABELS, sparse=False)(hidden1=7, hidden2=5)
    inputs, labels = torch.rand(4, 9), torch.randint(LABELS, (4, 1))
    chunked = cross_entropy(model.hidden(inputs), model.head.weight, model.head.bias, labels, 31)
    assert torch.allclose(chunked, functional.cross_entropy(model(inputs), labels[:, 0]))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(TaskError, match="norm must be one of"):
        wide_output(9, 6, norm="group")
    with pytest.raises(TaskError, match="numbered in float32, up to 16777216, but there are 20000000"):
        wide_output(20_000_000, 6)
    assert wide_output(1 << 24, 6, sparse=True)
