"""Where a server lives, and what others may ask of the one that works there."""

import fcntl
import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flwr.proto.node_pb2 import NodeInfo

from ist_fed.engines.control import connected
from ist_fed.errors import EngineError
from ist_fed.pki import Federation
from ist_fed.pki.address import split_port


@dataclass(frozen=True)
class Site:
    """Where a server lives.

    Args:
        home: its folder: database, logs, jobs.
        fleet: `host:port` on which nodes are awaited.
        identity: keys and members; None runs without TLS, on loopback only, and admits whoever comes.
        streams: port, of the same host, on which large subnets travel; 0 lets them travel in messages.
    """

    home: Path
    fleet: str
    identity: Federation | None = None
    streams: int = 0

    def __post_init__(self) -> None:
        """Refuse what would let strangers in, and ports that cannot be."""
        _, port = split_port(self.fleet, "--listen")
        if not 0 <= self.streams < 1 << 16 or self.streams == port:
            raise EngineError(
                f"subnets travel on a port of their own, from 1 to 65535, or with 0 in messages, but it is "
                f"{self.streams}, and clients are awaited on '{self.fleet}'; choose another with --streams"
            )
        host = self.fleet.rpartition(":")[0]
        if self.identity is None and host not in ("127.0.0.1", "localhost", "[::1]"):
            raise EngineError(
                f"without TLS a server listens on loopback only, but was to listen on '{self.fleet}'; make an identity "
                f"with `ist-fed provision init`, or use 127.0.0.1"
            )

    @property
    def subnets(self) -> str:
        """`host:port` on which large subnets travel; empty if they travel in messages."""
        return f"{self.fleet.rpartition(':')[0]}:{self.streams}" if self.streams else ""


def about(home: Path) -> dict[str, object] | None:
    """What the server that works in a home says of itself; None if there is none."""
    with suppress(OSError, ValueError), (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held: it runs
            return dict(json.loads(about_file(home).read_text()))
    return None


def nodes(home: Path) -> list[NodeInfo]:
    """Every node that the server in a home knows, as Flower describes it.

    Raises:
        EngineError: there is no server.
    """
    said = about(home)
    if said is None:
        raise EngineError(f"no server works in '{home}'; start one with `ist-fed server start`")
    with connected(int(str(said["control"])), Path(str(said["ca"])) if said["ca"] else None) as control:
        return control.nodes()


def ask_to_stop(home: Path) -> None:
    """Ask the server in a home to stop; its run goes on at the next start.

    Raises:
        EngineError: there is none.
    """
    said = about(home)
    if said is None:
        raise EngineError(f"no server works in '{home}'")
    process = int(str(said["process"]))
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        raise EngineError(
            f"a server that is to stop must be running, but process {process} of '{home}' is gone; see what runs with "
            f"`ist-fed server status`"
        ) from None


def about_file(home: Path) -> Path:
    """Where the server that works in a home says of itself what others need."""
    return home / "server.json"
