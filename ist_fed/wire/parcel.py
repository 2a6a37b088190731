"""A subnet as one flat array of bytes: Flower pays per array and not per byte.

What the bytes mean stands beside them as text, the layout. Arrays of one dtype follow each other and are handled as
one.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite, prod

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.errors import WireError
from ist_fed.flat import Flat, Layout, layout_of
from ist_fed.wire.excerpt import excerpt

FLAT = "flat"
"""Name of the flat array in Flower's record."""


@dataclass(frozen=True)
class Label:
    """What the server remembers of a subnet it sent, to check the reply against.

    Args:
        layout: of the parcel.
        digest: SHA-256 of its bytes, in hexadecimal.
        size: their number.
    """

    layout: str
    digest: str
    size: int


@dataclass(frozen=True)
class Parcel:
    """One subnet, packed.

    Args:
        layout: JSON list of `[name, dtype, shape]`, in the order of the bytes.
        array: Flower's array: the bytes of all arrays, one after another without padding.
        size: their number.
    """

    layout: str
    array: Array
    size: int

    @cached_property
    def record(self) -> ArrayRecord:
        """The flat array in Flower's record; a cohort's messages share it."""
        return ArrayRecord({FLAT: self.array})

    def label(self) -> Label:
        """What to remember of it."""
        return Label(self.layout, digest_of(self.array, self.size), self.size)


def pack(arrays: Arrays) -> Parcel:
    """Lay arrays out as one flat array; wider dtypes first, so that every array is aligned without padding.

    Raises:
        WireError: an array has a dtype that cannot travel.
    """
    for name, tensor in arrays.items():
        if tensor.dtype not in _NAMES:
            raise WireError(
                f"an array travels as one of {', '.join(_DTYPES)}, but '{name}' is "
                f"{str(tensor.dtype).removeprefix('torch.')}; convert it in the factory, or make it a buffer that is "
                f"not persistent"
            )
    named = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, _NAMES[item[1].dtype]))
    layout = _write_layout(tuple((name, array.dtype, tuple(array.shape)) for name, array in named))
    pieces = [_bytes_of(array) for _, array in named]
    size = sum(piece.nbytes for piece in pieces)
    array = Array("uint8", (size,), "numpy.ndarray", b"".join((_header(size), *pieces)))  # the one copy
    return Parcel(layout, array, size)


def unpack(layout: str, array: Array) -> Flat:
    """The arrays of a parcel, without copying its bytes; they must not be written to.

    Raises:
        WireError: the layout cannot be read, or does not multiply out to the bytes that came.
    """
    runs = _read_layout(layout)
    sizes = [run.size for run in runs]
    pieces = torch.split_with_sizes(_payload(array, sum(sizes)), sizes)
    return Flat(runs, [piece.view(run.dtype) for run, piece in zip(runs, pieces, strict=True)])


def unpack_checked(layout: str, array: Array) -> Flat:
    """The same, once every float is known to be finite and every boolean to be one.

    Raises:
        WireError: also if one is not; the message names its array.
    """
    arrays = unpack(layout, array)
    for run, numbers in zip(arrays.layout, arrays.runs, strict=True):
        if not _is_sound(numbers):
            name = next(name for name in run.names if not _is_sound(arrays[name]))
            if run.dtype == torch.bool:
                raise WireError(f"every bit of a reply must be 0 or 1, but '{name}' holds another byte")
            raise WireError(f"every value of a reply must be finite, but '{name}' holds NaN or infinity")
    return arrays


@lru_cache(maxsize=256)
def _write_layout(entries: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> str:
    return json.dumps([(name, _NAMES[dtype], shape) for name, dtype, shape in entries])


@lru_cache(maxsize=256)
def _read_layout(layout: str) -> Layout:
    """The runs of a layout: every name once, every shape one that a tensor can have, every array aligned."""
    try:
        entries = [(name, dtype, shape) for name, dtype, shape in json.loads(layout)]
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(
            f"a layout is a JSON list of [name, dtype, shape], but this one cannot be read: {excerpt(str(error))}"
        ) from error
    sound = []
    start = 0
    for name, dtype, shape in entries:
        if not (isinstance(name, str) and isinstance(dtype, str) and dtype in _DTYPES and _is_shape(shape)):
            raise WireError(
                f"a layout gives each array one of the types {', '.join(_DTYPES)} and a list of lengths, but this one "
                f"does not for {excerpt(name, 80)}"
            )
        if start % _DTYPES[dtype].itemsize:
            raise WireError(f"a layout puts wider dtypes first, but '{excerpt(name, 80)}' comes after a narrower one")
        sound.append((name, _DTYPES[dtype], tuple(shape)))
        start += _DTYPES[dtype].itemsize * prod(shape)
    if len({name for name, _, _ in sound}) < len(sound):
        raise WireError("a layout names every array once, but this one names one twice")
    return layout_of(sound)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) > 64:
        return False
    # The product with zeros left out must fit as well, for torch multiplies lengths to strides.
    lengths = all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
    return lengths and prod(max(1, length) for length in shape) < 1 << 60


def _payload(array: Array, expected: int) -> Tensor:
    """The bytes behind NumPy's header, as a tensor that shares memory with `array`."""
    header = _header(expected)
    declared = (array.dtype, array.shape, array.stype) == ("uint8", (expected,), "numpy.ndarray")
    if not declared or len(array.data) != len(header) + expected or not array.data.startswith(header):
        raise WireError(
            f"a subnet must come as {expected} bytes of type uint8 behind NumPy's header of {len(header)}, but "
            f"{len(array.data)} bytes came, declared as {excerpt(array.dtype, 40)} {excerpt(str(array.shape[:4]), 80)}"
        )
    if expected == 0:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"):  # that the bytes are read-only, which is what we want
        return torch.frombuffer(array.data, dtype=torch.uint8, offset=len(header))


def _header(length: int) -> bytes:
    """What `numpy.save` writes before `length` bytes, so that Flower's mods can read the array too.

    It is written out here, for server and clients need not have the same NumPy.
    """
    about = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + about.ljust(117).encode() + b"\n"


def digest_of(array: Array, size: int) -> str:
    """SHA-256 of the last `size` bytes, those behind NumPy's header, in hexadecimal."""
    return hashlib.sha256(memoryview(array.data)[len(array.data) - size :]).hexdigest()


def _bytes_of(array: Tensor) -> memoryview:
    if array.numel() == 0:
        return memoryview(b"")  # an empty array may have strides that cannot be viewed as bytes
    if array.requires_grad or not array.is_cpu or not array.is_contiguous():
        array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:  # NumPy has none
        array = array.view(torch.int16)
    return array.numpy().data


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _is_sound(numbers: Tensor) -> bool:
    """Whether floats are finite and booleans are booleans."""
    if numbers.numel() == 0:
        return True
    if numbers.dtype == torch.bool:
        return int(numbers.view(torch.uint8).max()) <= 1
    if not numbers.is_floating_point():
        return True
    least, most = numbers.aminmax()  # NaN comes through; no second array is made
    return isfinite(least.item()) and isfinite(most.item())
