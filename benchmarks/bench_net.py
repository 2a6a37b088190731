"""Time to 97 % on digits over slow links: Independent Subnet Training, federated averaging, and torch's DDP over gloo.

    python benchmarks/bench_net.py           # as root; goes on where it was stopped
    python benchmarks/bench_net.py --fresh   # forget finished runs

A server and 4 clients (DDP: 4 ranks), each in a network namespace, every link limited to the rate with `tc tbf`, both
ways. MLP 64-2048-2048-10 with BatchNorm, and the rest as `scenarios/digits.toml` has it: batch 32 a client, SGD with
momentum 0.9, learning rate 0.1 (DDP: kept), 10 local steps a round; federated averaging is the same product with rule
`full`. The clock runs from the first order (DDP: the first step) to the first round (DDP: step, looked at every few)
whose network is right on 97 % of the test images; starting processes is not counted, and DDP's evaluation is not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_core import RESULTS
from bench_digits import SIZES, TARGET, state_bytes
from namespaces import Network, why_not
from stage import HERE, Line, Stage, _end_with_parent, busy_machine, end_on_sigterm, save

CLIENTS, ROUNDS, LR = 4, 40, 0.1
RATES = (100, 20)
SEEDS = (1, 2, 3)
EVERY = 5  # steps of DDP between two looks at its accuracy
DDP_STEPS = 200  # at most
FIRST_TRIED = (
    "Tried first, at 100 Mbit/s and one seed: 40 local steps and learning rate 0.03, when clients did not yet import "
    "torch's optimisers before they joined. Averaging was there after its first round, in about 62 s, and IST after "
    "its second, in 29.7 s: 2.1 ×, below the target of 3. The settings above, the scenario's own, were taken after "
    "that; the first ones have not been measured again. The more local steps, the fewer rounds averaging needs, and "
    "the less there is to save."
)
FIXED = ("record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu")


@dataclass(frozen=True)
class Method:
    """A row: its name and its rule."""

    name: str
    rule: str

    def settings(self, seed: int) -> list[str]:
        """Overrides of the scenario `digits`."""
        sizes = ",".join(f"{axis}={units}" for axis, units in SIZES.items())
        return [
            f"clients={CLIENTS}",
            f"rounds={ROUNDS}",
            f"sizes={{{sizes}}}",
            f"rule={self.rule}",
            f"training.lr={LR}",
            f"seed={seed}",
            *FIXED,
        ]


IST = Method("IST n=4", '{name="disjoint",groups=4,keep=4}')
FEDAVG = Method("FedAvg (rule full)", '{name="full"}')
DDP = Method("torch DDP, gloo", "")
TARGETS = {100: {FEDAVG.name: 3, DDP.name: 5}, 20: {FEDAVG.name: 6, DDP.name: 10}}


def hosts(servers: Sequence[str] = ("server",)) -> list[str]:
    return [*servers, *(f"client{number}" for number in range(CLIENTS))]


# --- The product ------------------------------------------------------------------------------------------------------


def product(method: Method, mbit: float, seed: int) -> dict[str, Any]:
    """One run, ended when it is there."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Network(hosts(), mbit) as network,
        Stage(
            Path(folder),
            CLIENTS,
            host=network.address("server"),
            server=network.prefix("server"),
            client=lambda number: network.prefix(f"client{number}"),
        ) as stage,
    ):
        stage.start_server("digits", method.settings(seed))
        stage.start_clients()
        stage.watch(lambda lines: len(lines) >= 1, seconds=900)
        lines = list(stage.watch(there, seconds=1800))
        counted = network.counted("server")
    began = lines[0].at - lines[0].phases
    return {
        "seconds": round(lines[-1].at - began, 2),
        "rounds": len(lines),
        "reached": bool(there(lines)),
        "marks": [[round(line.at - began, 2), round(line.metrics["accuracy"], 4)] for line in lines],
        "train": round(statistics.median(line.metrics["seconds"]["train"] for line in lines), 2),
        "interface": counted.interface,
        "wire": counted.wire,
        "formula": sum(line.metrics["bytes_down"] + line.metrics["bytes_up"] for line in lines),
    }


def there(lines: Sequence[Line]) -> bool:
    return bool(lines) and lines[-1].metrics["accuracy"] >= TARGET


# --- torch's DistributedDataParallel ----------------------------------------------------------------------------------


def ddp(mbit: float, seed: int, steps: int) -> dict[str, Any]:
    """One run of four ranks, on links like the clients'."""
    with tempfile.TemporaryDirectory() as folder, Network(hosts(()), mbit) as network:
        prefixes = [network.prefix(f"client{rank}") for rank in range(CLIENTS)]
        return ranks(Path(folder), network.address("client0"), prefixes, seed, steps)


