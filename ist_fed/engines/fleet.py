"""One node's side of Flower's gRPC Fleet API. All that this project uses of Flower's private code on a client is here.

Flower's own SuperNode starts a new process for every message; this connection is for a process that stays.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar, cast

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.serde import fab_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from ist_fed.engines.flower import OBJECT_S
from ist_fed.engines.reasons import explain
from ist_fed.errors import FleetRefused

HEARTBEAT_S = 3.0
"""Seconds between two heartbeats."""

_INTERVAL_S = 10.0  # what is promised: the shortest that Flower allows; it gives a node up after twice as long
_HELD_S = 3.0  # for which the server may keep a question until there is an answer; nobody can stop meanwhile
_CALL_S = 30.0  # a call that takes longer has met a dead network; pulling and pushing bytes have longer
_TRANSFER_S = 3600.0
_LARGEST = 2**31 - 1
_TELLING = 1 << 18  # bytes from which on the time of a transfer tells the speed of the link

MAY_BE_HELD, HELD = "ist-fed-may-be-held", "ist-fed-held"
"""Metadata of a call, which the server may keep for so many milliseconds until there is an answer; and of an answer,
if it would have been kept. Flower's own SuperLink knows of neither, and answers at once."""

Answer = TypeVar("Answer")
Metadata = tuple[tuple[str, str], ...]

_PATIENT: Metadata = ((MAY_BE_HELD, str(int(1000 * _HELD_S))),)


class Fleet:
    """A node's connection to a SuperLink.

    Args:
        address: `host:port` of the Fleet API.
        key: the node's private key; its public half is registered with the server.
        ca: certificate of the authority that signed the server's, in PEM; None speaks without TLS, which is for
            loopback only: then the node registers itself.

    Attributes:
        link: bytes a second of the last message that was large enough to tell; 0 before.
        held: whether the server held the last `pull` for as long as it may; if not, it should not be asked at once.
    """

    def __init__(self, address: str, key: ec.EllipticCurvePrivateKey, ca: bytes | None) -> None:
        self.address, self._insecure = address, ca is None
        self._public = public_key_to_bytes(key.public_key())
        interceptors = [
            RuntimeVersionClientInterceptor(component_name="SuperNode"),
            NodeAuthClientInterceptor(key, key.public_key()),
        ]
        options = [
            ("grpc.max_send_message_length", _LARGEST),
            ("grpc.max_receive_message_length", _LARGEST),
            ("grpc.max_reconnect_backoff_ms", 5000),  # else two minutes, after a server that was away for long
        ]
        channel = (
            grpc.insecure_channel(address, options)
            if ca is None
            else grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options)
        )
        self._channel = grpc.intercept_channel(channel, *interceptors)
        self._stub = FleetStub(self._channel)
        self._node: Node | None = None
        self.link, self.held = 0.0, False
        self._stopped = threading.Event()

    # --- Joining and leaving ------------------------------------------------------------------------------------------

    def join(self) -> int:
        """Say that this node is here, and keep saying so; its id.

        Raises:
            FleetRefused: the server does not know the key, or speaks another version.
            FleetUnreachable: nobody answers, or somebody who is not the server.
        """
        if self._insecure and self._node is None:
            self._call(self._stub.RegisterNode, RegisterNodeFleetRequest(public_key=self._public))
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=_INTERVAL_S)
        node_id: int = self._call(self._stub.ActivateNode, request).node_id
        if self._node is None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        self._node = Node(node_id=node_id)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, node_id  # a reply needs them
        return node_id

    def leave(self) -> None:
        """Say that this node goes, if the server can be reached, and close the connection."""
        self._stopped.set()
        if self._node is not None:
            with suppress(grpc.RpcError):
                self._stub.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id), timeout=2)
        self._channel.close()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _beat(self) -> None:
        """Heartbeats, in a thread of their own: training must not make a node look dead. A lost one is not repeated."""
        while not self._stopped.wait(HEARTBEAT_S):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_INTERVAL_S)
            try:
                self._stub.SendNodeHeartbeat(request, timeout=HEARTBEAT_S)
            except grpc.RpcError:
                continue  # whoever pulls meets the same error, and says it
            except ValueError:
                return  # the channel was closed

    # --- Messages -----------------------------------------------------------------------------------------------------

    def pull(self) -> Message | None:
        """The next message for this node, whole; None if there is none.

        Raises:
            FleetError: as `join`.
        """
        node, transfer = self._here(), self._transfer
        answer, call = self._call(self._stub.PullMessages.with_call, PullMessagesRequest(node=node), metadata=_PATIENT)
        self.held = any(key == HELD for key, _ in call.trailing_metadata() or ())
        if not answer.messages_list:
            return None
        tree, run = answer.message_object_trees[0], answer.messages_list[0].metadata.run_id
        began, read = (
            time.perf_counter(),
            make_pull_object_fn_protobuf(transfer(self._stub.PullObject, _PATIENT), node, run),
        )
        sizes: list[int] = []

        def counted(name: str) -> bytes:
            content = read(name)
            sizes.append(len(content))
            return content

        objects = [part.object_id for part in iterate_object_tree(tree)]
        # The first comes first; until it is there, no others are asked for.
        contents = _pull(objects[:1], counted) | _pull(objects[1:], counted)
        confirm = make_confirm_message_received_fn_protobuf(transfer(self._stub.ConfirmMessageReceived), node, run)
        confirm(tree.object_id)
        message = cast(Message, inflate_object_from_contents(tree.object_id, contents))
        if sum(sizes) >= _TELLING:
            self.link = sum(sizes) / (time.perf_counter() - began)
        message.metadata.__dict__["_message_id"] = tree.object_id  # a message does not hold its own id
        return message

    def push(self, reply: Message, seconds: float) -> None:
        """Send a reply.

        Args:
            reply: to a message that was pulled.
            seconds: that the work took.

        Raises:
            FleetRefused: the run is over; nobody waits for the reply any more.
            FleetError: as `join`.
        """
        with no_object_id_recompute():  # to the end: outside, every id that is asked for hashes all bytes below it anew
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            answer = self._call(self._stub.PushMessages, request)
            send = make_push_object_fn_protobuf(
                self._transfer(self._stub.PushObject), self._here(), reply.metadata.run_id, answer.session_id
            )
            push_objects(objects, send, object_ids_to_push=set(answer.objects_to_push))

    def run(self, run_id: int) -> FlowerRun:
        """What a run is: its configuration, and the hash of its app."""
        return run_from_proto(self._call(self._stub.GetRun, GetRunRequest(node=self._node, run_id=run_id)).run)

    def app(self, run: FlowerRun) -> Fab:
        """A run's app, as the server has it."""
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run.run_id)
        return fab_from_proto(self._call(self._stub.GetFab, request).fab)

    def _here(self) -> Node:
        if self._node is None:
            raise FleetRefused("a node joins before it asks for messages")
        return self._node

    # --- Calls --------------------------------------------------------------------------------------------------------

    def _call(
        self, function: Callable[..., Answer], request: object, timeout: float = _CALL_S, metadata: Metadata = ()
    ) -> Answer:
        try:
            return function(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise explain(error, self.address, plain=self._insecure and self._node is None) from error

    def _transfer(self, function: Callable[..., Answer], metadata: Metadata = ()) -> Callable[[object], Answer]:
        return lambda request: self._call(function, request, _TRANSFER_S, metadata)


def _pull(objects: list[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """Objects by name, once they have reached the SuperLink."""
    return pull_objects(objects, read, initial_backoff=OBJECT_S, backoff_cap=20 * OBJECT_S)
