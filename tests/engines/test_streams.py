"""Large subnets beside Flower's messages: over real connections, broken ones, and with whoever calls uninvited."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import tiny
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from ist_fed import rules, wire
from ist_fed.engines.flower import free_port
from ist_fed.engines.inprocess import Handler, InProcessGrid
from ist_fed.engines.site import Site
from ist_fed.engines.streams import Place, Service, StreamingGrid, channel, streamed, streaming
from ist_fed.engines.streams.calls import AT, DOWN, MESSAGE, SIZE, TICKET, UP, path
from ist_fed.engines.streams.channel import Channel
from ist_fed.errors import EngineError, FleetRefused, FleetUnreachable, RoundError, WireError
from ist_fed.exchange import Waking
from ist_fed.pki import Federation
from ist_fed.wire import PIECE, Laid, parcel
from ist_fed.worker import Worker

PASSPHRASE = b"only for this test"
PIECES = [bytes([number]) * PIECE for number in range(6)] + [b"the rest"]
WHOLE = b"".join(PIECES)


def laid(content: bytes = WHOLE) -> Laid:
    return Laid([memoryview(content)])


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service("127.0.0.1:0", None)
    yield made
    made.close()


@contextmanager
def connected(port: int, ca: bytes | None = None) -> Iterator[Channel]:
    made = Channel(f"127.0.0.1:{port}", ca)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(channel, "_LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(channel, "_PATIENCE_S", 1.0)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- A transfer -------------------------------------------------------------------------------------------------------


def test_what_is_offered_is_fetched_and_what_is_sent_is_taken_once(service: Service) -> None:
    ticket = service.offer(laid())
    back = bytes(reversed(WHOLE))
    with connected(service.port) as link:
        assert link.fetch(ticket, len(WHOLE), 10) == WHOLE
        assert link.link > 0
        assert not service.came.is_set()
        link.send(ticket, laid(back), 10)
        assert service.came.is_set()
        assert service.take(ticket) == back
        assert service.take(ticket) is None
        with pytest.raises(FleetRefused, match="nobody waits for this ticket"):
            link.send(ticket, laid(back), 10)


@pytest.mark.parametrize("promised", [len(WHOLE) - 1, len(WHOLE) + 1])
def test_more_or_fewer_bytes_than_promised_are_refused(service: Service, promised: int) -> None:
    with connected(service.port) as link, pytest.raises(FleetRefused, match=f"a subnet of {promised} bytes was prom"):
        link.fetch(service.offer(laid()), promised, 10)


def test_bytes_that_were_fetched_are_let_go(service: Service) -> None:
    ticket = service.offer(laid())
    with connected(service.port) as link:
        link.fetch(ticket, len(WHOLE), 10)
        assert service._held[ticket].down is None
        link.fetch(ticket, 0, 10)  # to confirm twice does no harm


def test_tls_is_spoken_with_who_has_the_right_certificate_only(tmp_path: Path, quick: None) -> None:
    own, other = (
        Federation.create(tmp_path / name, name=name, address="127.0.0.1:1", hosts=["127.0.0.1"], passphrase=PASSPHRASE)
        for name in ("own", "other")
    )
    service = Service("127.0.0.1:0", (own.server_certificate, own.server_key))
    try:
        ticket = service.offer(laid())
        with (
            connected(service.port, other.ca_certificate.read_bytes()) as link,
            pytest.raises(FleetRefused, match="not the server of this federation"),
        ):
            link.fetch(ticket, len(PIECES), 10)
        with connected(service.port) as link, pytest.raises(FleetUnreachable):
            link.fetch(ticket, len(PIECES), 10)
        with connected(service.port, own.ca_certificate.read_bytes()) as link:
            assert link.fetch(ticket, len(WHOLE), 10) == WHOLE
    finally:
        service.close()


# --- Broken connections -----------------------------------------------------------------------------------------------


class Cutting:
    """Passes bytes between a port of its own and another, and cuts each connection after some, until it has had enough.

    Args:
        port: the other.
        after: bytes, in both directions together, after which a connection is cut; one for each connection.
    """

    def __init__(self, port: int, after: list[int]) -> None:
        self._to, self.after, self.passed = port, list(after), 0
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, does: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=does, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(("127.0.0.1", self._to))
                self._ends += near, far
                left = [self.after.pop(0) if self.after else 1 << 60]
                self._start(self._pass, near, far, left)
                self._start(self._pass, far, near, left)

    def _pass(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while left[0] > 0 and (data := source.recv(1 << 16)):
                left[0] -= len(data)
                self.passed += len(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


def test_a_transfer_that_is_cut_goes_on_where_it_was(service: Service, quick: None) -> None:
    cutting = Cutting(service.port, [int(3.5 * PIECE), int(3.5 * PIECE)])
    with connected(cutting.port) as link:
        ticket = service.offer(laid())
        assert link.fetch(ticket, len(WHOLE), 30) == WHOLE
        fetched = cutting.passed
        assert fetched < 11 * PIECE  # six, and what was under way at each cut; from the start each time, it were 13
        cutting.after[:] = [int(3.5 * PIECE), int(3.5 * PIECE)]
    with connected(cutting.port) as link:
        link.send(ticket, laid(), 30)
        assert service.take(ticket) == WHOLE
        assert cutting.passed - fetched < 11 * PIECE
    cutting.close()


def test_a_port_that_nobody_answers_is_given_up(quick: None) -> None:
    with connected(free_port()) as link:
        began = time.monotonic()
        with pytest.raises(FleetUnreachable, match="cannot be reached"):
            link.fetch("a", 1, 3600)
        with pytest.raises(FleetUnreachable, match="cannot be reached"):
            link.send("a", laid(b"1"), 3600)
        assert 1 < time.monotonic() - began < 20


def test_an_old_call_does_not_add_to_what_a_newer_one_sends(service: Service) -> None:
    """The server may not have noticed yet that the connection of the older one is broken."""
    ticket, resume, began = service.offer(laid()), threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield WHOLE[:1000]
        began.set()
        resume.wait(10)
        yield b"of the old call"

    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as plain, connected(service.port) as link:
        old = plain.stream_unary(path(UP)).future(
            slowly(), metadata=[(TICKET, ticket), (AT, "0"), (SIZE, str(len(WHOLE)))]
        )
        began.wait(10)
        while not service._held[ticket].got:
            time.sleep(0.01)
        assert link._send(ticket, (), 0, len(WHOLE), 10) == 1000
        assert link._send(ticket, laid().pieces(1000, MESSAGE), 1000, len(WHOLE), 10) == len(WHOLE)
        resume.set()
        assert old.exception(10).code() is grpc.StatusCode.CANCELLED
        assert service.take(ticket) == WHOLE


# --- Whoever calls uninvited ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([], grpc.StatusCode.NOT_FOUND),
        ([(TICKET, "0" * 32), (AT, "0")], grpc.StatusCode.NOT_FOUND),
        ([(TICKET, "own")], grpc.StatusCode.INVALID_ARGUMENT),
        ([(TICKET, "own"), (AT, "0")], grpc.StatusCode.INVALID_ARGUMENT),
        ([(TICKET, "own"), (AT, "-1"), (SIZE, "1")], grpc.StatusCode.INVALID_ARGUMENT),
        ([(TICKET, "own"), (AT, "0"), (SIZE, "9" * 30)], grpc.StatusCode.INVALID_ARGUMENT),
        ([(TICKET, "own"), (AT, "0"), (SIZE, "9" * 15)], grpc.StatusCode.OUT_OF_RANGE),
        ([(TICKET, "own"), (AT, "3"), (SIZE, "9")], grpc.StatusCode.ABORTED),
        ([(TICKET, "own"), (AT, "0"), (SIZE, "0")], grpc.StatusCode.ABORTED),
    ],
)
def test_who_does_not_know_what_to_say_is_refused(
    service: Service, metadata: list[tuple[str, str]], code: grpc.StatusCode
) -> None:
    ticket = service.offer(laid())
    said = [(key, ticket if value == "own" else value) for key, value in metadata]
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as plain:
        for call in (plain.stream_unary(path(UP)), *([plain.stream_unary(path("Elsewhere"))] if not said else [])):
            with pytest.raises(grpc.RpcError) as error:
                call(iter([b"x"]), metadata=said, timeout=10)
            assert error.value.code() in (code, grpc.StatusCode.UNIMPLEMENTED)
        with pytest.raises(grpc.RpcError):
            list(plain.unary_stream(path("Down"))(b"\xff\xfe", metadata=[(TICKET, ticket)], timeout=10))
    assert not service.take(ticket)


def test_no_more_is_taken_in_than_can_be_a_trained_subnet(service: Service) -> None:
    ticket = service.offer(laid(bytes(1000)))
    with connected(service.port) as link:
        with pytest.raises(FleetRefused, match="more bytes come than can be a trained subnet"):
            link.send(ticket, laid(bytes(2 * PIECE)), 10)
        assert service._held[ticket].up is None
        with pytest.raises(grpc.RpcError, match="not the bytes that come next"):
            link._send(ticket, [bytes(1000)] * 2, 0, 1500, 10)  # more than was said
        assert service.take(ticket) is None  # and not all of that
        with pytest.raises(grpc.RpcError, match="larger than max"):
            link._send(service.offer(laid()), [bytes(2 * PIECE)], 0, 2 * PIECE, 10)


class Silent:
    """Calls that send nothing until they are closed."""

    def __init__(self, port: int) -> None:
        self._plain, self._closed = grpc.insecure_channel(f"127.0.0.1:{port}"), threading.Event()

    def call(self, call: str, ticket: str | None) -> grpc.Future:
        said = [(TICKET, ticket)] if ticket else []
        return self._plain.stream_unary(path(call)).future(self._nothing(), metadata=[*said, (AT, "0"), (SIZE, "1")])

    def _nothing(self) -> Iterator[bytes]:
        self._closed.wait()
        yield from ()

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._plain.close()


@pytest.fixture
def four_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ist_fed.engines.streams.service._AT_ONCE", 4)


@pytest.mark.parametrize("call", [DOWN, UP])
@pytest.mark.usefixtures("four_at_once")
def test_who_has_no_ticket_keeps_nobody_waiting(call: str, service: Service) -> None:
    with Silent(service.port) as silent, connected(service.port) as link:
        calls = [silent.call(call, None) for _ in range(20)]
        assert link.fetch(service.offer(laid()), len(WHOLE), 10) == WHOLE
        assert {each.exception(10).code() for each in calls} == {grpc.StatusCode.NOT_FOUND}


@pytest.mark.parametrize("call", [DOWN, UP])
@pytest.mark.usefixtures("four_at_once")
def test_a_ticket_takes_one_thread_until_it_is_worth_nothing(call: str, service: Service) -> None:
    mine, other = service.offer(laid()), service.offer(laid())
    with Silent(service.port) as silent, connected(service.port) as link:
        calls = [silent.call(call, mine) for _ in range(20)]
        assert link.fetch(other, len(WHOLE), 10) == WHOLE
        wait_for(lambda: sum(each.done() for each in calls) == 19)
        service.take(mine)
        assert {each.exception(10).code() for each in calls} == {grpc.StatusCode.CANCELLED}
        link.send(other, laid(), 10)
        assert service.take(other) == WHOLE


@pytest.mark.usefixtures("quick")
def test_who_comes_when_there_are_too_many_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ist_fed.engines.streams.service._WAITING", 1)
    service = Service("127.0.0.1:0", None)
    mine, other = service.offer(laid()), service.offer(laid())
    try:
        with Silent(service.port) as silent, connected(service.port) as link:
            waiting = silent.call(UP, mine)
            wait_for(lambda: service._held[mine].call is not None)
            with pytest.raises(FleetUnreachable, match="has too much to do"):
                link.fetch(other, len(WHOLE), 10)
            soon = threading.Timer(0.2, service.take, [mine])
            soon.start()
            assert link.fetch(other, len(WHOLE), 10) == WHOLE
            assert waiting.exception(10).code() is grpc.StatusCode.CANCELLED
    finally:
        service.close()


# --- A grid -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny task's subnets be large ones."""
    monkeypatch.setattr(parcel, "ENCLOSED", 100)
    monkeypatch.setattr("ist_fed.wire.laid.PIECE", 1000)


