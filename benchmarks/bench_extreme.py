"""A network with 670 091 labels: what a client of eight and the server take of memory in one round.

    python benchmarks/bench_extreme.py    # a few minutes, 8 GB

`wide_output` at the size of Amazon-670k, 135 909 sparse features, 512 hidden units, 670 091 labels, on synthetic
examples of that shape. Eight clients train a subnet of 64 units each, one after another, each in a process of its own
that is given a real order and gives a real reply (`Worker`, `wire`); the server cuts a subnet when its client's turn
comes. Memory is the largest resident size less what the process had before it held any of the network.

Merging is measured twice: by `Merge`, which the product's rounds use and which keeps the network as it was until the
round is over, and in place, the least that anything could take: disjoint subnets are written over their own units.
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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_core import RESULTS
from flwr.app import ConfigRecord, Message
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file
from stage import HERE, _end_with_parent, busy_machine, peak_of, save
from torch import Tensor

from ist_fed import wire
from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.axes import Axes, infer, sizes_of
from ist_fed.cost import cost
from ist_fed.device import return_freed_memory
from ist_fed.evaluate import evaluate
from ist_fed.places import Units, check_units, places_of, write
from ist_fed.rules import Disjoint, Node
from ist_fed.seeds import generator, seeded
from ist_fed.subnet import Merge, extract
from ist_fed.tasks import Task, load_task
from ist_fed.train import Training
from ist_fed.worker import Worker

FEATURES, LABELS, UNITS, CLIENTS, STEPS = 135_909, 670_091, 512, 8, 2
TRAINING = Training(lr=0.1, momentum=0.0, batch_size=32)
MB = 1e6

FORKS = multiprocessing.get_context("forkserver")  # a client's process has its modules, and nothing of the server's
FORKS.set_forkserver_preload(["bench_extreme"])


def task(labels: int) -> Task:
    options = {"features": FEATURES, "classes": labels, "nonzeros": 75, "labels": 5, "examples": 500}
    return load_task("synthetic", {**options, "test_examples": 64})


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


def trained(number: int, labels: int, part: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], Any]:
    """What a client of its own process makes of a subnet, and what it says."""
    file = folder / "subnet.safetensors"
    save_file(dict(part), file)
    process = FORKS.Process(target=client, args=(number, labels, file))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"client {number} ended with {process.exitcode}")
    return load_file(file), json.loads(file.with_suffix(".json").read_text())


# --- The server, in a process of its own ------------------------------------------------------------------------------


def server(labels: int, in_place: bool, trains: int) -> None:
    """One round, in which the first `trains` clients train; the others' subnets come back as they went."""
    torch.set_num_threads(1)
    return_freed_memory()
    asked, sizes = task(labels), {"hidden1": UNITS}
    axes = infer(asked.build, sizes)
    plan = Disjoint(groups=CLIENTS)(1, [Node(number) for number in range(CLIENTS)], sizes, generator(0, 1, "assign"))
    data = asked.test_data()
    gc.collect()
    before, began = resident(), time.perf_counter()
    with seeded(0):
        model = asked.build(**sizes)
    arrays = arrays_of(model)
    merge = Merge(whole(arrays, axes) if in_place else arrays, axes)
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for number, units in enumerate(plan.subnets):
            part = extract(arrays, axes, units)
            if number < trains:
                part, answer = trained(number, labels, part, Path(folder))
                said.append(answer)
                print(answer, file=sys.stderr, flush=True)
            if in_place:
                put_back(arrays, axes, units, part)
                merge.add({}, {name: array.clone() for name, array in whole(part, axes).items()})
            else:
                merge.add(units, part)
            del part
    merged = merge.result()
    del merge
    seconds = time.perf_counter() - began
    peak = peak_of(os.getpid()) - before
    result = {"bytes": sum(array.nbytes for array in arrays.values()), "peak": peak, "seconds": seconds}
    if trains:
        load_arrays(model, {**arrays, **merged}, share=True)
        result |= {"clients": said, "evaluation": evaluate(model, asked, data, batch_size=64)}
    print(json.dumps(result))


def whole(arrays: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """The arrays that are not split: every subnet has them."""
    return {name: array for name, array in arrays.items() if all(dim.axis is None for dim in axes[name])}


def put_back(arrays: Mapping[str, Tensor], axes: Axes, units: Units, part: Mapping[str, Tensor]) -> None:
    """Write what one client alone holds over the same units of the network."""
    sizes = sizes_of(arrays, axes)
    places = places_of(arrays, axes, sizes, check_units(units, sizes))
    for name in arrays.keys() - whole(arrays, axes).keys():
        write(arrays[name], places[name], part[name])


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
            "the server, disjoint subnets written in place",
            f"{in_place['peak'] / MB:.0f} MB",
            f"{in_place['peak'] / bytes_all:.2f}",
            "of the network",
        ],
        [
            "the server, `Merge`",
            f"{merged['peak'] / MB:.0f} MB",
            f"{merged['peak'] / bytes_all:.2f}",
            "of the network",
        ],
        [
            f"a round in which {len(clients)} of {CLIENTS} clients train one after another, {STEPS} steps each",
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
    options = arguments.parse_args()
    if options.server:
        server(options.labels, options.server != "merge", options.clients if options.server == "in place" else 0)
        return
    raw = {
        name: measured("--server", name, "--labels", str(options.labels), "--clients", str(options.clients))
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
    if options.labels == LABELS:
        save(RESULTS / "extreme.json", results)
    for row in results["rows"]:
        print(" | ".join(str(cell) for cell in row))


if __name__ == "__main__":
    main()
