"""Tensors in files, in the safetensors format, one after another: none is in memory a second time.

The library's own `save` and `load` hold the whole file beside the tensors, and its `save_file` does not tell a full
disk from other errors.

Format: https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.uint32: "U32",
    torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""In the order in which the library lays them out: the widest first, so that all are aligned."""

_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_AT_ONCE = 1 << 20  # bytes
_ALIGNED = 8  # bytes; what the header's length is a multiple of


def written(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file, in pieces; the same bytes as `safetensors.torch.save`.

    Raises:
        ValueError: a tensor has a dtype that the format, or this function, does not know.
    """
    if unknown := {tensor.dtype for tensor in tensors.values()} - _NAMES.keys():
        raise ValueError(f"a file holds tensors of {', '.join(_NAMES.values())}, but one is {unknown.pop()}")
    rank = {dtype: number for number, dtype in enumerate(_NAMES)}
    order = sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))
    header, end = dict[str, object](), 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield from map(_bytes_of, _laid_out(tensors[name].detach().cpu()))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that is known to be whole.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError: it is no such file, or too short.
    """
    tensors = {}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name] = torch.empty(about["shape"], dtype=_DTYPES[about["dtype"]])
            room = _bytes_of(tensors[name])
            if file.readinto(room) != len(room):
                raise ValueError(f"'{path}' ends within '{name}'")
    return tensors


def _laid_out(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor as contiguous ones, behind one another; one that is not contiguous is copied a few rows at a time."""
    if tensor.is_contiguous():
        yield tensor
        return
    rows = max(1, _AT_ONCE * len(tensor) // max(1, tensor.nbytes))
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows].contiguous()


def _bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's own memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(bytearray())
