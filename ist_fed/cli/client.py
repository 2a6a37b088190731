"""`ist-fed client …`: the side that holds the data."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from ist_fed.cli.install import install
from ist_fed.engines.apps import Apps, Config
from ist_fed.engines.fleet import Fleet
from ist_fed.engines.flower import environment, free_port
from ist_fed.engines.resident import ADMISSION_S, Resident
from ist_fed.errors import EngineError, FleetUnknown, FleetUnreachable, PkiError
from ist_fed.pki import Kit, open_kit
from ist_fed.pki.address import split_port
from ist_fed.pki.revocation import read_revoked
from ist_fed.pki.signing import open_signer
from ist_fed.privacy.secure.limits import FLOOR, MIN_COHORT

app = typer.Typer(help="The client: it holds the data, and trains its part of the network.", no_args_is_help=True)
app.command()(install)

_AGAIN_S = 2.0  # until a SuperNode that was not admitted is started again


@app.callback()
def group() -> None:
    """Commands of a client."""


@app.command()
def start(
    kit: Annotated[
        Path | None, typer.Option(help="The kit from the server's operator; the key lies beside it.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Without a kit and without TLS: a server on this machine.")
    ] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Of the federation's certificate, to compare.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where this client's data are; nobody else learns it.")] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="I/N", help="Instead of --data: share I, from 0, of N of the task's own data.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    amp: Annotated[str | None, typer.Option(help="Mixed precision: bf16 or fp16.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="What training may take, as 2GiB; by default what is free.")
    ] = None,
    allow_task: Annotated[
        list[str] | None, typer.Option(metavar="MODULE:NAME", help="A task of one's own that the server may ask for.")
    ] = None,
    allow_app: Annotated[
        list[str] | None, typer.Option(metavar="HASH", help="Code that the server may send; remembered.")
    ] = None,
    signer: Annotated[
        Path | None,
        typer.Option(metavar="NAME.sign.pem", help="Take part in secure rounds, and in no others; its key beside it."),
    ] = None,
    revoked: Annotated[
        Path | None, typer.Option(metavar="revoked.pem", help="Members that it trusts no more; read anew every round.")
    ] = None,
    min_cohort: Annotated[
        int, typer.Option(help="Fewest clients among whom this one hides in secure rounds.")
    ] = MIN_COHORT,
    secure_epsilon: Annotated[
        float | None, typer.Option(help="In secure rounds, never give more away than this, at --secure-delta.")
    ] = None,
    secure_delta: Annotated[float, typer.Option(help="At which --secure-epsilon holds.")] = 1e-5,
    example_epsilon: Annotated[
        float | None, typer.Option(help="Train only where single examples are private, and never spend more on them.")
    ] = None,
    example_delta: Annotated[
        float, typer.Option(help="At which --example-epsilon holds, or at the scenario's if that is less.")
    ] = 1e-5,
    tell_epsilon: Annotated[
        bool, typer.Option("--tell-epsilon", help="Let the server know what privacy its examples have spent.")
    ] = False,
    supernode: Annotated[bool, typer.Option("--supernode", help="Let Flower's own SuperNode run this client.")] = False,
) -> None:
    """Start the client, and keep it running until Ctrl-C; it then finishes what it holds."""
    _log()
    opened = open_kit(kit, fingerprint) if kit is not None else None
    config = _config(opened, data, partition, allow_task or [])
    config |= {key: value for key, value in (("device", device), ("amp", amp), ("memory", memory)) if value}
    if signer is not None:
        config |= _secret(signer, revoked, min_cohort, supernode) | _allowed("secure", secure_epsilon, secure_delta)
    elif secure_epsilon is not None or revoked is not None:
        which = "--revoked" if secure_epsilon is None else "--secure-epsilon"
        raise EngineError(f"{which} is for secure rounds; say with --signer who this client is in them")
    config |= {"kit": str(kit.absolute())} if kit is not None else {"server": _loopback(server)}
    folder = kit.parent if kit is not None else Path.cwd()
    config["folder"] = str(folder.absolute())
    config |= _allowed("example", example_epsilon, example_delta)
    if tell_epsilon:
        config["tell-epsilon"] = "yes"
    if supernode:
        _look(opened)
        sys.exit(_supernode(opened, server, config))
    apps = Apps(folder, allow_app or [])
    with _connect(opened, server) as fleet:
        resident = Resident(fleet, config, lambda run: apps.of(run, fleet))

        def stop(number: int, frame: FrameType | None) -> None:
            resident.stop()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends it at once
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        resident.serve()


def _connect(kit: Kit | None, server: str | None) -> Fleet:
    if kit is not None:
        key = load_ssh_private_key(kit.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return Fleet(kit.address, key, kit.ca)
    return Fleet(_loopback(server), ec.generate_private_key(ec.SECP384R1()), None)


def _look(kit: Kit | None) -> None:
    """Say now what will not get better by itself, over which a SuperNode ends, again and again, without saying it.

    Raises:
        FleetRefused: the server is not this kit's, or will not have this client.
    """
    if kit is not None:
        with suppress(FleetUnreachable, FleetUnknown), _connect(kit, None) as fleet:
            fleet.join()


def _loopback(server: str | None) -> str:
    if server is None:
        raise EngineError("say which server this client belongs to: --kit KIT, or --server 127.0.0.1:9092 without TLS")
    split_port(server, "--server")
    if server.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        raise PkiError(f"without a kit there is no TLS, so the server must be on this machine, but is '{server}'")
    return server


def _config(kit: Kit | None, data: Path | None, partition: str | None, tasks: list[str]) -> Config:
    """What Flower calls the node's configuration."""
    if (data is None) == (partition is None):
        raise EngineError("say where the data are: either --data PATH, or --partition 0/4 of the task's own data")
    config: Config = {"tasks": ",".join(tasks)}
    if partition is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", partition)
        if not match or not int(match[1]) < int(match[2]):
            raise EngineError(f"a partition is I/N with I from 0 and less than N, as 0/4, but is '{partition}'")
        return config | {"partition-id": int(match[1]), "num-partitions": int(match[2])}
    assert data is not None
    if not data.exists():
        raise EngineError(f"the data must be there, but '{data}' is not")
    return config | {"partition-id": kit.number if kit else 0, "data": str(data.absolute())}


