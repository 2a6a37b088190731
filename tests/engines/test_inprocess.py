"""Clients in this process, behind Flower's Grid."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from ist_fed import wire
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.errors import TaskError
from ist_fed.run import Run
from ist_fed.scenario import Record, Scenario


class Echo:
    """Says its number, and remembers what it was asked."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, []

    def query(self, message: Message) -> Message:
        self.asked.append("query")
        return Message(RecordDict({"me": ConfigRecord({"number": self.number})}), reply_to=message)

    def train(self, message: Message) -> Message:
        self.asked.append("train")
        if self.number == 2:
            raise OSError("disk full")
        return Message(RecordDict({"me": ConfigRecord({"number": -self.number})}), reply_to=message)


class Made:
    """Makes the handlers, and knows which were made."""

    def __init__(self) -> None:
        self.handlers: dict[int, Echo] = {}

    def __call__(self, number: int) -> Echo:
        assert number not in self.handlers
        self.handlers[number] = Echo(number)
        return self.handlers[number]


def messages(*nodes: int, kind: str = MessageType.TRAIN, ttl: float = 60.0) -> list[Message]:
    return [Message(RecordDict(), node, kind, ttl=ttl) for node in nodes]


def number(reply: Message) -> Any:
    return reply.content["me"]["number"]


def test_is_a_grid_with_all_clients_always_there() -> None:
    grid = InProcessGrid(3, Made())
    assert isinstance(grid, Grid)
    assert grid.get_node_ids() == [0, 1, 2]
    assert grid.run.run_id == 1


def test_a_client_is_made_when_it_is_first_needed_and_then_kept() -> None:
    made = Made()
    grid = InProcessGrid(1000, made)
    names = grid.push_messages(messages(7, 7, 9))
    assert made.handlers == {}
    (reply,) = grid.pull_messages(names)
    assert (number(reply), list(made.handlers)) == (-7, [7])
    grid.pull_messages(names)
    grid.pull_messages(names)
    assert [handler.asked for handler in made.handlers.values()] == [["train", "train"], ["train"]]


def test_replies_come_one_at_a_time_in_the_order_of_pushing() -> None:
    grid = InProcessGrid(5, Made())
    names = grid.push_messages(messages(3, 1, 4))
    assert len(set(names)) == 3
    replies = [reply for _ in range(5) for reply in grid.pull_messages(reversed(names))]
    assert [number(reply) for reply in replies] == [-3, -1, -4]
    assert [reply.metadata.reply_to_message_id for reply in replies] == names
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 4]


def test_only_what_is_asked_for_is_pulled() -> None:
    grid = InProcessGrid(5, Made())
    first = grid.push_messages(messages(0, 1))
    second = grid.push_messages(messages(3))
    assert grid.pull_messages(["nothing"]) == []
    assert number(grid.pull_messages(second)[0]) == -3
    assert number(grid.pull_messages(set(first))[0]) == 0


def test_the_name_that_a_message_gets_is_the_one_its_reply_answers() -> None:
    grid = InProcessGrid(2, Made())
    (message,) = messages(1)
    (name,) = grid.push_messages([message])
    assert message.metadata.message_id == name
    assert grid.pull_messages([name])[0].metadata.reply_to_message_id == name


def test_questions_and_orders_reach_their_function() -> None:
    made = Made()
    grid = InProcessGrid(3, made)
    answers = grid.send_and_receive(messages(0, 1, kind=MessageType.QUERY), timeout=0.0)
    replies = grid.send_and_receive(iter(messages(1, 0)))
    assert [number(answer) for answer in answers] == [0, 1]
    assert [number(reply) for reply in replies] == [-1, 0]
    assert made.handlers[0].asked == ["query", "train"]


def test_what_a_client_raises_becomes_an_error_reply() -> None:
    grid = InProcessGrid(3, Made())
    (reply,) = grid.send_and_receive(messages(2))
    assert reply.has_error()
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "OSError: disk full"


def test_a_handler_that_cannot_be_made_becomes_an_error_reply() -> None:
    def broken(client: int) -> Echo:
        raise LookupError("no data")

    (reply,) = InProcessGrid(1, broken).send_and_receive(messages(0))
    assert reply.error.reason == "LookupError: no data"


def test_ctrl_c_is_not_swallowed() -> None:
    class Stopped(Echo):
        def train(self, message: Message) -> Message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InProcessGrid(1, Stopped).send_and_receive(messages(0))


def test_orders_that_lapsed_are_dropped_with_the_next_round() -> None:
    made = Made()
    grid = InProcessGrid(2, made)
    old = grid.push_messages(messages(0, ttl=1e-6))
    new = grid.push_messages(messages(1, ttl=60.0))
    assert grid.pull_messages(old) == []
    assert len(grid.pull_messages(new)) == 1
    assert list(made.handlers) == [1]


def test_messages_are_those_of_the_wire() -> None:
    """A worker's records pass unchanged: what is counted and checked in this process is what Flower would carry."""
    task = tiny.Tiny()
    grid = InProcessGrid(2, tiny.handlers(task, 2))
    (answer,) = grid.send_and_receive([wire.profile_question(1, 60.0)])
    assert wire.open_profile(answer) == wire.Profile(client=1, examples=30, capacity=1.0)


def test_flowers_older_way_to_make_a_message() -> None:
    grid = InProcessGrid(1, Made())
    message = grid.create_message(RecordDict(), MessageType.TRAIN, 0, "3")
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (0, "3")


def test_data_that_cannot_be_dealt_are_one_error_and_not_every_clients(tmp_path: Path) -> None:
    scenario = Scenario(
        name="x", task="digits", clients=2000, sizes={"hidden1": 32}, rule={"name": "disjoint", "groups": 2}
    )
    with pytest.raises(TaskError, match="1181 are too few for 2000 clients"):
        simulate(Run.create(tmp_path / "x", scenario))


def test_a_scenario_is_run_to_its_end(tmp_path: Path) -> None:
    scenario = Scenario(
        name="x",
        task="tiny:Tiny",
        clients=3,
        rounds=2,
        local_steps=2,
        sizes=tiny.SIZES,
        rule={"name": "disjoint", "groups": 2, "min_units": 2},
        record=Record(tensorboard=False),
        device="cpu",
    )
    run, lines = Run.create(tmp_path / "x", scenario), []
    simulate(run, on_line=lines.append)
    assert [line["round"] for line in lines] == [line["round"] for line in run.metrics()] == [1, 2]
    assert run.restore().round == 2
    assert (run.folder / "model.safetensors").exists()
