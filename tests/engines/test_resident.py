"""A resident client: what it does with messages, with a network that fails, and when it is told to stop."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from ist_fed.engines import resident
from ist_fed.engines.resident import Resident
from ist_fed.errors import FleetOver, FleetRefused, FleetUnknown, FleetUnreachable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_IDLE_S", "_FIRST_WAIT_S", "_LONGEST_WAIT_S", "ADMISSION_S"):
        monkeypatch.setattr(resident, name, 0.001)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7


def message(number: int) -> Message:
    made = Message(RecordDict(), 7, MessageType.TRAIN, group_id=str(number))
    made.metadata.__dict__["_message_id"] = f"m{number}"
    return made


class Network:
    """Stands for the connection: gives what the script says, raises what is an exception."""

    address, link, held = "host:9092", 5.0, False

    def __init__(self, script: list[Any], pushes: list[Any] | None = None, joins: list[Any] | None = None) -> None:
        self._script, self._pushes, self._joins = iter(script), iter(pushes or []), iter(joins or [])
        self.pushed: list[Message] = []
        self.runs = 0
        self.stop: Callable[[], None] = lambda: None

    def _next(self, script: Iterator[Any], default: Any) -> Any:
        if isinstance(given := next(script, default), Exception):
            raise given
        return given

    def join(self) -> int:
        return self._next(self._joins, 7)

    def pull(self) -> Message | None:
        given = self._next(self._script, "end")
        if given == "end":
            self.stop()
            return None
        return given

    def push(self, reply: Message, seconds: float) -> None:
        self._next(self._pushes, None)
        self.pushed.append(reply)

    def run(self, number: int) -> Any:
        self.runs += 1
        return SimpleNamespace(run_id=number, override_config={"mine": 1}, series_id=1)


def served(network: Network, answer: Callable[[Message, Context], Message]) -> Network:
    app = ClientApp()
    app.train()(answer)
    client = Resident(network, {"partition-id": 3}, lambda run: app)  # type: ignore[arg-type]
    network.stop = client.stop
    client.serve()
    return network


def echo(message: Message, context: Context) -> Message:
    assert context.state["link"] == {"bytes_per_second": 5.0}
    assert (context.node_id, context.node_config, context.run_config["mine"]) == (7, {"partition-id": 3}, 1)
    return Message(RecordDict(), reply_to=message)


def test_it_answers_each_message_once_and_asks_for_a_run_once() -> None:
    network = served(Network([None, message(1), None, message(2)]), echo)
    assert [reply.metadata.reply_to_message_id for reply in network.pushed] == ["m1", "m2"]
    assert network.runs == 1


@pytest.mark.parametrize("held", [False, True])
def test_it_pauses_between_questions_unless_the_server_held_them(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    network = Network([None, message(1), None, None])
    network.held = held
    client = Resident(network, {}, lambda run: ClientApp())  # type: ignore[arg-type]
    network.stop = client.stop
    monkeypatch.setattr(client._stop, "wait", waited.append)
    client.serve()
    assert len(network.pushed) == 1
    assert len(waited) == (0 if held else 4)


def test_a_network_that_fails_delays_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gone = FleetUnreachable("gone")
    joins = [gone, gone, 7]
    network = served(Network([gone, message(1), gone, gone, message(2)], [gone, gone, None, None], joins), echo)
    assert [reply.metadata.reply_to_message_id for reply in network.pushed] == ["m1", "m2"]
    assert caplog.text.count("gone; trying again") == 4  # once each time it goes away


def test_an_app_that_raises_is_an_answer_that_says_nothing_of_the_client(caplog: pytest.LogCaptureFixture) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise OSError("no power in ward 7")

    (reply,) = served(Network([message(1)]), fail).pushed
    assert reply.error.reason == "it could not answer; its own log says why"
    assert "OSError: no power in ward 7" in caplog.text


def test_a_server_writes_no_lines_into_a_clients_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ist_fed")
    forged = "\n2026-11-28 12:00:00,000 WARNING your kit has expired\x1b[8m"
    asked = Message(RecordDict(), 7, MessageType.TRAIN, group_id=f"1: training{forged}")
    asked.metadata.__dict__["_message_id"] = "m1"
    asked.content["step"] = ConfigRecord({"name": f"share{forged}", "body": b""})
    served(Network([asked], [FleetRefused("over")]), lambda message, context: Message(RecordDict(), reply_to=message))
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if line.startswith("round 1: training 2026-11")]) == 2
    assert all(line.isprintable() and "expired" not in line for line in said)


def test_an_order_that_cannot_be_read_does_not_end_it() -> None:
    asked = message(1)
    asked.content["step"] = ConfigRecord({"name": 7})
    network = served(Network([asked, message(2)]), echo)
    assert [reply.has_error() for reply in network.pushed] == [True, False]


def test_a_reply_that_nobody_wants_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    network = served(Network([message(1), message(2)], [FleetRefused("the run is over")]), echo)
    assert [reply.metadata.reply_to_message_id for reply in network.pushed] == ["m2"]
    assert "round 1: the reply is no longer wanted (the run is over)" in caplog.text


def test_a_message_of_a_run_that_is_over_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    network = served(Network([FleetOver("the run is over"), message(2)]), echo)
    assert [reply.metadata.reply_to_message_id for reply in network.pushed] == ["m2"]
    assert "a message is not answered (the run is over)" in caplog.text


def test_what_it_holds_is_finished_before_it_stops() -> None:
    network = Network([message(1), message(2)], [FleetUnreachable("gone"), None])

    def told(message: Message, context: Context) -> Message:
        network.stop()
        return Message(RecordDict(), reply_to=message)

    served(network, told)
    assert [reply.metadata.reply_to_message_id for reply in network.pushed] == ["m1"]


def test_a_server_that_does_not_know_it_yet_is_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "ADMISSION_S", 0.1)
    unknown = FleetUnknown("unknown")
    assert len(served(Network([message(1)], joins=[unknown, unknown, 7]), echo).pushed) == 1
    with pytest.raises(FleetUnknown):
        served(Network([], joins=[unknown] * 1000), echo)


def test_a_server_that_refuses_ends_it() -> None:
    with pytest.raises(FleetRefused, match="was revoked"):
        served(Network([FleetRefused("was revoked")]), echo)
    with pytest.raises(FleetRefused, match="unknown"):
        served(Network([], joins=[FleetRefused("unknown")]), echo)