def _secret(signer: Path, revoked: Path | None, min_cohort: int, supernode: bool) -> Config:
    """What a node is told that takes part in secure rounds."""
    if supernode:
        raise EngineError(
            "in secure rounds a client keeps its secrets between messages, but Flower's SuperNode starts a process for "
            "each; leave --supernode out"
        )
    if min_cohort < FLOOR:
        raise EngineError(f"a client hides among {FLOOR} at least, but --min-cohort is {min_cohort}")
    authority = open_signer(signer).authority  # what is wrong with it is said now, and not in the first round
    config: Config = {"signer": str(signer.absolute()), "min-cohort": min_cohort}
    if revoked is None:
        return config
    read_revoked(revoked, authority)
    return config | {"revoked": str(revoked.absolute())}


def _allowed(kind: str, epsilon: float | None, delta: float) -> Config:
    """What a node may give away, in secure rounds or of its examples."""
    if epsilon is None:
        return {}
    if not epsilon > 0 or not 0 < delta < 1:
        raise EngineError(
            f"--{kind}-epsilon is positive and --{kind}-delta between 0 and 1, but they are {epsilon:g} and {delta:g}"
        )
    return {f"{kind}-epsilon": epsilon, f"{kind}-delta": delta}


def _supernode(kit: Kit | None, server: str | None, config: Config) -> int:
    """Flower's own SuperNode, which starts a process for every message."""
    command = ["flower-supernode", "--superlink", kit.address if kit else _loopback(server)]
    if kit is None:
        command += ["--insecure"]
    else:
        ca = kit.key.with_name(f"{kit.name}.ca.pem")
        ca.write_bytes(kit.ca)
        command += ["--root-certificates", str(ca), "--auth-supernode-private-key", str(kit.key)]
    said = [f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in config.items()]
    command += ["--node-config", " ".join(said), "--host", "127.0.0.1", "--port", str(free_port())]
    # Its SuperExec starts a process for every message, and is to look for the next one soon.
    env = environment(Path.home() / ".ist_fed") | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    env["GRPC_VERBOSITY"] = os.environ.get("GRPC_VERBOSITY", "NONE")  # Flower says it, too
    # A server that starts with this client may not know it for a moment; a SuperNode ends when it hears so.
    deadline = time.monotonic() + ADMISSION_S
    while (code := subprocess.run(command, env=env, check=False).returncode) and time.monotonic() < deadline:
        time.sleep(_AGAIN_S)
    return code


def _log() -> None:
    """A client is a service: it says what happens to it."""
    logger = logging.getLogger("ist_fed")
    logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
