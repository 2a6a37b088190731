"""Arrays as one run: which are copied, and what the run then holds."""

import torch
from torch import Tensor

from ist_fed.flat import joined

FIRST, SECOND = torch.arange(6.0).view(2, 3), torch.arange(6.0, 10.0)


def run_of(arrays: dict[str, Tensor]) -> Tensor:
    (run,) = joined(arrays).runs
    assert run.tolist() == [number for array in arrays.values() for number in array.flatten().tolist()]
    return run


def test_arrays_that_lie_behind_one_another_are_not_copied() -> None:
    whole = joined({"a": FIRST, "b": SECOND})
    assert run_of(whole.views()).data_ptr() == whole.runs[0].data_ptr()


def test_a_part_of_a_run_is_not_copied_either() -> None:
    whole = joined({"a": FIRST, "b": SECOND, "c": FIRST}).views()
    del whole["a"]
    assert run_of(whole).data_ptr() == whole["b"].data_ptr()


def test_all_others_are() -> None:
    long = torch.arange(20.0)
    for arrays in (
        {"a": FIRST, "b": SECOND},  # apart
        {"a": long[4:8], "b": long[:4]},  # in another order
        {"a": long[:4], "b": long[5:]},  # with a gap
        {"a": long[:4:2], "b": long[2:6]},  # the first has gaps, and takes as many bytes as end where the next begins
        {"a": long[:16].view(4, 4).T, "b": long[16:]},  # in columns
        {"a": long[:0], "b": long[:4]},  # an empty one has no place
    ):
        own = {array.untyped_storage().data_ptr() for array in arrays.values()}
        assert run_of(arrays).untyped_storage().data_ptr() not in own


def test_neighbours_by_chance_are_two() -> None:
    """Two storages may lie behind one another; a run must not reach out of the first."""
    memory = torch.arange(8.0).numpy()
    one, other = torch.from_numpy(memory[:4]), torch.from_numpy(memory[4:])
    assert one.data_ptr() + one.nbytes == other.data_ptr()
    assert run_of({"a": one, "b": other}).data_ptr() != one.data_ptr()
