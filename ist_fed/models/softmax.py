"""Cross-entropy and the best label over so many labels that the scores of a batch do not fit: a chunk at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 22
"""Scores held at once, of all examples of a batch together."""


def cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """The mean of −log softmax(hidden · weightᵀ + bias) over the labels of each example, and over the examples.

    Scores are worked out twice, forward and backward, and never held but for a chunk of labels. Beside the gradient of
    the weights that takes `chunk` numbers and a few for each example; gradients are exact.

    Args:
        hidden: `(examples, units)`.
        weight: `(all labels, units)`.
        bias: `(all labels)`.
        labels: of each example, filled up with −1: `(examples, most labels of one)`; at least one each.
        chunk: scores held at once.
    """
    loss: Tensor = _CrossEntropy.apply(hidden, weight, bias, labels, chunk)[0]  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def best_label(hidden: Tensor, weight: Tensor, bias: Tensor, chunk: int = CHUNK) -> Tensor:
    """The label of the largest score of each example, the first of several alike."""
    score = hidden.new_full((len(hidden),), -torch.inf)
    best = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    for start, scores in _scores(hidden, weight, bias, chunk):
        largest, at = scores.max(dim=1)
        better = largest > score
        score, best = torch.where(better, largest, score), torch.where(better, at + start, best)
    return best


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    step = max(1, chunk // max(1, len(hidden)))
    for start in range(0, len(weight), step):
        yield start, torch.addmm(bias[start : start + step], hidden, weight[start : start + step].T)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """The loss, and the logarithm of each example's sum of exponentials, for the way back."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(weight.dtype)
            parts = [scores.logsumexp(dim=1) for _, scores in _scores(hidden, weight, bias, chunk)]
            sums = torch.stack(parts).logsumexp(dim=0)
            at, share = _targets(labels, weight.dtype)
            picked = torch.einsum("eh,elh->el", hidden, weight[at]) + bias[at]
            return (sums - (share * picked).sum(dim=1)).mean(), sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:4], output[1])
        ctx.chunk = inputs[4]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        given, weight, bias, labels, sums = ctx.saved_tensors
        hidden = given.to(weight.dtype)
        grad = grad.to(weight.dtype) / len(hidden)
        of_hidden, of_weight, of_bias = torch.zeros_like(hidden), torch.empty_like(weight), torch.empty_like(bias)
        for start, scores in _scores(hidden, weight, bias, ctx.chunk):
            chances = scores.sub_(sums[:, None]).exp_().mul_(grad)
            rows = slice(start, start + chances.shape[1])
            of_hidden.addmm_(chances, weight[rows])
            torch.mm(chances.T, hidden, out=of_weight[rows])
            torch.sum(chances, dim=0, out=of_bias[rows])
        at, share = _targets(labels, weight.dtype)
        share = share * grad
        of_hidden -= torch.einsum("el,elh->eh", share, weight[at])
        of_weight.index_add_(0, at.flatten(), (share[..., None] * hidden[:, None]).flatten(0, 1), alpha=-1)
        of_bias.index_add_(0, at.flatten(), share.flatten(), alpha=-1)
        return of_hidden.to(given.dtype), of_weight, of_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        raise NotImplementedError("its scores are worked out in chunks, for one client at a time")


def _targets(labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each label and its share of the example; where there is none, label 0 with a share of nothing."""
    there = (labels >= 0).to(dtype)
    return labels.clamp(min=0), there / there.sum(dim=1, keepdim=True)
