"""Flower's programs on a server: a SuperLink and a SuperExec, started, looked after and ended together."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from ist_fed.engines import flower, logs
from ist_fed.engines.control import Control, connected
from ist_fed.engines.nodes import Admission
from ist_fed.engines.refusals import Refusals
from ist_fed.engines.site import Site, about_file
from ist_fed.engines.streams import Place
from ist_fed.engines.superlink import ADMITTED

logger = logging.getLogger("ist_fed")


class Programs:
    """The programs of one site.

    Args:
        site: where it lives; its home exists when they are started.
    """

    def __init__(self, site: Site) -> None:
        self._site, self._home = site, site.home.absolute()
        self._running: list[Popen[bytes]] = []
        self._reach: tuple[int, Path | None] = (0, None)  # port of the Control API, and whom to trust there

    @property
    def started(self) -> bool:
        """Whether they were started, and not ended by us."""
        return bool(self._running)

    @property
    def died(self) -> bool:
        """Whether one ended that should run."""
        return any(program.poll() is not None for program in self._running)

    def start(self) -> None:
        """Start them, admit the members of the federation, and write down for others where they are.

        Raises:
            EngineError: they do not start.
        """
        flower.check_free(self._site.fleet, "clients are awaited on", "--listen")
        if self._site.subnets:  # a ServerApp would find out, when somebody asks for a run
            flower.check_free(self._site.subnets, "large subnets travel on", "--streams")
        port, identity = flower.free_port(), self._site.identity
        if identity:
            flower.check_tls(identity.ca_certificate, identity.server_certificate, identity.server_key)
        ca = identity.ca_certificate.absolute() if identity else None
        self._reach = (port, ca)
        self._admission = Admission(self._home, identity)
        link = [
            sys.executable,
            "-m",
            "ist_fed.engines.superlink",
            "--isolation",
            "process",
            "--database",
            str(self._home / "state.db"),
        ]
        link += ["--host", "127.0.0.1", "--port", str(port), "--fleet-api-address", self._site.fleet]
        link += ["--disable-runtime-dependency-installation", *self._security()]
        link_log, executor_log = (self._home / name for name in logs.NAMES)
        self._refusals = Refusals(link_log, identity)
        (self._home / ADMITTED).unlink(missing_ok=True)
        superlink = flower.start(link, self._home, link_log.name)
        self._running = [superlink]
        flower.await_health(superlink, port, link_log, ca)
        trust = ["--root-certificates", str(ca)] if ca else ["--insecure"]
        executor = ["flower-superexec", "--runtime-api-address", f"127.0.0.1:{port}", *trust]
        executor += ["--parent-pid", str(os.getpid())]
        self._running.append(flower.start(executor, self._home, executor_log.name, self._streams()))
        told = {
            "process": os.getpid(),
            "fleet": self._site.fleet,
            "streams": self._site.streams,
            "control": port,
            "ca": str(ca) if ca else None,
        }
        about_file(self._home).write_text(json.dumps(told))
        self.admit()
        (self._home / ADMITTED).touch()  # who was revoked while there was no server is not let in for a moment

    def end(self) -> None:
        """End them, and whatever they have started."""
        for program in reversed(self._running):
            flower.stop(program)
        self._running = []

    def admit(self) -> None:
        """Let the members of the federation in, and nobody else."""
        if self._admission.differs():
            with self.control() as control:
                self._admission.update(control)

    def read_logs(self) -> None:
        """Say whom the SuperLink turned away, and keep the logs from growing without end."""
        for refusal in self._refusals.new():
            logger.warning("%s", refusal)
        for name in logs.NAMES:
            logs.rotate(self._home / name)

    @contextmanager
    def control(self) -> Iterator[Control]:
        """Speak to the SuperLink.

        Raises:
            EngineError: as `connected`.
        """
        with connected(*self._reach) as control:
            yield control

    def _streams(self) -> dict[str, str]:
        """What a ServerApp, which the SuperExec starts, has to know to take part in them."""
        address, identity = self._site.subnets, self._site.identity
        if not address:
            return {}
        if identity is None:
            return Place(address).environment()
        shown = identity.server_certificate, identity.server_key
        return Place(address, *(str(path.absolute()) for path in shown)).environment()

    def _security(self) -> list[str]:
        identity = self._site.identity
        if identity is None:
            return ["--insecure"]
        return [
            "--enable-supernode-auth",
            *("--ssl-ca-certfile", str(identity.ca_certificate.absolute())),
            *("--ssl-certfile", str(identity.server_certificate.absolute())),
            *("--ssl-keyfile", str(identity.server_key.absolute())),
        ]