class Node:
    """A client behind the mod, as in a ClientApp."""

    def __init__(self, handler: Handler, config: dict[str, bool | bytes | float | int | str]) -> None:
        self._handler = handler
        self.context = Context(1, 1, config, RecordDict(), {}, series_id=1)

    def query(self, message: Message) -> Message:
        return streamed(message, self.context, lambda message, context: self._handler.query(message))

    def train(self, message: Message) -> Message:
        return streamed(message, self.context, lambda message, context: self._handler.train(message))


class Watched(InProcessGrid):
    """Sees that no subnet is in a message."""

    def __init__(self, clients: int, handler: Callable[[int], Handler]) -> None:
        self.nodes, self.tickets = dict[int, Node](), 0
        # Of the Fleet API; only its host matters.
        config: dict[str, bool | bytes | float | int | str] = {"server": "127.0.0.1:1"}

        def make(number: int) -> Handler:
            self.nodes[number] = Node(handler(number), config)
            return self.nodes[number]

        super().__init__(clients, make)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = list(messages)
        for message in pushed:
            assert not any(name.startswith("subnet") for name in message.content)
            self.tickets += wire.ticket_of(message.content) is not None
        return super().push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            assert not any(name.startswith("subnet") for name in reply.content)
        return replies


HALVES = rules.Disjoint(groups=2, min_units=2)


