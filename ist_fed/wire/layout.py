"""What the bytes of a parcel mean, as text: a JSON list of `[name, dtype, shape]` in the order of the bytes."""

import json
from functools import lru_cache
from math import prod

import torch

from ist_fed.errors import WireError
from ist_fed.flat import Layout, layout_of
from ist_fed.wire.excerpt import excerpt

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    )
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@lru_cache(maxsize=256)
def write_layout(entries: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> str:
    """The layout of arrays of these names, dtypes and shapes."""
    return json.dumps([(name, NAMES[dtype], shape) for name, dtype, shape in entries])


@lru_cache(maxsize=256)
def read_layout(layout: str) -> Layout:
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
        if not (isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES and _is_shape(shape)):
            raise WireError(
                f"a layout gives each array one of the types {', '.join(DTYPES)} and a list of lengths, but this one "
                f"does not for {excerpt(name, 80)}"
            )
        if start % DTYPES[dtype].itemsize:
            raise WireError(f"a layout puts wider dtypes first, but '{excerpt(name, 80)}' comes after a narrower one")
        sound.append((name, DTYPES[dtype], tuple(shape)))
        start += DTYPES[dtype].itemsize * prod(shape)
    if len({name for name, _, _ in sound}) < len(sound):
        raise WireError("a layout names every array once, but this one names one twice")
    return layout_of(sound)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) > 64:
        return False
    # The product with zeros left out must fit as well, for torch multiplies lengths to strides.
    lengths = all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
    return lengths and prod(max(1, length) for length in shape) < 1 << 60
