"""The connection to Flower's Fleet API: the private names it stands on, and what is made of errors."""

import asyncio
import inspect
import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.supercore.error import ApiErrorCode
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from ist_fed.engines.reasons import explain
from ist_fed.errors import FleetOver, FleetRefused, FleetUnknown, FleetUnreachable

PRIVATE = {  # module → name → arguments that are passed by name or position; a later Flower may have others
    "flwr.client.grpc_rere_client.node_auth_client_interceptor": {"NodeAuthClientInterceptor": 2},
    "flwr.common.serde": {"fab_from_proto": 1, "message_to_proto": 1, "run_from_proto": 1},
    "flwr.proto.fleet_pb2": {"ActivateNodeRequest": 0, "DeactivateNodeRequest": 0, "RegisterNodeFleetRequest": 0},
    "flwr.proto.fleet_pb2_grpc": {"FleetStub": 1},
    "flwr.proto.node_pb2": {"Node": 0, "NodeInfo": 0},
    "flwr.supercore.inflatable.inflatable_object": {
        "get_all_nested_objects": 1,
        "get_object_tree": 1,
        "iterate_object_tree": 1,
    },
    "flwr.supercore.inflatable.inflatable_protobuf_utils": {
        "make_confirm_message_received_fn_protobuf": 3,
        "make_pull_object_fn_protobuf": 3,
        "make_push_object_fn_protobuf": 4,
    },
    "flwr.supercore.inflatable.inflatable_utils": {
        "inflate_object_from_contents": 2,
        "pull_objects": 2,
        "push_objects": 2,
    },
    "flwr.supercore.interceptors": {"RuntimeVersionClientInterceptor": 1, "RuntimeVersionHttpInterceptor": 1},
    "flwr.supercore.control": {"ControlHttpClient": 1},
    "flwr.cli.build": {"build_fab_from_disk": 1},
    "flwr.cli.install": {"install_from_fab": 3},
    "flwr.clientapp.utils": {"get_load_client_app_fn": 3},
    "flwr.supercore.primitives.asymmetric": {"public_key_to_bytes": 1},
    "flwr.supercore.task_identity": {"TaskIdentity": 0},
    "flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor": {"_unary_unary_rpc_terminator": 1},
}


@pytest.mark.parametrize("module", PRIVATE)
def test_flower_still_has_the_private_names_that_are_relied_on(module: str) -> None:
    for name, arguments in PRIVATE[module].items():
        found = getattr(import_module(module), name)
        if arguments:
            assert len(inspect.signature(found).parameters) >= arguments


def test_the_superlinks_changes_find_what_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is undone again, for the names are Flower's own."""
    from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor as interceptor
    from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.supercore import sql_mixin
    from flwr.supercore.corestate.sql_corestate import SqlCoreState
    from flwr.supercore.sql_mixin import SqlMixin

    from ist_fed.engines import superlink

    calls = []
    monkeypatch.setattr(interceptor, "_unary_unary_rpc_terminator", interceptor._unary_unary_rpc_terminator)
    wrap = interceptor.NodeAuthServerInterceptor._wrap_method_handler
    monkeypatch.setattr(interceptor.NodeAuthServerInterceptor, "_wrap_method_handler", wrap)
    monkeypatch.setattr(SqlCoreState, "_cleanup_expired_task_tokens", lambda self: calls.append(self))
    monkeypatch.setattr(SqlMixin, "session", SqlMixin.session)
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    held = {
        FleetServicer: ("PullMessages", "PullObject"),
        SqlLinkState: ("store_message_and_object_tree", "store_object", "store_traffic"),
    }
    plain = {(owner, name): getattr(owner, name) for owner, names in held.items() for name in names}
    for (owner, name), method in plain.items():
        monkeypatch.setattr(owner, name, method)
    superlink.guard()
    superlink.tidy_seldom()
    superlink.count_seldom()
    superlink.one_by_one()
    superlink.keep_little()
    superlink.hold_calls()
    for (owner, name), method in plain.items():
        assert getattr(owner, name) is not method
        assert (
            list(inspect.signature(getattr(owner, name)).parameters)[:2]
            == list(inspect.signature(method).parameters)[:2]
        )
    pragmas = dict(sql_mixin.SQLITE_PRAGMAS)
    assert (pragmas["mmap_size"], pragmas["journal_mode"]) == ("0", "WAL")
    for _ in range(3):
        SqlCoreState._cleanup_expired_task_tokens(None)  # type: ignore[arg-type]
    assert calls == [None]