def ranks(folder: Path, address: str, prefixes: Sequence[Sequence[str]], seed: int, steps: int) -> dict[str, Any]:
    """Start them, and wait."""
    out, log = folder / "ddp.json", folder / "ddp.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    processes = []
    try:
        for rank, prefix in enumerate(prefixes):
            words = [str(rank), str(len(prefixes)), f"{address}:29500", str(LR), str(steps), str(EVERY), str(seed)]
            with log.open("ab") as file:
                command = [*prefix, sys.executable, str(HERE / "ddp.py"), *words, str(out)]
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file, preexec_fn=_end_with_parent)
                )
        deadline = time.monotonic() + 1800
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline or any(process.poll() for process in processes):
                raise RuntimeError(log.read_text(errors="replace")[-3000:])
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = json.loads(out.read_text())
    return {
        "seconds": round(said["seconds"], 2),
        "rounds": said["steps"],
        "reached": said["accuracy"] >= TARGET,
        "marks": [[seconds, accuracy] for _, seconds, accuracy in said["marks"]],
        "per_step": round(said["seconds"] / said["steps"], 3),
    }


# --- Saying what came out ---------------------------------------------------------------------------------------------


def fill(results: dict[str, Any], path: Path) -> None:
    """Do the runs that are not there yet; the methods take turns, seed by seed."""
    runs = results.setdefault("runs", {})
    for seed in SEEDS:
        for mbit in RATES:
            for method in (IST, FEDAVG, DDP):
                key = f"{method.name} | {mbit} Mbit/s | seed {seed}"
                if key in runs or (method is DDP and seed > SEEDS[0]):
                    continue
                if method is DDP:
                    runs[key] = ddp(mbit, seed, DDP_STEPS)
                else:
                    runs[key] = product(method, mbit, seed)
                print(key, {name: value for name, value in runs[key].items() if name != "marks"}, flush=True)
                summarise(results)
                save(path, results)


def found(results: dict[str, Any], method: Method, mbit: int) -> list[dict[str, Any]]:
    return [
        run
        for seed in SEEDS
        if (run := results["runs"].get(f"{method.name} | {mbit} Mbit/s | seed {seed}")) is not None
    ]


def summarise(results: dict[str, Any]) -> None:
    rows, notes = [], [(__doc__ or "").split("\n\n", 2)[2].strip()]
    for mbit in RATES:
        ours = [run["seconds"] for run in found(results, IST, mbit)]
        for method in (IST, FEDAVG, DDP):
            if not (runs := found(results, method, mbit)) or not ours:
                continue
            middle = statistics.median(run["seconds"] for run in runs)
            ratio, target = middle / statistics.median(ours), TARGETS[mbit].get(method.name)
            rows.append(
                [
                    f"{mbit}",
                    method.name,
                    spread([run["seconds"] for run in runs], 1),
                    spread([run["rounds"] for run in runs], 0) + (" steps" if method is DDP else " rounds"),
                    over_formula(runs),
                    "" if target is None else f"{ratio:.1f} ×",
                    "" if target is None else f"≥ {target} ×: {'met' if ratio >= target else 'MISSED'}",
                ]
            )
    seeds = max(len(found(results, IST, mbit)) for mbit in RATES)
    notes.append(f"Median and range over {seeds} seeds; DDP one." if seeds > 1 else "One seed.")
    notes.append(
        "Bytes: what the counters of the server's interface saw from the first handshake on, over the closed formula; "
        "in brackets with the headers of every packet, which the interface does not see where TCP hands it bursts. The "
        "next round had begun by then, and is in them with what it sent."
    )
    notes.append(FIRST_TRIED)
    notes.append("![test accuracy over time](images/net.png)")
    results |= {
        "title": "Time to 97 % over slow links",
        "machine": busy_machine(),
        "command": "make bench-net",
        "columns": ["Mbit/s", "method", "s to 97 %", "took", "bytes / formula", "IST is faster by", "target"],
        "rows": rows,
        "notes": notes,
    }


def spread(values: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def over_formula(runs: Sequence[dict[str, Any]]) -> str:
    if "formula" not in runs[0]:
        return ""
    seen, wire = (statistics.median(run[key] / run["formula"] for run in runs) for key in ("interface", "wire"))
    return f"{seen:.3f} ({wire:.3f})"


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy over time, a panel for each rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axes = pyplot.subplots(1, len(RATES), figsize=(11, 4), sharey=True)
    for panel, mbit in zip(axes, RATES, strict=True):
        for method, colour in ((IST, "tab:blue"), (FEDAVG, "tab:orange"), (DDP, "tab:green")):
            for number, run in enumerate(found(results, method, mbit)):
                label = None if number else method.name
                panel.plot(*zip(*run["marks"], strict=True), marker=".", color=colour, alpha=0.7, label=label)
        panel.axhline(TARGET, color="grey", linewidth=0.8, linestyle="--")
        panel.set(title=f"{mbit} Mbit/s", xlabel="seconds", xscale="log", ylim=(0.9, 1.0), xlim=(1, 400))
        panel.xaxis.set_major_locator(FixedLocator([1, 3, 10, 30, 100, 300]))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("test accuracy")
    axes[0].legend(loc="lower right")
    figure.suptitle("digits, MLP 64-2048-2048-10, 4 clients")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    options = arguments.parse_args()
    end_on_sigterm()
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    path = RESULTS / "net.json"
    results = json.loads(path.read_text()) if path.exists() and not options.fresh else {}
    fill(results, path)
    summarise(results)
    save(path, results)
    plot(results, HERE.parent / "docs" / "images" / "net.png")
    for row in results["rows"]:
        print(" | ".join(str(cell) for cell in row))
    print(f"the subnet is {state_bytes(512, 512) / 1e6:.2f} MB, the network {state_bytes(2048, 2048) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
