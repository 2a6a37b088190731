"""What a round of a real deployment costs apart from training: seconds, and memory for a large subnet.

    python benchmarks/bench_round.py             # everything; about ten minutes
    python benchmarks/bench_round.py resident    # one part of: resident, stock, large

Everything runs on loopback with TLS and node identities. *Seconds per round* is the median time between the lines that
the server writes after each round, the first left out, with a local step that does next to nothing. *Round trip* of a
subnet of 100 MB is the server's `extract` and `wait` (packing, sending, the client's work, receiving, checking,
merging) less the client's local step, for one client, rule `full`; the bare stream sends the same bytes down and up
in pieces of 4 MiB over gRPC and TLS between two processes, before, between and after three runs. *Memory* is the
largest resident memory of a process, less that of the same process in the same deployment with a network of 8 units.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
from bench_core import RESULTS
from stage import Line, Peaks, Stage, _end_with_parent, busy_machine, cpu_of, end_on_sigterm, save

from ist_fed.engines.flower import free_port

TRIVIAL = (
    'task="trivial:Trivial"',
    "local_steps=1",
    'rule={name="full"}',
    "record.checkpoint_every=1000",
    "record.tensorboard=false",
    "device=cpu",
    "training.schedule=constant",
)
LARGE = 4960  # units of each of two layers: 100.0 MB
MIB = 1 << 20
PIECE = 4 * MIB
PATH = RESULTS / "round.json"
TARGETS = {2: 1.0, 10: 3.0}


def stage_run(
    clients: int,
    rounds: int,
    units: int,
    *,
    supernode: bool = False,
    peaks: Peaks | None = None,
    cpu: dict[str, float] | None = None,
) -> list[Line]:
    """The lines of a run with the trivial step; `cpu` gets the processor seconds of a round, by process."""

    def mark(line: Line) -> None:
        if cpu is not None and line.metrics["round"] in (2, rounds):
            for role, used in cpu_of(stage.roots).items():
                sign = -1 if line.metrics["round"] == 2 else 1
                cpu[role] = round(cpu.get(role, 0.0) + sign * used / (rounds - 2), 4)

    settings = [*TRIVIAL, f"clients={clients}", f"rounds={rounds}", f"sizes={{hidden1={units},hidden2={units}}}"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Stage(Path(folder), clients, supernode=supernode) as stage,
    ):
        stage.start_server("digits", settings)
        stage.start_clients("--allow-task", "trivial:Trivial")
        return list(stage.watch(seconds=900, peaks=peaks, on_line=mark))


def seconds_per_round(lines: Sequence[Line]) -> list[float]:
    return [after.at - before.at for before, after in pairwise(lines)]


# --- Small rounds -----------------------------------------------------------------------------------------------------


def small(results: dict[str, Any], supernode: bool) -> None:
    for clients, rounds in ((2, 4 if supernode else 9), (10, 3 if supernode else 9)):
        cpu: dict[str, float] = {}
        lines = stage_run(clients, rounds, 32, supernode=supernode, cpu=cpu)
        took = seconds_per_round(lines)
        key = f"{'stock' if supernode else 'resident'} {clients}"
        phases = {
            phase: round(statistics.median(line.metrics["seconds"].get(phase, 0.0) for line in lines[1:]), 4)
            for phase in ("assign", "extract", "wait", "merge", "evaluate", "record")
        }
        results["raw"][key] = {"seconds": [round(value, 3) for value in took], "phases": phases, "cpu": cpu}
        print(f"{key}: median {statistics.median(took):.2f} s, {results['raw'][key]}", flush=True)
        write(results)


# --- A large subnet ---------------------------------------------------------------------------------------------------


def large(results: dict[str, Any], rounds: int = 8, turns: int = 3) -> None:
    idle, peaks, trips = Peaks(), Peaks(), list[float]()
    stage_run(1, 4, 8, peaks=idle)
    streams = [bare_stream(100 * 10**6)]
    for _ in range(turns):
        trips += round_trips(stage_run(1, rounds, LARGE, peaks=peaks))
        streams.append(bare_stream(100 * 10**6))
    results["raw"]["large"] = {
        "payload": payload(),
        "trips": [round(value, 3) for value in trips],
        "streams": [round(value, 3) for value in streams],
        "peaks": {role: [peak, idle.by_role.get(role, 0)] for role, peak in peaks.by_role.items()},
    }
    print(results["raw"]["large"], flush=True)


def payload() -> int:
    return 4 * (64 * LARGE + LARGE + LARGE**2 + LARGE + 10 * LARGE + 10)


def round_trips(lines: Sequence[Line]) -> list[float]:
    return [
        line.metrics["seconds"]["extract"] + line.metrics["seconds"]["wait"] - line.metrics["seconds"]["train"]
        for line in lines[1:]
    ]


def bare_stream(size: int) -> float:
    """Seconds to send bytes down and up between two processes by gRPC with TLS; the median of five."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Stage(Path(folder), 0).federation
        port = free_port()
        command = [sys.executable, __file__, "--serve", str(port), str(federation.server_certificate)]
        command += [str(federation.server_key), str(size)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_end_with_parent)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            credentials = grpc.ssl_channel_credentials(federation.ca_certificate.read_bytes())
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=OPTIONS) as channel:
                return statistics.median([_round_trip(channel) for _ in range(6)][1:])
        finally:
            server.terminate()
            server.wait()


