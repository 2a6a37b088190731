"""Steps of secure rounds as Flower's messages."""

import os

import pytest
import tiny
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from ist_fed import wire
from ist_fed.errors import WireError
from ist_fed.wire.laid import PIECE
from ist_fed.wire.parcel import ENCLOSED
from ist_fed.wire.records import REPLY, STEP

ORDER = {
    "round": 3,
    "nonce": "",
    "seed": 1,
    "sizes": {"hidden1": 4},
    "local_steps": 2,
    "lr": 0.1,
    "training": {},
}


def asked(name: str = "share", body: bytes = b"x", parcel: wire.Parcel | None = None) -> Message:
    return wire.step_message(7, wire.Step(name=name, body=body), 3, 60, parcel=parcel, order=ORDER)


def test_a_step_comes_out_as_it_went_in() -> None:
    message = asked(body=bytes(range(256)))
    assert wire.open_step(message) == wire.Step(name="share", body=bytes(range(256)))
    assert message.metadata.dst_node_id == 7
    assert message.metadata.group_id == "3"


@pytest.mark.parametrize("numbers", [10, 200_000])
def test_a_subnet_rides_along_with_its_order(numbers: int) -> None:
    arrays = {"a": torch.arange(numbers, dtype=torch.float32), "b": torch.ones(2, 3, dtype=torch.int64)}
    parcel = wire.pack(arrays)
    message = asked("upload", b"boxes", parcel)
    assert wire.open_step(message) == wire.Step(name="upload", body=b"boxes")
    order = wire.open_order(message, take=True)
    assert tiny.same(order.arrays, arrays)
    assert order.digest == parcel.label().digest
    assert wire.layout_of_flat(order.arrays) == parcel.layout


def test_an_order_in_the_clear_is_no_step() -> None:
    message = wire.order_message(1, wire.pack({"a": torch.zeros(1)}), ORDER, ConfigRecord(), ttl=60)
    assert wire.open_step(message) is None


@pytest.mark.parametrize("record", [{"name": 1, "body": b""}, {"name": "share", "body": "text"}, {"name": "share"}])
def test_a_step_that_is_none_is_refused(record: dict[str, object]) -> None:
    message = Message(RecordDict({STEP: ConfigRecord(record)}), 1, MessageType.TRAIN)  # type: ignore[arg-type]
    with pytest.raises(WireError, match="a name and bytes"):
        wire.open_step(message)


@pytest.mark.parametrize("size", [0, 5, ENCLOSED, ENCLOSED + 1, PIECE, 2 * PIECE + 3])
def test_an_answer_of_any_size_comes_out_as_it_went_in(size: int) -> None:
    body = os.urandom(size)
    answer = wire.step_answer(body, reply_to=asked())
    assert wire.open_step_answer(answer) == body
    assert sum(len(value) for record in answer.content.values() for value in record.values()) <= size + 2


def test_a_refusal_is_said() -> None:
    answer = wire.refusal_message("no such round", reply_to=asked())
    with pytest.raises(WireError, match="did not go on: no such round"):
        wire.open_step_answer(answer)
    with pytest.raises(WireError):
        wire.open_step_answer(Message(RecordDict({"subnet0": ConfigRecord({})}), reply_to=asked()))
    assert REPLY in answer.content