@pytest.mark.usefixtures("small_pieces")
def test_training_over_streams_is_training(service: Service) -> None:
    """Law 10: bit for bit the same as where subnets travel in messages, and no byte of them does."""
    grids: list[Watched] = []

    def over_streams(clients: int, handler: Callable[[int], Handler]) -> StreamingGrid:
        grids.append(Watched(clients, handler))
        return StreamingGrid(grids[0], service)

    streams = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=3, grid=over_streams)
    messages = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=3)
    assert tiny.same(streams.after, messages.after)
    assert [(each.bytes_up, each.refused) for each in streams.reports] == [
        (each.bytes_up, ()) for each in messages.reports
    ]
    assert grids[0].tickets == 6
    assert service._held == {}


@pytest.mark.usefixtures("small_pieces")
def test_a_reply_whose_bytes_did_not_come_is_refused(service: Service) -> None:
    """It promises some that were never sent, or leaves its ticket out, or has nothing to do with one."""

    def promise(worker: Worker, message: Message) -> Message:
        reply = worker.train(message)
        wire.lift(reply.content)
        wire.leave(reply.content, wire.Ticket("x", 1, 3))
        return reply

    def forget(worker: Worker, message: Message) -> Message:
        reply = worker.train(message)
        wire.lift(reply.content)
        return reply

    run = tiny.federate(
        tiny.Tiny(),
        rules.Disjoint(groups=3, min_units=2),
        3,
        grid=lambda clients, handler: StreamingGrid(Watched(clients, handler), service),
        instead={0: promise, 1: forget},
    )
    (report,) = run.reports
    assert report.merged == 1
    assert [refused.client for refused in report.refused] == [0, 1]
    assert all("but 0 came" in refused.reason for refused in report.refused)


