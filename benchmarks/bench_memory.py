"""A network too big for any client: trained as subnets under a memory limit that kills the training of the whole.

    python benchmarks/bench_memory.py    # as root; a few minutes

MLP 64-8192-8192-10 with BatchNorm on digits. Four clients, each in a cgroup of its own with the same memory limit,
train it over gRPC and TLS as four disjoint subnets. Apart from that, one process in such a cgroup takes local steps on
the whole network, with the product's own code: the kernel kills it. So it does to a client that gets the whole network
(rule `full`). The same steps without a limit show what they would have taken.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from bench_core import RESULTS
from bench_digits import state_bytes
from cgroups import Limited, why_not
from stage import HERE, Stage, _end_with_parent, busy_machine, end_on_sigterm, peak_of, save

from ist_fed.seeds import generator
from ist_fed.tasks import load_task
from ist_fed.train import Training, train

WIDTH, CLIENTS, ROUNDS, STEPS = 8192, 4, 6, 20
LIMIT = 900 << 20
BOUNDLESS = 1 << 36
MB = 1e6


def whole(width: int) -> None:
    """Local steps on the whole network, in this process."""
    torch.set_num_threads(1)
    task = load_task("digits")
    model = task.build(hidden1=width, hidden2=width)
    data = task.client_data(0, CLIENTS)
    train(model, task, data, Training(lr=0.01), lr=0.01, steps=2, rng=generator(0, "batches"))
    print(peak_of(os.getpid()), flush=True)


def alone(limit: int, width: int) -> dict[str, Any]:
    """The same in a cgroup; how it ended."""
    with Limited("whole", limit) as group:
        command = [*group.prefix(), sys.executable, __file__, "--whole", str(width)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, preexec_fn=_end_with_parent, timeout=600
        )
        said = done.stdout.strip()
        return {
            "status": done.returncode,
            "kills": group.kills(),
            "peak": group.peak(),
            "resident": int(said) if said else None,
            "error": done.stderr[-500:],
        }


def federation(rule: str, rounds: int, clients: int) -> dict[str, Any]:
    """Clients, each under the limit; what came of it."""
    sizes = f"sizes={{hidden1={WIDTH},hidden2={WIDTH}}}"
    settings = [f"clients={clients}", f"rounds={rounds}", f"local_steps={STEPS}", sizes, f"rule={rule}"]
    settings += ["training.lr=0.03", "record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu"]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        groups = [stack.enter_context(Limited(f"client{number}", LIMIT)) for number in range(clients)]
        stage = stack.enter_context(Stage(Path(folder), clients, client=lambda number: groups[number].prefix()))
        stage.start_server("digits", settings)
        stage.start_clients()
        if rule == FULL:
            ends = [stage.processes[f"client{number}"].wait(900) for number in range(clients)]
            return {"ends": ends, "kills": [group.kills() for group in groups]}
        lines = stage.watch(seconds=1500)
        return {
            "merged": [line.metrics["merged"] for line in lines],
            "accuracy": [round(line.metrics["accuracy"], 4) for line in lines],
            "seconds": round(lines[-1].at - lines[0].at + lines[0].phases, 1),
            "peaks": [group.peak() for group in groups],
            "kills": [group.kills() for group in groups],
            "resident": [peak_of(stage.processes[f"client{number}"].pid) for number in range(clients)],
        }


FULL, IST = '{name="full"}', '{name="disjoint",groups=4,keep=4}'


def rows(raw: dict[str, Any]) -> list[list[Any]]:
    limited, free, subnets, full = raw["limited"], raw["free"], raw["subnets"], raw["full"]
    limit = f"{LIMIT / MB:.0f} MB"
    return [
        ["whole network, local steps, no limit", "–", f"finishes; {free['peak'] / MB:.0f} MB at the peak"],
        ["whole network, local steps", limit, ended([limited["status"]], [limited["kills"]])],
        ["a client that gets the whole network (rule `full`)", limit, ended(full["ends"], full["kills"])],
        [
            f"4 clients, a subnet each, {len(subnets['merged'])} rounds of {STEPS} steps",
            limit,
            f"{'finish' if subnets['merged'] == [CLIENTS] * ROUNDS else 'DO NOT FINISH'}; accuracy "
            f"{100 * subnets['accuracy'][-1]:.1f} %; {max(subnets['peaks']) / MB:.0f} MB at the peak (resident "
            f"{max(subnets['resident']) / MB:.0f} MB); {subnets['seconds']:.0f} s; {sum(subnets['kills'])} killed",
        ],
    ]


def ended(statuses: Sequence[int], kills: Sequence[int]) -> str:
    killed = all(status == -9 for status in statuses) and all(kills)
    return f"killed by the kernel ({sum(kills)} of {len(kills)})" if killed else f"NOT KILLED: {statuses}, {kills}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--whole", type=int, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.whole:
        whole(options.whole)
        return
    end_on_sigterm()
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    raw: dict[str, Any] = {}
    for name, part in (
        ("limited", lambda: alone(LIMIT, WIDTH)),
        ("free", lambda: alone(BOUNDLESS, WIDTH)),
        ("subnets", lambda: federation(IST, ROUNDS, CLIENTS)),
        ("full", lambda: federation(FULL, 1, 1)),
    ):
        raw[name] = part()
        print(name, raw[name], flush=True)
    bytes_whole, bytes_part = state_bytes(WIDTH, WIDTH), state_bytes(WIDTH // CLIENTS, WIDTH // CLIENTS)
    results = {
        "title": "Too big for any client",
        "machine": busy_machine(),
        "command": "make bench-memory",
        "columns": ["what", "limit", "what happens"],
        "rows": rows(raw),
        "notes": [
            (__doc__ or "").split("\n\n", 2)[2].strip(),
            f"The network's state is {bytes_whole / MB:.0f} MB, a subnet's {bytes_part / MB:.1f} MB; a client process "
            f"alone, with Python, torch, Flower and scikit-learn's data, takes some 300 MB that it shares with nobody. "
            f"The limit was 629 MB at first: there a client was killed with its subnet, too.",
        ],
        "raw": raw,
    }
    save(RESULTS / "memory.json", results)
    for row in results["rows"]:
        print(" | ".join(str(cell) for cell in row))


if __name__ == "__main__":
    main()
