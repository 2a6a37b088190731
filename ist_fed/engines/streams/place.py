"""Where streams come in, as whoever starts a server says it to the ServerApp: by its environment, as it has secrets."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ist_fed.engines.streams.service import Service
from ist_fed.errors import EngineError

_VARIABLE = "IST_FED_STREAMS"
_PATIENCE_S = 10.0  # for a ServerApp that was killed to let go of the port


@dataclass(frozen=True)
class Place:
    """Where streams come in.

    Args:
        address: `host:port` on which a ServerApp listens.
        certificate: file with which it shows who it is; None speaks without TLS.
        key: file with the certificate's private key.
    """

    address: str
    certificate: str | None = None
    key: str | None = None

    def environment(self) -> dict[str, str]:
        """What says so to a process."""
        return {_VARIABLE: json.dumps(asdict(self))}

    def listen(self) -> Service:
        """Listen there.

        Raises:
            EngineError: that cannot be.
        """
        certificate = (Path(self.certificate), Path(self.key)) if self.certificate and self.key else None
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return Service(self.address, certificate)
            except EngineError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def place() -> Place | None:
    """What was said to this process."""
    said = os.environ.get(_VARIABLE)
    return Place(**json.loads(said)) if said else None