@pytest.mark.usefixtures("small_pieces", "quick")
def test_a_client_that_cannot_reach_the_port_says_so() -> None:
    blocked = Service("127.0.0.1:0", None)
    blocked.close()
    with pytest.raises(RoundError, match=r"its subnet did not come, or did not get back: .* cannot be reached"):
        tiny.federate(
            tiny.Tiny(), HALVES, 2, grid=lambda clients, handler: StreamingGrid(Watched(clients, handler), blocked)
        )


@pytest.mark.usefixtures("small_pieces")
def test_a_node_that_was_not_told_who_its_server_is_says_so(service: Service) -> None:
    grid = InProcessGrid(1, lambda number: Node(tiny.handlers(tiny.Tiny(), 1)(number), {}))
    with pytest.raises(RoundError, match="this node was not told who that is"):
        tiny.federate(tiny.Tiny(), rules.Full(), 1, grid=lambda clients, handler: StreamingGrid(grid, service))


def test_a_ticket_that_makes_no_sense_is_an_error() -> None:
    content = RecordDict({"order": ConfigRecord()})
    assert wire.ticket_of(content) is None
    wire.leave(content, wire.Ticket("a", 9093, 2))
    assert wire.ticket_of(content) == wire.Ticket("a", 9093, 2)
    for said in ('["a", 65536, 2]', '["a", 1, -2]', '["a", 1]', "[1, 1, 1]", "{", "[" * 100_000, 7, b"x"):
        content = RecordDict({"order": ConfigRecord({"ticket": said})})
        with pytest.raises(WireError, match="a ticket holds a name, a port and a number of bytes"):
            wire.ticket_of(content)