def test_what_has_travelled_is_written_down_once_a_second_and_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    from ist_fed.engines import superlink

    written: list[tuple[int, int, int]] = []

    def plain(self: None, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        written.append((run_id, bytes_sent, bytes_recv))

    monkeypatch.setattr(SqlLinkState, "store_traffic", plain)
    monkeypatch.setattr(superlink, "_SELDOM_S", 0.2)
    superlink.count_seldom()
    store: Any = SqlLinkState.store_traffic
    for run in (1, 1, 2, 1):
        store(None, run, bytes_sent=10 * run, bytes_recv=1)
    assert written == [(1, 10, 1)]
    time.sleep(0.25)
    store(None, 2, bytes_sent=0, bytes_recv=5)
    assert written[1:] == [(1, 20, 2), (2, 20, 6)]


def test_what_a_server_app_asks_passes_by_the_layers_of_the_control_api(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.routers.control import middlewares

    from ist_fed.engines import superlink

    layers = [layer for name, layer in vars(middlewares).items() if re.fullmatch(r"Control\w+Middleware", name)]
    assert len(layers) == 4
    asked: list[tuple[str, str]] = []

    async def app(scope: dict[str, str], receive: None, send: None) -> None:
        asked.append(("app", scope["path"]))

    for layer in layers:

        async def plain(self: Any, scope: dict[str, str], receive: None, send: None) -> None:
            asked.append(("layer", scope["path"]))

        monkeypatch.setattr(layer, "__call__", plain)
    superlink.go_straight()
    for layer in layers:
        made = layer(app)
        for path in ("/v1/runtime/push-object", "/v1/control/start-run", "/v1/runtimes", "/x/v1/runtime/"):
            asyncio.run(made({"type": "http", "path": path}, None, None))
    assert asked == 4 * [
        ("app", "/v1/runtime/push-object"),
        ("layer", "/v1/control/start-run"),
        ("layer", "/v1/runtimes"),
        ("layer", "/x/v1/runtime/"),
    ]


def test_calls_take_turns_at_the_superlinks_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flwr.supercore.sql_mixin import SqlMixin

    from ist_fed.engines import superlink

    monkeypatch.setattr(SqlMixin, "session", SqlMixin.session)
    superlink.one_by_one()
    state = SqlMixin(str(tmp_path / "state.db"))
    state._session_factory = sessionmaker(bind=create_engine(state.database_url))
    inside, most = 0, 0

    def call() -> None:
        nonlocal inside, most
        with state.session() as outer, state.session() as inner:
            assert inner is outer
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call) for _ in range(8)]:
            done.result()
    assert most == 1


def test_flowers_wait_for_an_object_is_a_default_that_can_be_shortened() -> None:
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    parameters = inspect.signature(pull_objects).parameters
    assert parameters["initial_backoff"].kind is parameters["backoff_cap"].kind is inspect.Parameter.KEYWORD_ONLY


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


UNAVAILABLE, UNAUTHENTICATED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED
FLOWER = '{"code": %d, "public_message": "m"}'


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            Failed(UNAVAILABLE, "x: y: Connection refused"),
            FleetUnreachable,
            r"cannot be reached \(Connection refused\)",
        ),
        (Failed(grpc.StatusCode.DEADLINE_EXCEEDED), FleetUnreachable, "did not answer in time"),
        (Failed(UNAVAILABLE, "SSL: CERTIFICATE_VERIFY_FAILED: unable"), FleetRefused, "authority did not sign"),
        (Failed(UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED: certificate has expired"), FleetRefused, "has expired"),
        (Failed(UNAVAILABLE, "Hostname Verification Check failed"), FleetRefused, "not for this name"),
        (Failed(UNAVAILABLE, "SSL: WRONG_VERSION_NUMBER"), FleetRefused, "does not speak TLS"),
        (Failed(UNAUTHENTICATED, "Invalid timestamp"), FleetRefused, "clocks differ"),
        (Failed(UNAUTHENTICATED, "Invalid node ID"), FleetRefused, "was revoked"),
        (Failed(grpc.StatusCode.PERMISSION_DENIED, "something else"), FleetRefused, "something else"),
        (
            Failed(grpc.StatusCode.PERMISSION_DENIED, "no\n2026 INFO \x1b[2J"),
            FleetRefused,
            r"refused: no 2026 INFO \[2J$",
        ),
        (Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"), FleetUnreachable, "too much"),
        (Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"), FleetRefused, "larger than max"),
        (
            Failed(grpc.StatusCode.INTERNAL, FLOWER % ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED),
            FleetUnknown,
            "does not know this client's key, has revoked it",
        ),
        (Failed(grpc.StatusCode.INTERNAL, FLOWER % ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED), FleetOver, "is over"),
    ],
)
def test_an_error_becomes_a_sentence(error: grpc.RpcError, kind: type[Exception], said: str) -> None:
    made = explain(error, "host:9092")
    assert type(made) is kind
    assert "host:9092" in str(made)
    with pytest.raises(kind, match=said):
        raise made


def test_a_socket_that_closes_at_the_first_plain_call_means_tls() -> None:
    error = Failed(UNAVAILABLE, "x: Socket closed")
    assert type(explain(error, "host:9092", plain=True)) is FleetRefused
    assert type(explain(error, "host:9092")) is FleetUnreachable
