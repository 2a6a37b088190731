"""Speaking to a SuperLink of this machine as `flwr` does, without starting a program for each word.

All that this project uses of Flower's private code for that is here. The Control API is on loopback only: whoever
reaches it can run code.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from ist_fed.engines.flower import app_folder
from ist_fed.errors import EngineError


class Control:
    """A connection to the Control API.

    Args:
        client: Flower's; see `connected`.
    """

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def register(self, public_key: str, name: str) -> int:
        """Admit the node that holds a key, given in OpenSSH's one line; its id."""
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=pem(public_key), name=name)).node_id)

    def unregister(self, node: int) -> None:
        """Admit a node no longer."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def nodes(self) -> list[NodeInfo]:
        """Every node that was ever registered."""
        return list(self._client.ListNodes(ListNodesRequest()).nodes_info)

    def start(self, config: Mapping[str, str | bool]) -> int:
        """Run the app with this configuration; the number of the run."""
        request = StartRunRequest(fab=fab_to_proto(_app()), override_config=user_config_to_proto(dict(config)))
        return int(self._client.StartRun(request).run_id)

    def end_of(self, run: int) -> str:
        """How a run ended, and what Flower says of it; empty while it has not."""
        status = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        return ", ".join(filter(None, (status.sub_status, status.details))) if status.status == Status.FINISHED else ""


@contextmanager
def connected(port: int, ca: Path | None) -> Iterator[Control]:
    """Speak to the SuperLink on a port of this machine.

    Args:
        port: of its Control API.
        ca: certificate of the authority that signed its own; None without TLS.

    Raises:
        EngineError: it cannot be reached, or will not have what was asked.
    """
    client = ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=ca is None,
        root_certificates=ca.read_bytes() if ca else None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield Control(client)
    except httpx.HTTPStatusError as error:
        raise EngineError(f"Flower's SuperLink refused: {error.response.text[:500]}") from error
    except httpx.HTTPError as error:
        raise EngineError(f"Flower's SuperLink cannot be reached: {error}") from error
    finally:
        client.close()


def pem(public_key: str) -> bytes:
    """A key given in OpenSSH's one line, as Flower has it."""
    return load_ssh_public_key(public_key.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@cache
def _app() -> Fab:
    """This project's app, as Flower packs it."""
    content = build_fab_from_disk(app_folder())
    return Fab(hashlib.sha256(content).hexdigest(), content, {})