@pytest.mark.usefixtures("small_pieces")
def test_what_lapsed_or_was_for_the_same_node_is_let_go(service: Service) -> None:
    under = InProcessGrid(3, tiny.handlers(tiny.Tiny(), 3))
    grid = StreamingGrid(under, service)

    def order(node: int, ttl: float = 60.0) -> Message:
        content = RecordDict({"order": ConfigRecord(), **parcel.records_of(laid(b"1"))})
        return Message(content, node, MessageType.TRAIN, group_id="1", ttl=ttl)

    grid.push_messages([order(0), order(1), order(2, ttl=0.01)])
    assert len(service._held) == 3
    time.sleep(0.02)
    grid.push_messages([order(0)])
    assert len(service._held) == 2
    assert [given.node for given in grid._given.values()] == [1, 0]


def test_a_link_is_measured_by_what_was_fetched(service: Service) -> None:
    node = Node(Echo(), {"server": "127.0.0.1:1"})
    order = Message(RecordDict({"order": ConfigRecord()}), 0, MessageType.TRAIN, group_id="1")
    order.metadata.__dict__["_message_id"] = "1"
    wire.leave(order.content, wire.Ticket(service.offer(laid()), service.port, len(WHOLE)))
    reply = node.train(order)
    assert isinstance(link := node.context.state["link"], MetricRecord)
    assert float(str(link["bytes_per_second"])) > 0
    assert reply.has_content()


class Echo:
    """Answers with nothing."""

    def query(self, message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)

    train = query


def test_a_server_does_not_wait_out_its_pause_when_a_subnet_came(service: Service) -> None:
    grid = StreamingGrid(InProcessGrid(1, tiny.handlers(tiny.Tiny(), 1)), service)
    assert isinstance(grid, Waking)
    assert not isinstance(InProcessGrid(1, tiny.handlers(tiny.Tiny(), 1)), Waking)
    ticket = service.offer(laid())

    def send() -> None:
        with connected(service.port) as link:
            link.send(ticket, laid(), 10)

    sending = threading.Thread(target=send)
    sending.start()
    assert grid.wait(10)
    sending.join()
    assert not grid.wait(0.01)


def test_a_server_asks_seldom_while_no_reply_can_be_there(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            return []

    grid, waits = StreamingGrid(Silent(2, tiny.handlers(tiny.Tiny(), 2)), service), list[float]()
    monkeypatch.setattr(service.came, "wait", waits.append)
    large, small = (
        Message(RecordDict({"order": ConfigRecord(), **records}), node, MessageType.TRAIN, group_id="1", ttl=60.0)
        for node, records in enumerate((parcel.records_of(laid(b"1")), {}))
    )
    (with_ticket,) = grid.push_messages([large])
    (without,) = grid.push_messages([small])
    for waited in ({with_ticket}, {with_ticket, without}, {without}):
        grid.pull_messages(waited)
        grid.wait(0.01)
    assert waits == [0.5, 0.01, 0.01]
    with connected(service.port) as link:
        link.send(grid._given[with_ticket].name, laid(b"2"), 10)
    grid.pull_messages({with_ticket})
    grid.wait(0.01)
    assert waits[3:] == [0.01]


# --- Where ------------------------------------------------------------------------------------------------------------


def test_a_serverapp_listens_where_its_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    under = InProcessGrid(1, tiny.handlers(tiny.Tiny(), 1))
    monkeypatch.delenv("IST_FED_STREAMS", raising=False)
    with streaming(under) as grid:
        assert grid is under
    port = free_port()
    for key, value in Place(f"127.0.0.1:{port}").environment().items():
        monkeypatch.setenv(key, value)
    with streaming(under) as grid, connected(port) as link:
        assert isinstance(grid, StreamingGrid)
        assert list(grid.get_node_ids()) == [0]
        with pytest.raises(FleetRefused, match="nobody waits"):
            link.fetch("a", 1, 10)
    with socket.create_server(("127.0.0.1", port)):  # it is free again
        pass


def test_a_port_that_another_program_has_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ist_fed.engines.streams.place._PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"cannot be listened on.*--streams"):
            place.listen()


@pytest.mark.parametrize("port", [-1, 1 << 16, 9092])
def test_a_site_has_another_port_for_subnets(port: int, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="subnets travel on a port of their own"):
        Site(tmp_path, "127.0.0.1:9092", streams=port)
