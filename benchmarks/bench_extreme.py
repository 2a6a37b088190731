"""A network with 670 091 labels: what a client of eight and the server take of memory in one round.

    python benchmarks/bench_extreme.py    # a few minutes, 8 GB

`wide_output` at the size of Amazon-670k, 135 909 sparse features, 512 hidden units, 670 091 labels, on synthetic
examples of that shape. Eight clients train a subnet of 64 units each, one after another, each in a process of its own
that is given a real order and gives a real reply (`Worker`, `wire`). The server is the product's own run from an empty
folder to the saved model (`federate`): first weights, the round, evaluation, a checkpoint. Memory is the largest
resident size less what the process had before it held any of the network.

The server is measured twice: with `round.in_place`, and without, when a round keeps the network as it was until it is
over; then no client trains.
"""

import argparse
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_core import RESULTS
from flwr.app import ConfigRecord, Message
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file
from stage import HERE, _end_with_parent, busy_machine, peak_of, save
from torch import Tensor

from ist_fed import tensors, wire
from ist_fed.arrays import arrays_of
from ist_fed.cohort import Assignment, Outcome
from ist_fed.cost import cost
from ist_fed.engines.local import LocalGrid
from ist_fed.federation import federate
from ist_fed.run import Run
from ist_fed.scenario import Record, Rounds, Scenario
from ist_fed.tasks import Task, load_task
from ist_fed.train import Training
from ist_fed.worker import Worker

FEATURES, LABELS, UNITS, CLIENTS, STEPS = 135_909, 670_091, 512, 8, 2
TRAINING = Training(lr=0.1, momentum=0.0, batch_size=32)
CPU, MB = torch.device("cpu"), 1e6

FORKS = multiprocessing.get_context("forkserver")  # a client's process has its modules, and nothing of the server's
FORKS.set_forkserver_preload(["bench_extreme"])


def options(labels: int) -> dict[str, Any]:
    shape = {"features": FEATURES, "classes": labels, "nonzeros": 75, "labels": 5}
    return {**shape, "examples": 500, "test_examples": 64}


def task(labels: int) -> Task:
    return load_task("synthetic", options(labels))


# --- A client, in a process of its own --------------------------------------------------------------------------------


