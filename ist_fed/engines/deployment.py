"""A whole federation on this machine, for a look at the real thing: a server, and clients as processes, over gRPC.

Everything is as in a deployment between hosts, TLS and identities included; the identities are thrown away after it.
"""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from ist_fed.engines import flower, jobs
from ist_fed.engines.server import Server
from ist_fed.engines.site import Site
from ist_fed.errors import EngineError, Interrupted
from ist_fed.federation import Line
from ist_fed.pki import Federation, make_request
from ist_fed.pki.signing import CERTIFICATE, certify, create_authority, request_member
from ist_fed.run import Run
from ist_fed.tasks import TASKS
from ist_fed.tasks.source import PATHS


def deploy(
    run: Run,
    *,
    on_line: Callable[[Line], None] = lambda line: None,
    supernode: bool = False,
) -> None:
    """Run a scenario with its clients as processes on this machine, from its newest checkpoint if there is one.

    Args:
        run: its folder exists; what is thrown away afterwards lies in `deployment` in it.
        on_line: called with each round's line of metrics.
        supernode: let Flower's own SuperNode run the clients, instead of the resident ones.

    Raises:
        EngineError: a program did not start, or the run failed.
        Interrupted: Ctrl-C.
    """
    if supernode and run.scenario.is_secure:
        raise EngineError(
            "in secure rounds clients keep their secrets between messages, but Flower's SuperNode starts a process for "
            "each; leave --supernode out"
        )
    folder = run.folder.absolute() / "deployment"
    shutil.rmtree(folder, ignore_errors=True)
    address = f"127.0.0.1:{flower.free_port()}"
    identity, kits = _identities(folder, address, run.scenario.clients)
    home = folder / "superlink"
    site = Site(home, address, identity, flower.free_port())
    more = ["--supernode"] if supernode else []
    if run.scenario.is_secure:
        _certify(folder / "members", kits)
        more = ["--min-cohort", str(run.scenario.secure.min_cohort)]
    if run.scenario.task not in TASKS:  # whoever wrote the scenario is these clients' operator
        more += ["--allow-task", run.scenario.task]
    try:
        with _clients(kits, more), Server(site) as server:  # both start up at once
            jobs.add(home, run.folder)
            server.serve(lambda _, line: on_line(line), until_idle=True)
    except Interrupted:  # which speaks of a server that is started again; this one is thrown away
        shutil.rmtree(folder, ignore_errors=True)
        if run.metrics():
            raise Interrupted(f"stopped; resume with `ist-fed simulate --resume {quote(str(run.folder))}`") from None
        raise Interrupted("stopped before the first round was over; there is nothing to resume") from None
    except BaseException:  # whose reason may stand in a log; of anything else nothing is left
        for path in folder.rglob("*"):
            if path.suffix != ".log" and not path.is_dir():
                path.unlink(missing_ok=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _identities(folder: Path, address: str, clients: int) -> tuple[Federation, list[Path]]:
    passphrase = secrets.token_bytes(16)
    host = address.rpartition(":")[0]
    federation = Federation.create(
        folder / "federation", name="local", address=address, hosts=[host], passphrase=passphrase
    )
    kits = []
    for number in range(clients):
        request = make_request(folder / f"client{number}", f"client{number}")
        kits.append(
            federation.approve(request, passphrase=passphrase, out=request.with_name(f"client{number}.kit.json"))
        )
    return federation, kits


def _certify(folder: Path, kits: list[Path]) -> None:
    """Signing keys for secure rounds, of an authority that is thrown away like everything else here."""
    passphrase = secrets.token_bytes(16)
    create_authority(folder, "local", passphrase)
    for kit in kits:
        certify(folder, request_member(kit.parent, kit.parent.name), passphrase, kit.parent)


@contextmanager
def _clients(kits: list[Path], more: list[str]) -> Iterator[None]:
    processes = []
    try:
        for number, kit in enumerate(kits):
            command = [sys.executable, "-m", "ist_fed", "client", "start", "--kit", str(kit)]
            command += ["--partition", f"{number}/{len(kits)}", *more]
            if (signer := kit.with_name(f"{kit.parent.name}{CERTIFICATE}")).exists():
                command += ["--signer", str(signer)]
            # Whoever wrote the scenario is this machine's operator.
            processes.append(flower.start(command, kit.parent, "client.log", {PATHS: kit.anchor}))
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                flower.stop(process, patience=1)
