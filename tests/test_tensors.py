"""Tensors in files, against the library whose format it is."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load, save
from torch import Tensor

from ist_fed import tensors
from ist_fed.wire.layout import DTYPES


def some() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    made = {f"b/{name}": torch.from_numpy(rng.integers(2, size=(3, 5))).to(dtype) for name, dtype in DTYPES.items()}
    return made | {
        "z": torch.arange(7.0),
        "aß\n": torch.ones(2, 3),
        "scalar": torch.tensor(3),
        "none": torch.rand(0, 4),
    }


@pytest.mark.parametrize("given", [some(), {}], ids=["all dtypes", "none"])
def test_the_bytes_are_the_library_s(given: dict[str, Tensor]) -> None:
    data = b"".join(tensors.written(given))
    assert data == save(given)
    assert tiny.same(load(data), given)


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(some(), metadata={"of": "somebody"}))
    found = tensors.read(path)
    assert tiny.same(found, some())
    assert all(array.zero_() is array for array in found.values())  # they are the caller's own


def test_nothing_is_copied_on_the_way() -> None:
    given = some()
    _, *pieces = tensors.written(given)
    own = {tensor.data_ptr() for tensor in given.values() if tensor.numel()}
    assert own == {np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces if len(piece)}


def test_a_transposed_tensor_is_written_as_its_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    array = torch.rand(3, 4).T
    path.write_bytes(b"".join(tensors.written({"w": array})))
    assert torch.equal(tensors.read(path)["w"], array)


def test_a_tensor_that_is_not_contiguous_is_copied_a_few_rows_at_a_time(tmp_path: Path) -> None:
    path, ones = tmp_path / "x.safetensors", torch.tensor(True).expand(3000, 2000)
    pieces = list(tensors.written({"w": ones, "v": torch.rand(700, 900).T}))
    assert max(map(len, pieces)) <= 1 << 20
    path.write_bytes(b"".join(pieces))
    assert tensors.read(path)["w"].all()


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(tensors.written(some()))[:-1])
    with pytest.raises(ValueError, match="ends within 'b/bool'"):
        tensors.read(path)


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"but one is torch\.complex64"):
        list(tensors.written({"c": torch.zeros(1, dtype=torch.complex64)}))
