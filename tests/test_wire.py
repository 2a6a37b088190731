"""What crosses the wire: round trips, and everything that must be refused."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from blake3 import blake3
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ist_fed import wire
from ist_fed.errors import WireError
from ist_fed.train import Training
from ist_fed.wire.laid import PIECE, Laid
from ist_fed.wire.parcel import ENCLOSED, take_pieces
from ist_fed.wire.piece import Piece

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
]  # fmt: skip
SHAPES = [(), (0,), (1,), (3,), (2, 0, 5), (3, 5)]


def example(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw > 0 if dtype == torch.bool else (10 * draw.abs()).to(dtype)


ARRAYS = {f"{dtype}-{shape}": example(dtype, shape) for dtype in DTYPES for shape in SHAPES}
NARROW = {
    "weight": example(torch.float32, (4, 3)),
    "bias": example(torch.float32, (4,)),
    "mask": example(torch.bool, (5,)),
    "half": example(torch.bfloat16, (3,)),
    "counter": torch.tensor(7),
}


# --- Flat arrays ------------------------------------------------------------------------------------------------------


class TestPack:
    def test_round_trip_of_every_dtype_and_shape(self) -> None:
        parcel = wire.pack(ARRAYS)
        assert tiny.same(wire.unpack(parcel.layout, parcel.pieces), dict(ARRAYS))
        assert parcel.size == sum(array.nbytes for array in ARRAYS.values())

    @pytest.mark.parametrize("arrays", [{}, {"a": torch.empty(0)}, {"a": torch.tensor(1.5)}])
    def test_round_trip_of_little(self, arrays: dict[str, Tensor]) -> None:
        parcel = wire.pack(arrays)
        assert tiny.same(wire.unpack(parcel.layout, parcel.pieces), arrays)

    def test_arrays_laid_out_otherwise_are_packed_in_row_major_order(self) -> None:
        strided = torch.arange(24.0).view(4, 6)
        arrays = {"t": strided.T, "s": strided[::2, 1::2], "p": torch.nn.Parameter(strided.clone())}
        parcel = wire.pack(arrays)
        assert tiny.same(wire.unpack(parcel.layout, parcel.pieces), {n: a.detach() for n, a in arrays.items()})

    def test_an_empty_array_from_numpy_is_packed(self) -> None:
        arrays = {"a": torch.from_numpy(np.zeros((0, 3), np.float32))}
        parcel = wire.pack(arrays)
        assert tiny.same(wire.unpack(parcel.layout, parcel.pieces), arrays)

    def test_every_array_is_aligned_and_nothing_is_padding(self) -> None:
        parcel = wire.pack(ARRAYS)
        arrays = wire.unpack(parcel.layout, parcel.pieces)
        assert all(array.data_ptr() % array.element_size() == 0 for array in arrays.values() if array.numel())
        itemsizes = [array.element_size() for array in arrays.values()]
        assert itemsizes == sorted(itemsizes, reverse=True)

    def test_unpacking_copies_nothing(self) -> None:
        parcel = wire.pack({"a": torch.zeros(1 << 20)})
        pieces = parcel.pieces
        tracemalloc.start()
        arrays = wire.unpack(parcel.layout, pieces)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert arrays["a"].numel() == 1 << 20
        assert peak < 1 << 16

    def test_packing_copies_nothing(self) -> None:
        array = torch.zeros(1 << 20)
        tracemalloc.start()
        parcel = wire.pack({"a": array})
        parcel.label()
        records = parcel.beside("reply", {})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 16
        assert tiny.same(wire.unpack(parcel.layout, take_pieces(records, "reply")), {"a": array})

    def test_the_digest_is_of_the_bytes(self) -> None:
        parcel = wire.pack(NARROW)
        assert parcel.label().digest == blake3(b"".join(parcel.pieces)).hexdigest()

    def test_many_bytes_travel_in_pieces(self) -> None:
        arrays = {"a": torch.rand(PIECE // 4 + 3), "b": torch.rand(PIECE // 4)}
        parcel = wire.pack(arrays)
        assert [len(piece) for piece in parcel.pieces] == [PIECE, PIECE, 12]
        records = parcel.beside("reply", {})
        assert list(records) == ["subnet0", "subnet1", "subnet2", "reply"]
        assert tiny.same(wire.unpack(parcel.layout, take_pieces(records, "reply")), arrays)
        for name in list(records)[:3]:
            few = {key: record for key, record in records.items() if key != name}
            with pytest.raises(WireError, match=r"as 2 records of bytes|must come as .* bytes"):
                wire.unpack(parcel.layout, take_pieces(few, "reply"))

    @pytest.mark.parametrize("size", [0, 1, 127, 128, 1 << 14, PIECE])
    def test_a_piece_travels_as_flowers_own_record_would(self, size: int) -> None:
        content = bytes(range(256)) * (size // 256) + bytes(size % 256)
        piece, plain = Piece(Laid([memoryview(content)]), 0), ConfigRecord({"bytes": content})
        assert piece.deflate() == plain.deflate()
        assert piece.object_id == plain.object_id
        assert ConfigRecord.inflate(piece.deflate()) == plain
        piece["bytes"] = plain["bytes"] = b"others"
        assert piece.object_id == plain.object_id

    def test_pieces_are_let_go_as_they_are_joined(self) -> None:
        arrays = {"a": torch.rand(PIECE)}
        parcel = wire.pack(arrays)
        records = parcel.beside("reply", {})
        del parcel
        pieces = take_pieces(records, "reply")
        assert list(records) == ["reply"]
        assert tiny.same(wire.unpack(str(records["reply"]["layout"]), pieces), arrays)
        assert pieces == []

    @pytest.mark.parametrize("size", [0, 1, ENCLOSED, ENCLOSED + 1])
    def test_a_small_subnet_lies_beside_its_fields(self, size: int) -> None:
        arrays = {"a": torch.arange(size).to(torch.uint8)}
        parcel = wire.pack(arrays)
        records = parcel.beside("reply", {"round": 1})
        assert len(records) == (1 if size <= ENCLOSED else 2)
        assert tiny.same(wire.unpack(parcel.layout, take_pieces(records, "reply")), arrays)

    def test_a_dtype_that_cannot_travel_is_named(self) -> None:
        with pytest.raises(WireError, match=r"'w' is complex64; convert it"):
            wire.pack({"ok": torch.zeros(2), "w": torch.zeros(2, dtype=torch.complex64)})


class TestHostileLayouts:
    """A layout comes from outside on the client's side only; there too it must not crash or take memory."""

    @pytest.mark.parametrize(
        "layout",
        [
            "", "{", "nonsense", "null", "7", '"text"', "[1]", "[[]]", '[["a"]]', '{"a": 1}', '{"abc": 1}',
            '[["a", "float32"]]', '[["a", "float32", 3]]', '[["a", "float32", "3"]]', '[["a", "float32", {}]]',
            '[["a", "float32", [1.0]]]', '[["a", "float32", [true]]]', '[["a", "float32", [null]]]',
            '[["a", "float32", [-1]]]', '[["a", "float32", [-2, -2]]]', '[["a", "float99", [1]]]',
            '[["a", ["float32"], [1]]]', '[[1, "float32", [1]]]', '[["a", "float32", [1]], ["a", "float32", [1]]]',
            '[["a", "float32", [200000000000]]]', '[["a", "float32", [4611686018427387904, 4]]]',
            '[["a", "float32", [0, 9223372036854775807, 9223372036854775807]]]',
            f'[["a", "float32", [{"9" * 4000}]]]', f'[["a", "float32", [{"9" * 5000}]]]',
            f'[["a", "uint8", [{", ".join(["1"] * 70)}]]]', "[" * 100_000, '[["a", "float32", ' + "[" * 100_000,
            '[["a", "float32", [NaN]]]',
        ],
        ids=range(33),
    )  # fmt: skip
    @pytest.mark.parametrize("size", [0, 4])
    def test_is_refused_without_taking_memory(self, layout: str, size: int) -> None:
        pieces = wire.pack({"a": torch.zeros(size, dtype=torch.uint8)}).pieces
        tracemalloc.start()
        with pytest.raises(WireError) as caught:
            wire.unpack(layout, pieces)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
        assert len(str(caught.value)) < 1000

    def test_a_narrow_array_before_a_wide_one(self) -> None:
        pieces = wire.pack({"a": torch.zeros(7, dtype=torch.uint8)}).pieces
        with pytest.raises(WireError, match="wider dtypes first"):
            wire.unpack('[["a", "uint8", [3]], ["b", "float32", [1]]]', pieces)


