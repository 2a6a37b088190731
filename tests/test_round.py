"""One round in progress."""

import logging
import tracemalloc
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

import pytest
import tiny
import torch
from flwr.app import ConfigRecord, Error, Message

from ist_fed import extract, infer, wire
from ist_fed.coverage import Coverage
from ist_fed.errors import RoundError
from ist_fed.places import Units
from ist_fed.round import Client, Round

TASK = tiny.Tiny()
AXES = infer(TASK.build, tiny.SIZES)
FIELDS = {"seed": 1, "local_steps": 1, "lr": 0.1, "training": asdict(tiny.TRAINING)}


class Rig:
    """A round with some clients, and their messages."""

    def __init__(
        self,
        *units: Units,
        weights: tuple[float, ...] | None = None,
        sizes: Mapping[str, int] = tiny.SIZES,
        link: float = 0.0,
    ) -> None:
        self.arrays = tiny.initial(TASK, sizes)
        self.coverage = Coverage(self.arrays, AXES, sizes)
        clients = [
            Client(node=10 + i, number=i, capacity=1.0, weight=(weights or [1.0] * len(units))[i], link=link)
            for i in range(len(units))
        ]
        self.round = Round(4, tuple(clients), self.arrays, AXES, self.coverage)
        self.messages = []
        for client, held in zip(clients, units, strict=True):
            parcel = wire.pack(extract(self.arrays, AXES, held))
            sizes = {axis: len(index) for axis, index in held.items()}
            fields = {**FIELDS, "round": 4, "nonce": f"n{client.number}", "sizes": sizes}
            message = wire.order_message(client.node, parcel, fields, ConfigRecord(), 60.0)
            self.round.sent(client.node, held, f"n{client.number}", parcel.label(), message)
            message.metadata.__dict__["_message_id"] = f"m{client.number}"  # the grid's, once it is pushed
            self.messages.append(message)

    def reply(self, client: int, value: float, loss: float = 1.0, seconds: float = 1.0) -> Message:
        """The client's subnet with every number replaced."""
        order = wire.open_order(self.messages[client])
        arrays = {name: torch.full_like(array, value) for name, array in order.arrays.items()}
        return wire.reply_message(order, arrays, loss=loss, seconds=seconds, reply_to=self.messages[client])


def units(*hidden: int) -> Units:
    return {"hidden1": torch.tensor(hidden), "hidden2": torch.tensor(hidden)}


def test_what_came_back_is_merged_and_reported() -> None:
    rig = Rig(units(0, 1), units(2, 3))
    rig.round.take(rig.reply(1, 5.0, loss=2.0, seconds=3.0))
    rig.round.take(rig.reply(0, 4.0, loss=1.0, seconds=2.0))
    report = rig.round.close(1)
    assert (report.round, report.clients, report.capacities) == (4, (0, 1), (1.0, 1.0))
    assert (report.merged, report.refused, report.loss) == (2, (), 1.5)
    assert report.arrays["4.weight"][0, 1] == 4.0
    assert report.arrays["4.weight"][2, 3] == 5.0
    assert report.arrays["4.weight"][0, 2] == rig.arrays["4.weight"][0, 2]
    assert report.arrays["7.bias"].tolist() == [4.5] * 3
    part = sum(array.nbytes for array in extract(rig.arrays, AXES, units(0, 1)).values())
    assert (report.bytes_down, report.bytes_up) == (2 * part, 2 * part)
    assert report.seconds["train"] == 5.0
    assert report.seconds["merge"] > 0


def test_what_each_clients_round_took_is_known_with_the_way_there_and_back() -> None:
    rig = Rig(units(0, 1), units(2, 3), units(4), link=100.0)
    rig.round.take(rig.reply(0, 4.0, seconds=2.0))
    rig.round.take(rig.reply(1, 4.0, seconds=float("nan")))
    with rig.round.timed("wait"):
        pass
    rig.round.close(1)
    part = sum(array.nbytes for array in extract(rig.arrays, AXES, units(0, 1)).values())
    held, seconds = rig.round.times[10]
    assert held["hidden1"].tolist() == [0, 1]
    assert seconds == 2.0 + 2 * part / 100.0
    assert 11 not in rig.round.times  # a clock that says nothing
    assert 0 < rig.round.times[12][1] < 1  # who did not answer took as long as was waited, at least


def test_the_arrays_before_are_not_changed() -> None:
    rig = Rig(units(0, 1))
    rig.round.take(rig.reply(0, 4.0))
    rig.round.close(1)
    assert tiny.same(rig.arrays, tiny.initial(TASK))


def test_the_report_does_not_depend_on_the_order_of_arrival() -> None:
    losses = [0.1, 0.2, 1e16, 0.3, -1e16]
    reports = []
    for order in ([0, 1, 2, 3, 4], [2, 4, 0, 3, 1], [4, 3, 2, 1, 0]):
        rig = Rig(*[units(0, 1)] * 5, weights=(1.0, 2.0, 3.0, 4.0, 5.0))
        for client in order:
            rig.round.take(rig.reply(client, 0.1 * client, loss=losses[client]))
        reports.append(rig.round.close(1))
    assert all(tiny.same(report.arrays, reports[0].arrays) for report in reports)
    assert {report.loss for report in reports} == {reports[0].loss}


