"""Cross-entropy under `torch.vmap` is torch's own; and neither it nor SGD loads torch's compiler."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ist_fed.batched.stead import InItsStead

LOGITS = 3 * torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randint(4, (5, 7), generator=torch.Generator().manual_seed(1))


def losses(logits: Tensor, targets: Tensor, options: Mapping[str, Any], *, ours: bool) -> tuple[Tensor, Tensor]:
    """Of each client, and the gradient of their sum."""
    logits = logits.clone().requires_grad_()
    if ours:
        with InItsStead():
            found = torch.vmap(lambda one, other: functional.cross_entropy(one, other, **options))(logits, targets)
    else:
        pairs = zip(logits, targets, strict=True)
        found = torch.stack([functional.cross_entropy(one, other, **options) for one, other in pairs])
    (grad,) = torch.autograd.grad(found.sum(), logits)
    return found.detach(), grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 2},
        {"weight": None, "reduction": "mean"},
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"weight": torch.arange(1.0, 5.0, dtype=torch.float64)},
    ],
)
def test_the_loss_and_its_gradient_are_torchs(options: Mapping[str, Any]) -> None:
    for ours, theirs in zip(*(losses(LOGITS, TARGETS, options, ours=ours) for ours in (True, False)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_of_many_classes_too() -> None:
    logits, targets = LOGITS.repeat(1, 1, 5) * torch.arange(1, 21), 3 * TARGETS
    for ours, theirs in zip(*(losses(logits, targets, {}, ours=ours) for ours in (True, False)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_what_is_ignored_by_default_counts_for_nothing() -> None:
    targets = TARGETS.clone()
    targets[:, 3], targets[0] = -100, -100
    (ours, grad), (theirs, other) = (losses(LOGITS, targets, {}, ours=ours) for ours in (True, False))
    assert torch.stack([ours[0], theirs[0]]).isnan().all()  # there is none to take the mean of
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad[1:], other[1:], rtol=1e-13, atol=1e-13)


def test_probabilities_as_targets_are_left_to_torch() -> None:
    probabilities = torch.softmax(LOGITS.flip(0), -1)
    (ours, grad), (theirs, other) = (losses(LOGITS, probabilities, {}, ours=ours) for ours in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad, other, rtol=1e-13, atol=1e-13)


PROGRAM = """
import sys, runs, tiny
from ist_fed import rules
from ist_fed.train import Training
options = {"training": Training(lr=0.1, momentum=0.9, weight_decay=0.01, batch_size=4)}
reports = runs.train_on(runs.local_grid(tiny.Tiny(), 4, "WAY"), tiny.Tiny(), rules.Full(), **options)
assert reports[-1].merged == 4, reports
print(*({"torch._dynamo", "sympy"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("way", ["stacked", "factored"])
def test_torchs_compiler_stays_out(way: str) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("WAY", way)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