class TestHostilePayloads:
    parcel = wire.pack(NARROW)

    @pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b + b])
    def test_too_few_bytes_or_too_many(self, change: Callable[[bytes], bytes]) -> None:
        (whole,) = self.parcel.pieces
        with pytest.raises(WireError, match=f"must come as {self.parcel.size} bytes, but {len(change(whole))} came"):
            wire.unpack(self.parcel.layout, [change(whole)])

    @pytest.mark.parametrize(
        "record",
        [
            ConfigRecord(),
            ConfigRecord({"bytes": "text"}),
            ConfigRecord({"bytes": 7}),
            ConfigRecord({"bytes": [b"a", b"b"]}),
            ConfigRecord({"more": b"a"}),
            ConfigRecord({"bytes": b"a", "more": b"b"}),
            MetricRecord({"bytes": 1}),
            ArrayRecord({"bytes": Array(np.zeros(3, np.uint8))}),
        ],
        ids=range(8),
    )
    def test_a_record_that_is_no_piece(self, record: Any) -> None:
        for records in ({"subnet0": record}, {"subnet1": ConfigRecord({"bytes": b"a"})}, {"subnet": record}):
            with pytest.raises(WireError, match="comes as 1 records of bytes, but 'subnet0' is not one"):
                take_pieces(records, "reply")

    def test_a_message_without_bytes(self) -> None:
        for fields in ({}, {"bytes": "text"}, {"bytes": [b"a"]}):
            assert take_pieces({"reply": ConfigRecord(fields)}, "reply") == []