def test_each_order_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(units(0, 1))
    rig.round.take(rig.reply(0, 4.0))
    with caplog.at_level(logging.WARNING, "ist_fed"):
        rig.round.take(rig.reply(0, 9.0))
    assert "round 4: a reply that nobody waits for was ignored" in caplog.text
    report = rig.round.close(1)
    assert (report.merged, report.arrays["7.bias"].tolist()) == (1, [4.0] * 3)


@pytest.mark.parametrize("answer", ["m9", "", "m"])
def test_a_reply_to_something_else_is_ignored(answer: str) -> None:
    rig = Rig(units(0, 1))
    reply = rig.reply(0, 4.0)
    reply.metadata.__dict__["_reply_to_message_id"] = answer
    rig.round.take(reply)
    with pytest.raises(RoundError, match="0 of 1 clients gave one: 1 × no reply came before the deadline"):
        rig.round.close(1)


def test_an_error_for_a_dead_node_is_matched_by_the_message_it_answers() -> None:
    """Flower's own error replies carry a source that is not the node's."""
    rig = Rig(units(0, 1), units(2, 3))
    reply = Message(Error(5, "Node unavailable"), reply_to=rig.messages[1])
    reply.metadata.__dict__["_src_node_id"] = 1
    rig.round.take(reply)
    rig.round.take(rig.reply(0, 4.0))
    (refused,) = rig.round.close(1).refused
    assert (refused.client, refused.reason) == (1, "the client failed: Node unavailable")


def test_who_does_not_answer_is_refused_and_named(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(units(0, 1), units(2, 3))
    rig.round.take(rig.reply(0, 4.0))
    with caplog.at_level(logging.WARNING, "ist_fed"):
        report = rig.round.close(1)
    assert [(refused.client, refused.reason) for refused in report.refused] == [
        (1, "no reply came before the deadline")
    ]
    assert "round 4: client 1: no reply came before the deadline; its units keep their values" in caplog.text
    assert report.bytes_down == 2 * report.bytes_up


def test_of_many_who_are_refused_some_are_named_and_the_rest_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(*[units(0, 1)] * 40)
    rig.round.take(rig.reply(0, 4.0))
    with caplog.at_level(logging.WARNING, "ist_fed"):
        report = rig.round.close(1)
    assert [refused.client for refused in report.refused] == list(range(1, 40))
    assert len(caplog.records) == 11
    assert "round 4: 29 more clients were refused" in caplog.text


def test_units_are_covered_once_the_round_is_closed() -> None:
    rig = Rig(units(0, 1), units(0, 1), units(2, 3))
    rig.round.take(rig.reply(0, 4.0))
    rig.round.take(rig.reply(1, 4.0))
    assert rig.coverage.fraction() == 0
    report = rig.round.close(1)
    by_hand = Coverage(rig.arrays, AXES, tiny.SIZES)
    by_hand.mark(units(0, 1))
    assert report.coverage == by_hand.fraction() > 0


def test_too_few_replies_name_the_commonest_reasons() -> None:
    rig = Rig(*[units(0, 1)] * 6)
    for client, reason in enumerate(["a", "b", "b", "c", "d"]):
        rig.round.take(wire.refusal_message(reason, reply_to=rig.messages[client]))
    with pytest.raises(RoundError) as caught:
        rig.round.close(2)
    assert str(caught.value) == (
        "round 4 needs usable replies, at least 2, but 0 of 6 clients gave one: 2 × the client did not train: b; "
        "1 × the client did not train: a; 1 × the client did not train: c"
    )


def test_nobody_asked() -> None:
    with pytest.raises(RoundError, match="0 of 0 clients gave one: nobody was asked"):
        Rig().round.close(1)


@pytest.mark.parametrize(
    ("metrics", "loss", "seconds"),
    [
        ([{"loss": float("nan"), "seconds": 1.0}, {"loss": 2.0, "seconds": 1.0}], 2.0, 2.0),
        ([{"seconds": float("inf")}, {"loss": 2.0, "seconds": -5.0}], 2.0, 0.0),
        ([{}, {}], None, 0.0),
    ],
)
def test_numbers_that_are_none_are_left_out(metrics: list[dict[str, Any]], loss: float | None, seconds: float) -> None:
    rig = Rig(units(0, 1), units(2, 3))
    for client, said in enumerate(metrics):
        reply = rig.reply(client, 4.0)
        for key in ("loss", "seconds"):
            del reply.content["reply"][key]
        reply.content["reply"].update(said)
        rig.round.take(reply)
    report = rig.round.close(1)
    assert report.merged == 2
    assert isnan(report.loss) if loss is None else report.loss == loss
    assert report.seconds["train"] == seconds


def test_replies_are_not_kept() -> None:
    """Memory must not grow with the cohort: its members' bytes are added up and let go."""
    sizes = {"hidden1": 100, "hidden2": 200}
    rig = Rig(*[{axis: torch.arange(size) for axis, size in sizes.items()}] * 40, sizes=sizes)
    tracemalloc.start()
    held = []
    for client in range(40):
        rig.round.take(rig.reply(client, 4.0))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    size = sum(array.nbytes for array in rig.arrays.values())
    assert held[-1] - held[4] < 3 * size  # of 35 replies
    assert rig.round.close(1).merged == 40


def test_phases_are_timed_and_add_up() -> None:
    rig = Rig(units(0, 1))
    for _ in range(2):
        with rig.round.timed("assign"):
            pass
    rig.round.take(rig.reply(0, 4.0))
    seconds = rig.round.close(1).seconds
    assert 0 < seconds["assign"] < 1