def client(number: int, labels: int, file: Path) -> None:
    """Train the subnet in the file, and put it back there."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    torch.set_num_threads(1)
    asked = task(labels)
    worker = Worker(asked, asked.client_data(number, CLIENTS), client=number, memory=None)
    worker.train(order(arrays_of(task(100).build(hidden1=4)), 4))  # refused; what Flower takes once, it has taken now
    estimate = cost(asked, {"hidden1": UNITS // CLIENTS}, TRAINING, data=worker.data)
    gc.collect()
    before = resident()
    reply = worker.train(order(load_file(file), UNITS // CLIENTS))
    peak = peak_of(os.getpid()) - before
    assert "error" not in reply.content["reply"], reply.content["reply"]
    label = wire.Label(str(reply.content["reply"]["layout"]), str(reply.content["reply"]["digest"]), estimate.bytes)
    answer = wire.open_reply(reply, round=1, nonce="n", label=label)
    save_file(dict(answer.arrays), file)
    found = {"peak": peak, "estimate": estimate.memory, "bytes": estimate.bytes}
    file.with_suffix(".json").write_text(json.dumps({**found, "loss": answer.loss, "seconds": answer.seconds}))


def order(arrays: Mapping[str, Tensor], units: int) -> Message:
    parcel = wire.pack(arrays)
    fields = {"round": 1, "nonce": "n", "seed": 1, "local_steps": STEPS, "lr": TRAINING.lr, "sizes": {"hidden1": units}}
    message = wire.order_message(5, parcel, {**fields, "training": asdict(TRAINING)}, ConfigRecord(), 3600.0)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def resident() -> int:
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# --- The server, in a process of its own ------------------------------------------------------------------------------


class Apart(LocalGrid):
    """Clients of which the first few train, each in its own process; the others return their subnets as they came."""

    def __init__(self, labels: int, trains: int, folder: Path) -> None:
        asked = task(labels)
        super().__init__(
            CLIENTS, lambda number: Worker(asked, asked.client_data(number, CLIENTS), client=number), asked, CPU
        )
        self._labels, self._trains, self._file = labels, trains, folder / "subnet.safetensors"
        self.said: list[Any] = []

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        """As `LocalGrid` does one by one."""
        for asked in assignments:
            for node, weight in zip(asked.nodes, asked.weights, strict=True):
                if node < self._trains:
                    arrays, loss, seconds = self._train(asked, node)
                else:
                    arrays, loss, seconds = asked.arrays, float("nan"), 0.0
                losses = np.array([loss])
                yield Outcome(
                    assignment=asked, nodes=(node,), losses=losses, seconds=seconds, arrays=arrays, weight=weight
                )
                del arrays

    def _train(self, asked: Assignment, node: int) -> tuple[dict[str, Tensor], float, float]:
        """What a client makes of its subnet, its loss, and the seconds that it took."""
        save_file(asked.arrays, self._file)
        asked.let_go()
        process = FORKS.Process(target=client, args=(node, self._labels, self._file))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"client {node} ended with {process.exitcode}")
        self.said.append(json.loads(self._file.with_suffix(".json").read_text()))
        print(self.said[-1], file=sys.stderr, flush=True)
        return tensors.read(self._file), self.said[-1]["loss"], self.said[-1]["seconds"]


def server(labels: int, in_place: bool, trains: int) -> None:
    """One round of the product's own, in which the first `trains` clients train, from an empty folder to a model."""
    torch.set_num_threads(1)
    scenario = Scenario(
        name="extreme",
        task="synthetic",
        options=options(labels),
        sizes={"hidden1": UNITS},
        rule={"name": "disjoint", "groups": CLIENTS},
        clients=CLIENTS,
        rounds=1,
        local_steps=STEPS,
        training=TRAINING,
        round=Rounds(in_place=in_place),
        record=Record(tensorboard=False),
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        grid = Apart(labels, trains, Path(folder))
        run = Run.create(Path(folder, "run"), scenario)
        gc.collect()
        before, began = resident(), time.perf_counter()
        federate(grid, run)
        seconds, peak = time.perf_counter() - began, peak_of(os.getpid()) - before
        (line,) = run.metrics()
        about = json.loads((run.folder / "model.json").read_text())
    print(json.dumps({"bytes": about["bytes"], "peak": peak, "seconds": seconds, "clients": grid.said, "line": line}))


def measured(*arguments: str) -> dict[str, Any]:
    """What a server in a process of its own says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent)
    done.check_returncode()
    return dict(json.loads(done.stdout))


def rows(raw: dict[str, Any]) -> list[list[Any]]:
    in_place, merged = raw["in place"], raw["merge"]
    clients, bytes_all = in_place["clients"], in_place["bytes"]
    worst = max(clients, key=lambda said: said["peak"])
    return [
        ["the whole network", f"{bytes_all / MB:.0f} MB", "", ""],
        ["a client's subnet", f"{worst['bytes'] / MB:.0f} MB", f"{worst['bytes'] / bytes_all:.3f}", "of the network"],
        ["a client, estimated", f"{worst['estimate'] / MB:.0f} MB", "", ""],
        [
            f"a client, measured, the worst of {len(clients)}",
            f"{worst['peak'] / MB:.0f} MB",
            f"{worst['peak'] / worst['estimate']:.2f}",
            "of its estimate",
        ],
        [
            "the server, `round.in_place`",
            f"{in_place['peak'] / MB:.0f} MB",
            f"{in_place['peak'] / bytes_all:.2f}",
            "of the network",
        ],
        [
            "the server, without",
            f"{merged['peak'] / MB:.0f} MB",
            f"{merged['peak'] / bytes_all:.2f}",
            "of the network",
        ],
        [
            f"a run of one round, in which {len(clients)} of {CLIENTS} clients take {STEPS} steps, one after another",
            f"{in_place['seconds']:.0f} s",
            f"{sum(said['seconds'] for said in clients):.0f} s",
            "of it training",
        ],
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--labels", type=int, default=LABELS)
    arguments.add_argument(
        "--clients", type=int, default=CLIENTS, help="that train; the others' subnets stay as they are"
    )
    arguments.add_argument("--server", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.server:
        server(asked.labels, asked.server == "in place", asked.clients if asked.server == "in place" else 0)
        return
    raw = {
        name: measured("--server", name, "--labels", str(asked.labels), "--clients", str(asked.clients))
        for name in ("in place", "merge")
    }
    results = {
        "title": "Very many labels: memory of a client and of the server",
        "machine": busy_machine(),
        "command": "make bench-extreme",
        "columns": ["what", "takes", "ratio", ""],
        "rows": rows(raw),
        "notes": [(__doc__ or "").split("\n\n", 2)[2].strip()],
        "raw": raw,
    }
    if asked.labels == LABELS:
        save(RESULTS / "extreme.json", results)
    for row in results["rows"]:
        print(" | ".join(str(cell) for cell in row))


if __name__ == "__main__":
    main()