OPTIONS = [("grpc.max_receive_message_length", 2**31 - 1), ("grpc.max_send_message_length", 2**31 - 1)]


def _round_trip(channel: grpc.Channel) -> float:
    began = time.perf_counter()
    pieces = list(channel.unary_stream("/bench.Stream/Down")(b""))
    channel.stream_unary("/bench.Stream/Up")(iter(pieces))
    return time.perf_counter() - began


def serve_stream(port: int, certificate: Path, key: Path, size: int) -> None:
    """The other process."""
    whole = os.urandom(size)  # zeros would all lie in one page of memory
    pieces = [whole[start : start + PIECE] for start in range(0, size, PIECE)]

    def down(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from pieces

    def up(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        assert sum(len(piece) for piece in list(requests)) == size
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(2), options=OPTIONS)
    handlers = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Stream", handlers),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


# --- Saying what came out ---------------------------------------------------------------------------------------------


def rows(raw: dict[str, Any]) -> list[list[Any]]:
    made: list[list[Any]] = []
    for clients, target in TARGETS.items():
        resident, stock = (raw.get(f"{kind} {clients}") for kind in ("resident", "stock"))
        if resident:
            took = statistics.median(resident["seconds"])
            made.append([f"resident, {clients} clients, s per round", f"{took:.2f}", said(took, target, " s")])
        if stock:
            made.append([f"stock, {clients} clients, s per round", f"{statistics.median(stock['seconds']):.2f}", ""])
        if resident and stock:
            ratio = statistics.median(stock["seconds"]) / statistics.median(resident["seconds"])
            made.append(
                [
                    f"faster than stock, {clients} clients",
                    f"{ratio:.1f} ×",
                    f"≥ 8 ×: {'met' if ratio >= 8 else 'MISSED'}",
                ]
            )
    if found := raw.get("large"):
        trip, stream = statistics.median(found["trips"]), statistics.median(found["streams"])
        made.append(["100 MB subnet, there and back, s", f"{trip:.2f}", ""])
        made.append(["bare gRPC stream of the same bytes, s", f"{stream:.2f}", ""])
        made.append(["round trip / bare stream", f"{trip / stream:.1f} ×", said(trip / stream, 3, " ×")])
        for role, (peak, idle) in sorted(found["peaks"].items()):
            times = (peak - idle) / found["payload"]
            target = said(times, 2.5, " ×") if role in ("client0", "server: ServerApp", "server: SuperLink") else ""
            text = f"{times:.2f} × ({peak / 1e6:.0f} MB, idle {idle / 1e6:.0f} MB)"
            made.append([f"memory of {role} over idle / payload", text, target])
    return made


def write(results: dict[str, Any]) -> None:
    notes = [(__doc__ or "").split("\n\n", 2)[2].strip()]
    for key, found in results["raw"].items():
        if used := found.get("cpu"):
            busiest = max(used, key=lambda role: used[role])
            notes.append(f"{key}: of a round, {used[busiest]:.2f} s of processor time are spent in {busiest}.")
    if "stock 10" not in results["raw"]:
        notes.append("Stock with 10 clients was not run.")
    results |= {
        "title": "A round of a real deployment",
        "machine": busy_machine(),
        "command": "make bench-round",
        "columns": ["what", "measured", "target"],
        "rows": rows(results["raw"]),
        "notes": notes,
    }
    save(PATH, results)


def said(value: float, target: float, unit: str) -> str:
    return f"≤ {target:g}{unit}: {'met' if value <= target else 'MISSED'}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("parts", nargs="*", help="of: resident, stock, large; by default all")
    arguments.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.serve:
        port, certificate, key, size = options.serve
        serve_stream(int(port), Path(certificate), Path(key), int(size))
        return
    end_on_sigterm()
    results: dict[str, Any] = {"raw": {}}
    if PATH.exists() and options.parts:
        results = json.loads(PATH.read_text())
    parts = {
        "resident": lambda: small(results, False),
        "stock": lambda: small(results, True),
        "large": lambda: large(results),
    }
    for name in options.parts or list(parts):
        parts[name]()
        write(results)
    for row in results["rows"]:
        print(" | ".join(str(cell) for cell in row))


if __name__ == "__main__":
    main()