class TestWideRecord:
    def test_round_trip(self) -> None:
        assert tiny.same(wire.from_record(wire.to_record(ARRAYS), ARRAYS), ARRAYS)

    def test_what_comes_out_is_ones_own(self) -> None:
        record = wire.to_record(NARROW)
        wire.from_record(record, NARROW)["weight"].fill_(9)
        assert tiny.same(wire.from_record(record, NARROW), NARROW)

    def test_a_second_name_of_a_tied_weight_is_left_out(self) -> None:
        record = wire.to_record({**NARROW, "head.weight": NARROW["weight"]})
        assert wire.from_record(record, NARROW).keys() == NARROW.keys()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"weight": None}, r"lack 'weight'; they have \['bias'"),
            ({"weight": torch.zeros(3, 4)}, r"'weight' must be \(4, 3\) torch.float32, but is \(3, 4\)"),
            ({"weight": torch.zeros(4, 3, dtype=torch.float64)}, r"'weight' must be .* but is \(4, 3\) torch.float64"),
            ({"half": torch.zeros(3)}, r"'half' must be \(3,\) torch.bfloat16, but is \(3,\) torch.float32"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, Tensor | None], message: str) -> None:
        changed = {name: array for name, array in {**NARROW, **change}.items() if array is not None}
        with pytest.raises(WireError, match=message):
            wire.from_record(wire.to_record(changed), NARROW)


# --- Messages ---------------------------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "round": 3,
    "nonce": "ab" * 16,
    "seed": (1 << 63) - 1,
    "local_steps": 5,
    "lr": 0.1,
    "sizes": {"hidden1": 4},
    "training": asdict(Training()),
}
LABEL = wire.pack(NARROW).label()


def order_message(**changed: Any) -> Message:
    message = wire.order_message(5, wire.pack(NARROW), {**FIELDS, **changed}, ConfigRecord({"mine": 1}), 60.0)
    message.metadata.__dict__["_message_id"] = "m1"
    return message


def order() -> wire.Order:
    return wire.open_order(order_message())


