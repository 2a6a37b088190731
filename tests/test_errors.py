"""What a task's own code raises, and what is none of its business."""

import errno

import pytest
import torch

from ist_fed.errors import IstFedError, TaskError, TrainingError, asking, raised


def test_an_error_of_the_tasks_own_code_is_one_of_ours_and_keeps_its_cause() -> None:
    says = r"the task's score\(\) must not fail, but raised KeyError: 'x' \(test_errors.py, line"
    with pytest.raises(TaskError, match=says), asking("score()"):
        {}["x"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        KeyboardInterrupt(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOSPC, "No space left on device"),
        TrainingError("there must be examples"),
    ],
    ids=repr,
)
def test_what_is_no_mistake_of_the_task_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, asking("score()"):
        raise error
    assert caught.value is error


class Wordless(Exception):
    def __str__(self) -> str:
        return "at " + 3  # type: ignore[operator]


def test_of_a_long_error_the_first_line_and_the_users_own_line_are_said() -> None:
    def forward() -> torch.Tensor:
        return torch.nn.Linear(2, 3)(torch.ones(1, 5))

    with pytest.raises(RuntimeError) as caught:
        forward()
    assert raised(caught.value).startswith(
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x5 and 2x3) (test_"
    )
    assert raised(ValueError("one\ntwo")) == "ValueError: one"
    assert raised(AssertionError()) == "AssertionError"
    assert raised(Wordless()) == "Wordless"
    assert issubclass(TaskError, IstFedError)
