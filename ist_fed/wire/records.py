"""Flower's records: the wide network in them, and reading what a message holds."""

from typing import TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.typing import ConfigRecordValues

from ist_fed.arrays import Arrays
from ist_fed.errors import WireError
from ist_fed.wire.excerpt import excerpt

Record = ArrayRecord | MetricRecord | ConfigRecord
Records = dict[str, Record]
"""What a message holds, as Flower's `RecordDict` takes it."""

Fields = dict[str, ConfigRecordValues]
"""What a record of ours holds."""

Kind = TypeVar("Kind", ArrayRecord, ConfigRecord, MetricRecord)

ORDER, REPLY, EXTRA, NODE, STEP = "order", "reply", "config", "node", "step"
"""Names of the records in a message."""


def content_of(message: Message) -> RecordDict:
    """The records of a client's message.

    Raises:
        WireError: it holds none; if Flower says why, so does the message.
    """
    if message.has_error():
        raise WireError(f"the client failed: {excerpt(message.error.reason or f'code {message.error.code}')}")
    if not message.has_content():
        raise WireError("a client's message must hold records, but is empty")
    return message.content


def record_of(content: RecordDict, key: str, kind: type[Kind]) -> Kind:
    """The record of this name and kind, or an empty one.

    Flower's own `content.config_records` makes a cycle of references, which would keep the arrays beside it in memory
    until Python's collector comes round.
    """
    record = content.get(key)
    return record if isinstance(record, kind) else kind()


def to_record(arrays: Arrays) -> ArrayRecord:
    """The wide network as an `ArrayRecord`; bfloat16, which NumPy lacks, as its bits in int16."""
    return ArrayRecord(
        {
            name: Array((array.view(torch.int16) if array.dtype == torch.bfloat16 else array).detach().cpu().numpy())
            for name, array in arrays.items()
        }
    )


def from_record(record: ArrayRecord, like: Arrays) -> dict[str, torch.Tensor]:
    """The wide network out of an `ArrayRecord`, with the names, shapes and dtypes of `like`.

    A record made from a `state_dict` may hold a tied weight under both its names; the second is left out.

    Raises:
        WireError: an array is missing, or has another shape or dtype.
    """
    arrays = {}
    for name, template in like.items():
        if name not in record:
            raise WireError(
                f"the initial arrays must be this model's state, but lack '{name}'; they have {list(record)}"
            )
        given = record[name].numpy()  # made for us, as a rule
        array = torch.from_numpy(given if given.flags.writeable else given.copy())
        if template.dtype == torch.bfloat16 and array.dtype == torch.int16:
            array = array.view(torch.bfloat16)
        if (array.shape, array.dtype) != (template.shape, template.dtype):
            raise WireError(
                f"initial array '{name}' must be {tuple(template.shape)} {template.dtype}, "
                f"but is {tuple(array.shape)} {array.dtype}"
            )
        arrays[name] = array
    return arrays