TRAINED = {name: array + 1 if array.dtype != torch.bool else ~array for name, array in NARROW.items()}


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small subnet travel as a large one does, in records of its own."""
    monkeypatch.setattr(wire.parcel, "ENCLOSED", -1)


def reply_either_way(data: st.DataObject) -> Message:
    with mock.patch.object(wire.parcel, "ENCLOSED", data.draw(st.sampled_from([-1, ENCLOSED]))):
        return reply()


def reply(arrays: dict[str, Tensor] = TRAINED, **changed: Any) -> Message:
    opened = replace(order(), **changed)
    return wire.reply_message(opened, arrays, loss=0.5, seconds=0.1, reply_to=order_message())


def opened(message: Message, **changed: Any) -> wire.Reply:
    return wire.open_reply(message, **{"round": 3, "nonce": FIELDS["nonce"], "label": LABEL, **changed})


def over_the_wire(message: Message) -> Message:
    """As Flower sends it."""
    proto = message_to_proto(message)
    return message_from_proto(type(proto).FromString(proto.SerializeToString()))


KEPT = {"weight": torch.ones(2, 3), "exp_avg_sq/weight": torch.full((2, 3), 0.5), "step/weight": torch.tensor(4)}


class TestState:
    """What an optimiser keeps comes back as one could have kept it."""

    def back(self, **changed: Tensor) -> wire.Reply:
        label = wire.pack(KEPT).label()
        made = reply({**KEPT, **{key.replace("__", "/"): array for key, array in changed.items()}}, digest=label.digest)
        return opened(made, label=label)

    @pytest.mark.parametrize("value", [-1e30, -1e-30])
    def test_a_mean_of_squares_below_zero_is_refused(self, value: float) -> None:
        wrong = KEPT["exp_avg_sq/weight"].clone()
        wrong[1, 2] = value
        with pytest.raises(WireError, match="must not be negative, but 'exp_avg_sq/weight' holds -1e"):
            self.back(exp_avg_sq__weight=wrong)

    @pytest.mark.parametrize("steps", [-1, (1 << 24) + 1, (1 << 63) - 1, -(1 << 63)])
    def test_a_number_of_steps_that_nobody_counts_is_refused(self, steps: int) -> None:
        with pytest.raises(WireError, match=f"must be from 0 to 16777216, but 'step/weight' is {steps}"):
            self.back(step__weight=torch.tensor(steps))

    @pytest.mark.parametrize("steps", [0, 4, 1 << 24])
    def test_what_could_have_been_kept_is_taken(self, steps: int) -> None:
        squares = torch.tensor([[0.0, -0.0, 1e-45], [1e30, 1.0, 0.0]])
        came = self.back(exp_avg_sq__weight=squares, step__weight=torch.tensor(steps)).arrays
        assert int(came["step/weight"]) == steps
        assert torch.equal(came["exp_avg_sq/weight"], squares)


class TestOrders:
    def test_round_trip_through_flowers_own_bytes(self) -> None:
        message = over_the_wire(order_message())
        received = wire.open_order(message)
        assert {key: getattr(received, key) for key in FIELDS} == FIELDS
        assert tiny.same(received.arrays, {name: NARROW[name] for name in received.arrays})
        assert received.arrays.keys() == NARROW.keys()
        assert received.digest == LABEL.digest
        assert (message.metadata.dst_node_id, message.metadata.group_id) == (5, "3")
        assert message.metadata.message_type == MessageType.TRAIN
        assert message.metadata.ttl == 60.0
        assert message.content.config_records["config"] == {"mine": 1}

    @pytest.mark.parametrize("key", FIELDS)
    def test_a_missing_field_is_named(self, key: str) -> None:
        message = order_message()
        message.content["order"]["fields"] = json.dumps({k: v for k, v in FIELDS.items() if k != key})
        with pytest.raises(WireError, match=rf"{key}.*same version of ist_fed"):
            wire.open_order(message)

    @pytest.mark.parametrize("key", ["fields", "layout"])
    def test_a_missing_key_is_named(self, key: str) -> None:
        message = order_message()
        del message.content["order"][key]
        with pytest.raises(WireError, match=rf"{key}.*same version of ist_fed"):
            wire.open_order(message)

    @pytest.mark.usefixtures("apart")
    @pytest.mark.parametrize(("key", "said"), [("order", "cannot be read .*'layout'"), ("subnet0", "but 0 came")])
    def test_a_missing_record_is_named(self, key: str, said: str) -> None:
        message = order_message()
        del message.content[key]
        with pytest.raises(WireError, match=said):
            wire.open_order(message)

    def test_no_configuration_of_the_users_is_no_record(self) -> None:
        message = wire.order_message(5, wire.pack(NARROW), FIELDS, ConfigRecord(), 60.0)
        assert sorted(message.content) == ["order"]

    def test_an_order_of_a_later_version_is_refused(self) -> None:
        with pytest.raises(WireError, match=r"unexpected keyword argument 'lease'.*same version"):
            wire.open_order(order_message(lease="x"))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("round", 0), ("round", "3"), ("round", True), ("nonce", 5), ("seed", -1), ("seed", 1.5),
            ("local_steps", 0), ("local_steps", -3), ("local_steps", 2.0), ("lr", float("nan")), ("lr", -0.1),
            ("lr", float("inf")), ("lr", "0.1"), ("lr", [0.1]), ("sizes", []), ("sizes", {"hidden1": -4}),
            ("sizes", {"hidden1": 4.0}), ("sizes", {"hidden1": True}), ("training", 7), ("training", []),
        ],
    )  # fmt: skip
    def test_a_value_that_makes_no_sense_is_named(self, key: str, value: Any) -> None:
        with pytest.raises(WireError, match=f"an order's {key} makes no sense"):
            wire.open_order(order_message(**{key: value}))

    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", 7, "7", "[]"])
    @pytest.mark.parametrize("key", ["fields", "layout"])
    def test_text_that_is_not_json_is_refused(self, key: str, text: Any) -> None:
        message = order_message()
        message.content["order"][key] = text
        with pytest.raises(WireError):
            wire.open_order(message)

    def test_an_error_where_an_order_should_be(self) -> None:
        with pytest.raises(WireError, match="must hold a subnet"):
            wire.open_order(Message(Error(1, "no"), reply_to=order_message()))

    def test_nonces_do_not_repeat(self) -> None:
        nonces = {wire.new_nonce() for _ in range(1000)}
        assert len(nonces) == 1000
        assert all(len(bytes.fromhex(nonce)) == 16 for nonce in nonces)


class TestReplies:
    def test_round_trip_through_flowers_own_bytes(self) -> None:
        received = opened(over_the_wire(reply()))
        assert tiny.same(dict(sorted(received.arrays.items())), dict(sorted(TRAINED.items())))
        assert (received.size, received.loss, received.seconds) == (LABEL.size, 0.5, 0.1)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"nonce": "cd" * 16}, r"must echo the nonce of its order, abab.*, but says cdcd.*; it answers another"),
            ({"round": 2}, "must echo the round of its order, 3, but says 2"),
            ({"digest": "0" * 64}, "must echo the digest of its order"),
        ],
    )
    def test_a_replay_is_refused(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(WireError, match=message):
            opened(reply(**changed))

    @pytest.mark.parametrize(
        "arrays",
        [
            {**TRAINED, "weight": torch.zeros(3, 4)},
            {**TRAINED, "weight": torch.zeros(4, 3, dtype=torch.float64)},
            {**TRAINED, "extra": torch.zeros(1)},
            {name: array for name, array in TRAINED.items() if name != "bias"},
            {("bios" if name == "bias" else name): array for name, array in TRAINED.items()},
            dict(reversed(TRAINED.items())),
            {},
        ],
    )
    def test_other_arrays_are_refused(self, arrays: dict[str, Tensor]) -> None:
        with pytest.raises(WireError, match="must hold the arrays that were sent, in the same layout"):
            opened(reply(arrays))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("name", ["weight", "half"])
    def test_a_value_that_is_not_finite_is_refused(self, name: str, value: float) -> None:
        bad = TRAINED[name].clone()
        bad.view(-1)[1] = value
        with pytest.raises(WireError, match=f"must be finite, but '{name}' holds NaN or infinity"):
            opened(reply({**TRAINED, name: bad}))

    def test_a_byte_that_is_no_bool_is_refused(self) -> None:
        bad = torch.full((5,), 2, dtype=torch.uint8).view(torch.bool)
        with pytest.raises(WireError, match="must be 0 or 1, but 'mask' holds another byte"):
            opened(reply({**TRAINED, "mask": bad}))

    @pytest.mark.parametrize("key", ["round", "nonce", "digest", "layout"])
    @pytest.mark.parametrize("value", [None, 3, 3.0, True, "", "3", b"3", [3], ["a", "b"], [], 1 << 62])
    def test_an_echo_of_another_type_is_refused(self, key: str, value: Any) -> None:
        if (key, value, type(value)) == ("round", 3, int):
            return
        message = reply()
        if value is None:
            del message.content["reply"][key]
        else:
            message.content["reply"][key] = value
        with pytest.raises(WireError):
            opened(message)

    @pytest.mark.usefixtures("apart")
    def test_records_that_are_missing_or_too_many(self) -> None:
        for change in (
            lambda content: content.pop("subnet0"),
            lambda content: content.pop("reply"),
            lambda content: content.update(more=ArrayRecord({"a": Array(np.zeros(2))})),
            lambda content: content.update(subnet1=ConfigRecord({"bytes": b"x"})),
            lambda content: content.update(subnet0=ConfigRecord({"flat": b"x"})),
            lambda content: content.update(reply=MetricRecord({"round": 3})),
            lambda content: content["reply"].update(bytes=b"twice"),
        ):
            message = reply()
            change(message.content)
            with pytest.raises(WireError):
                opened(message)

    def test_a_message_without_content(self) -> None:
        message = reply()
        message.__dict__["_content"] = None
        with pytest.raises(WireError, match="must hold records, but is empty"):
            opened(message)

    @pytest.mark.parametrize(
        ("metrics", "loss", "seconds"),
        [
            ({}, None, None),
            ({"loss": float("nan"), "seconds": float("inf")}, None, None),
            ({"loss": 1e300, "seconds": -5.0}, None, None),
            ({"loss": [1.0, 2.0], "seconds": [1]}, None, None),
            ({"loss": 2, "seconds": 3}, 2.0, 3.0),
            ({"loss": -1.5, "seconds": 0.0}, -1.5, 0.0),
        ],
    )
    def test_numbers_beside_it_never_refuse_a_subnet(
        self, metrics: dict[str, Any], loss: float | None, seconds: float | None
    ) -> None:
        message = reply()
        for key in ("loss", "seconds"):
            del message.content["reply"][key]
        message.content["reply"].update(metrics)
        received = opened(message)
        assert received.loss == loss if loss is not None else received.loss != received.loss
        assert received.seconds == seconds if seconds is not None else received.seconds != received.seconds


NASTY = "\x1b[31mred\x1b[0m\r\n\tand\x00 more \u202e\u2028 text " + "x" * 1_000_000


class TestWhatAClientSays:
    def test_a_refusal(self) -> None:
        with pytest.raises(WireError, match=r"^the client did not train: no data$"):
            opened(wire.refusal_message("no data", reply_to=order_message()))

    def test_an_error_of_flowers(self) -> None:
        with pytest.raises(WireError, match=r"^the client failed: it is gone$"):
            opened(Message(Error(5, "it is gone"), reply_to=order_message()))
        with pytest.raises(WireError, match=r"^the client failed: code 5$"):
            opened(Message(Error(5), reply_to=order_message()))

    @pytest.mark.parametrize(
        "message",
        [
            lambda: wire.refusal_message(NASTY, reply_to=order_message()),
            lambda: Message(Error(2, NASTY), reply_to=order_message()),
            lambda: Message(RecordDict({"reply": ConfigRecord({"error": NASTY})}), reply_to=order_message()),
            lambda: reply(nonce=NASTY),
        ],
    )
    def test_long_and_unprintable_text_becomes_one_short_line(self, message: Callable[[], Message]) -> None:
        made = message()
        tracemalloc.start()
        with pytest.raises(WireError) as caught:
            opened(made)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        text = str(caught.value)
        assert text.isprintable()
        assert "red" in text
        assert len(text) < 800
        assert peak < 1 << 17  # not the million characters that were sent

    def test_a_refusal_is_short_when_it_is_sent(self) -> None:
        message = wire.refusal_message(NASTY, reply_to=order_message())
        assert len(message.content["reply"]["error"]) <= 2000

    @pytest.mark.parametrize("said", [5, True, 2.5, b"\xff\x00", ["a", "b"], [1] * 1000, "", 1 << 62, float("nan")])
    def test_what_is_no_text_is_shown_all_the_same(self, said: Any) -> None:
        message = Message(RecordDict({"reply": ConfigRecord({"error": said})}), reply_to=order_message())
        with pytest.raises(WireError, match=r"the client did not train: ."):
            opened(message)
        with pytest.raises(WireError, match=r"the client failed: ."):
            opened(Message(Error(2, said), reply_to=order_message()))


class TestProfiles:
    def ask(self) -> Message:
        return wire.profile_question(5, 60.0)

    def test_round_trip_through_flowers_own_bytes(self) -> None:
        least = wire.Profile(client=3, examples=100, capacity=0.5)
        more = {"memory": 1 << 40, "limit": 0.25, "step_seconds": 1e-3, "link": 1.25e9}
        for profile in (least, replace(least, **more)):
            answer = over_the_wire(wire.profile_answer(profile, reply_to=over_the_wire(self.ask())))
            assert wire.open_profile(answer) == profile
        assert self.ask().metadata.message_type == MessageType.QUERY

    @pytest.mark.parametrize(
        "record",
        [
            {}, {"client": 1, "examples": 5}, {"client": 1.0, "examples": 5, "capacity": 1.0},
            {"client": 1, "examples": 5, "capacity": 1}, {"client": True, "examples": 5, "capacity": 1.0},
            {"client": -1, "examples": 5, "capacity": 1.0}, {"client": 1, "examples": -5, "capacity": 1.0},
            {"client": 1, "examples": 1 << 60, "capacity": 1.0}, {"client": 1, "examples": 5, "capacity": 0.0},
            {"client": 1, "examples": 5, "capacity": -1.0}, {"client": 1, "examples": 5, "capacity": float("nan")},
            {"client": 1, "examples": 5, "capacity": float("inf")}, {"client": [1], "examples": 5, "capacity": 1.0},
            {"client": "1", "examples": "5", "capacity": "1"}, {"client": 10**5000, "examples": 5, "capacity": 1.0},
        ],
    )  # fmt: skip
    def test_numbers_that_make_no_sense_are_refused(self, record: dict[str, Any]) -> None:
        message = Message(RecordDict({"node": ConfigRecord(record)}), reply_to=self.ask())
        with pytest.raises(WireError):
            wire.open_profile(message)

    def test_a_client_that_says_less_is_taken_at_its_word(self) -> None:
        record = ConfigRecord({"client": 1, "examples": 5, "capacity": 2.0, "said by a later one": 3})
        answer = Message(RecordDict({"node": record}), reply_to=self.ask())
        assert wire.open_profile(answer) == wire.Profile(client=1, examples=5, capacity=2.0)

    @pytest.mark.parametrize("name", ["memory", "limit", "step_seconds", "link"])
    @pytest.mark.parametrize("value", [-1, -1.0, 1e300, float("nan"), float("inf"), 1 << 62, True, "1", [1.0]])
    def test_what_it_says_of_its_machine_must_make_sense(self, name: str, value: Any) -> None:
        record = ConfigRecord({"client": 1, "examples": 5, "capacity": 2.0, name: value})
        with pytest.raises(WireError, match=f"a client's {name} must be a (whole )?number from 0 to .*, but is "):
            wire.open_profile(Message(RecordDict({"node": record}), reply_to=self.ask()))

    def test_the_question_tells_what_is_to_be_trained(self) -> None:
        training = {"optimizer": "adam", "lr": 0.1}
        asked = over_the_wire(wire.profile_question(5, 60.0, {"a": 3, "b": 4}, training))
        assert wire.open_question(asked) == wire.Question(sizes={"a": 3, "b": 4}, training=training)
        assert wire.open_question(over_the_wire(self.ask())) is None

    @pytest.mark.parametrize(
        "told",
        [
            "", "[]", "3", "{}", '{"sizes": {}}', '{"sizes": [], "training": {}}', "[" * 10_000, 7,
            '{"sizes": {"a": 0}, "training": {}}', '{"sizes": {"a": 1.5}, "training": {}}',
            '{"sizes": {"a": 1}, "training": []}',
        ],
    )  # fmt: skip
    def test_a_question_that_cannot_be_read_is_refused(self, told: Any) -> None:
        question = Message(RecordDict({"node": ConfigRecord({"question": told})}), 5, MessageType.QUERY)
        with pytest.raises(WireError, match="a question"):
            wire.open_question(question)

    def test_other_answers_are_refused(self) -> None:
        for answer in (
            Message(RecordDict(), reply_to=self.ask()),
            Message(RecordDict({"node": MetricRecord({"client": 1})}), reply_to=self.ask()),
            Message(Error(2, "No query function registered"), reply_to=self.ask()),
        ):
            with pytest.raises(WireError):
                wire.open_profile(answer)


# --- Fuzz -------------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text(max_size=40), st.binary(max_size=40), st.booleans(),
    st.lists(st.integers(-5, 5), max_size=3), st.just(FIELDS["nonce"]), st.just(3), st.just(LABEL.digest),
)  # fmt: skip
KEYS = st.sampled_from(["round", "nonce", "digest", "layout", "error", "more"])


def mutate(data: st.DataObject, message: Message) -> None:
    """One change to any part of a reply but the trained values themselves."""
    content = message.content
    holder = "subnet0" if "subnet0" in content else "reply"
    kind = data.draw(st.sampled_from(["echo", "drop", "bytes", "record", "metric", "piece"]))
    if kind == "echo":
        content["reply"][data.draw(KEYS)] = data.draw(SCALARS)
    elif kind == "drop":
        del content[data.draw(st.sampled_from(["subnet0", "reply"]))]
    elif kind == "bytes":
        whole = content[holder]["bytes"]
        content[holder]["bytes"] = whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=99))
    elif kind == "record":
        name = data.draw(st.sampled_from(["subnet0", "subnet1", "reply", "more"]))
        content[name] = data.draw(st.sampled_from([ArrayRecord(), ConfigRecord(), MetricRecord()]))
    elif kind == "metric":
        content["reply"].update(loss=data.draw(st.floats()), seconds=data.draw(st.floats()))
    else:
        content[data.draw(st.sampled_from(["subnet1", "subnetx"]))] = ConfigRecord({"bytes": data.draw(st.binary())})


def outcome(message: Message) -> wire.Reply | None:
    """What the server makes of a message: a reply, or None where it refuses it in one short line."""
    try:
        return opened(message)
    except WireError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < 1000
    return None


@given(st.data())
def test_a_reply_that_was_changed_anywhere_is_refused_or_harmless(data: st.DataObject) -> None:
    message = reply_either_way(data)
    for _ in range(data.draw(st.integers(1, 3))):
        try:
            mutate(data, message)
        except KeyError:  # what it would change is gone
            break
    received = outcome(message)
    if received is None:
        return
    assert {name: (a.shape, a.dtype) for name, a in received.arrays.items()} == {
        name: (a.shape, a.dtype) for name, a in NARROW.items()
    }
    assert all(bool(array.isfinite().all()) for array in received.arrays.values())
    content = message.content
    assert {**content["reply"]} | {"round": 3, "nonce": FIELDS["nonce"], "digest": LABEL.digest} == {**content["reply"]}
    if take_pieces(content, "reply") == [*wire.pack(TRAINED).pieces]:
        assert tiny.same(dict(sorted(received.arrays.items())), dict(sorted(TRAINED.items())))


@given(st.data())
def test_flowers_bytes_with_some_flipped_never_crash_the_server(data: st.DataObject) -> None:
    sent = bytearray(recorddict_to_proto(reply_either_way(data).content).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        content = recorddict_from_proto(ProtoRecordDict.FromString(bytes(sent)))
    except Exception:  # Flower itself refuses it
        return
    received = outcome(Message(content, reply_to=order_message()))
    if received is not None:
        assert received.arrays.keys() == NARROW.keys()
        assert all(bool(array.isfinite().all()) for array in received.arrays.values())


@given(st.text(max_size=200), st.integers(0, 40))
def test_no_layout_crashes_a_client(text: str, size: int) -> None:
    pieces = wire.pack({"a": torch.zeros(size, dtype=torch.uint8)}).pieces
    for layout in (text, json.dumps([[text, "uint8", [size]]]), json.dumps([["a", text, [size]]])):
        try:
            arrays = wire.unpack(layout, pieces)
        except WireError:
            continue
        assert sum(a.nbytes for a in arrays.values()) == size
