"""Rounds of many clients on one machine: the product's engines, hand-written loops, and other people's simulators.

    python benchmarks/bench_sim.py                        # everything; hours
    python benchmarks/bench_sim.py --part rounds          # against loops and peers; also: what-remains, scaling
    python benchmarks/bench_sim.py --device cuda          # product and loops on a GPU, unattended

What is finished is in `results/sim.json` (`sim_cuda.json`), and is not measured again; `--fresh` forgets it. Every
contestant runs in a process of its own, so that its peak of memory is its own, and they take turns: ratios are of the
same cycle. A turn is two rounds that do not count (Flower, pfl-research and FedLab: one) and then rounds for two
seconds, at least two; its time is their median. Peers get environments of their own in `benchmarks/.cache`.
"""

import argparse
import json
import os
import statistics
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_core import RESULTS
from sim import plots
from sim.environments import interpreter
from sim.workload import CACHE, GROUPS, HIDDEN, INPUTS, OUTPUTS, SAMPLES, start_file
from stage import busy_machine, descendants, end_on_sigterm, save

HERE = Path(__file__).parent
LONGEST_S = 3600.0  # of a turn
PARTS = ("rounds", "what-remains", "scaling")
RULES = {"fedavg": "FedAvg", "ist": f"IST, {GROUPS} subnets"}

Turn = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """Who takes turns.

    Args:
        name: in tables.
        module: that runs it, in `benchmarks/sim`.
        order: what it is told beside the rule and the number of clients.
        rules: what it can do.
        peer: whose environment it needs.
        slow: with many clients it takes every other turn only.
    """

    name: str
    module: str
    order: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ("fedavg", "ist")
    peer: str | None = None
    slow: bool = False


FLOWER, PFL, FEDLAB = "Flower simulation (Ray), two actors", "pfl-research", "FedLab"
AUTO, AUTO_2 = "ist_fed, auto", "ist_fed, auto, 2 threads"
ONE_BY_ONE, LIMIT, LIMIT_2 = "ist_fed, one by one", "loop, factored", "loop, factored, 2 threads"

PEERS = [
    Contestant(FLOWER, "flower_ray", {"rounds": 2}, ("fedavg",), slow=True),
    Contestant(PFL, "pfl", {}, ("fedavg",), "pfl", slow=True),
    Contestant(FEDLAB, "fedlab", {}, ("fedavg",), "fedlab", slow=True),
]
PRODUCT = [
    Contestant(ONE_BY_ONE, "product", {"only": "one by one", "check": True}, slow=True),
    Contestant("ist_fed, stacked", "product", {"only": "stacked", "check": True}, slow=True),
    Contestant("ist_fed, factored", "product", {"only": "factored", "check": True}),
    Contestant(AUTO, "product", {"check": True}),
]
LOOPS = [
    Contestant("loop, sequential", "loops", {"loop": "sequential"}),
    Contestant("loop, stacked", "loops", {"loop": "stacked"}),
    Contestant(LIMIT, "loops", {"loop": "factored"}),
]
TWO_THREADS = [
    Contestant(AUTO_2, "product", {"check": True, "threads": 2}),
    Contestant(LIMIT_2, "loops", {"loop": "factored", "threads": 2}),
]


# --- A turn -----------------------------------------------------------------------------------------------------------


def take_turn(module: str, order: Mapping[str, Any], peer: str | None = None, with_children: bool = False) -> Turn:
    """Run a process of `benchmarks/sim`, and return what it says it measured.

    Raises:
        RuntimeError: it failed; the message says how.
    """
    threads = str(order.get("threads", 1))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE)])),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [interpreter(peer), "-m", f"sim.{module}", json.dumps(order)]
    process = subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    memory = Memory(process.pid) if with_children else None
    try:
        said, complaints = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took more than {LONGEST_S:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        peak = memory.stop() if memory else None
    result = next((line for line in said.splitlines() if line.startswith("RESULT ")), None)
    if result is None:
        last = [line for line in complaints.splitlines() if line.strip()]
        raise RuntimeError(last[-1].strip() if last else f"it ended with {process.returncode} and said nothing")
    turn: Turn = json.loads(result.removeprefix("RESULT "))
    return turn | ({"peak": peak} if peak else {})


class Memory(threading.Thread):
    """Watches what a process and all below it take together; what they share counts once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._peak, self._over = pid, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(1.0):
            self._peak = max(self._peak, sum(map(proportional_mb, descendants({self._pid: ""}))))

    def stop(self) -> float:
        """The largest sum seen, in MB."""
        self._over.set()
        self.join()
        return self._peak


def proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Book:
    """The results file: turns by what was measured, in order of cycles."""

    def __init__(self, path: Path, fresh: bool, device: str) -> None:
        self._path, self.device = path, device
        self.images = plots.IMAGES if path.parent == RESULTS else path.parent  # a trial run leaves the docs alone
        kept = json.loads(path.read_text()) if path.exists() and not fresh else {}
        self.raw: dict[str, dict[str, Turn]] = {}
        for key, turns in kept.get("raw", {}).items():  # what failed is tried again
            self.raw[key] = {cycle: turn for cycle, turn in turns.items() if "failed" not in turn}

    def turn(self, key: str, cycle: int, module: str, order: Mapping[str, Any], **more: Any) -> None:
        """Take a turn, unless it has been taken, and save it; a failure is noted, and counts as taken."""
        turns = self.raw.setdefault(key, {})
        if str(cycle) in turns or any("failed" in turn for turn in turns.values()):
            return
        try:
            turns[str(cycle)] = take_turn(module, {**order, "device": self.device}, **more)
        except RuntimeError as error:
            turns[str(cycle)] = {"failed": str(error)}
        said = {name: value for name, value in turns[str(cycle)].items() if name != "said"}
        print(f"cycle {cycle}  {key:60} {said}", flush=True)
        self.write()

    def write(self) -> None:
        save(self._path, summary(self))

    def seconds(self, key: str) -> dict[str, float]:
        """Cycle → seconds of a round."""
        return {cycle: turn["seconds"] for cycle, turn in self.raw.get(key, {}).items() if "seconds" in turn}

    def median(self, key: str, what: str = "seconds") -> float | None:
        found = [turn[what] for turn in self.raw.get(key, {}).values() if turn.get(what) is not None]
        return statistics.median(found) if found else None

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times as fast one is as another: the median over the cycles in which both took their turns."""
        one, other = self.seconds(slower), self.seconds(faster)
        ratios = [one[cycle] / other[cycle] for cycle in one if cycle in other]
        return statistics.median(ratios) if ratios else None

    def reason(self, key: str) -> str | None:
        return next((turn["failed"] for turn in self.raw.get(key, {}).values() if "failed" in turn), None)


# --- Part: rounds -----------------------------------------------------------------------------------------------------


def contestants(device: str) -> list[Contestant]:
    return [*PEERS, *PRODUCT, *LOOPS, *TWO_THREADS] if device == "cpu" else [*PRODUCT, *LOOPS]


def key_of(name: str, rule: str, clients: int) -> str:
    return f"{name} / {rule} / {clients}"


def rounds(book: Book, cycles: int, sizes: Sequence[int]) -> None:
    for clients in sizes:
        if not start_file(clients).exists():
            take_turn("prepare", {"clients": clients})
    if book.device != "cpu":
        book.turn("card", 1, "card", {})
    for clients in sizes:
        for cycle in range(1, cycles + 1):
            for each in contestants(book.device):
                if each.slow and clients >= 1000 and cycle % 2 == 0:
                    continue
                for rule in each.rules:
                    order = {"rule": rule, "clients": clients, **each.order}
                    more = {"peer": each.peer, "with_children": each.name == FLOWER}
                    book.turn(key_of(each.name, rule, clients), cycle, each.module, order, **more)
    if book.device != "cpu":
        book.turn(key_of(AUTO, "ist", 100_000), 1, "product", {"rule": "ist", "clients": 100_000})


def flops(rule: str, clients: int) -> float:
    """Of the round's training as it is written: forward, and backward but for the gradient of the inputs."""
    width = HIDDEN if rule == "fedavg" else HIDDEN / GROUPS
    return clients * SAMPLES * (4 * INPUTS * width + 6 * width * width + 6 * width * OUTPUTS)


def measured(book: Book) -> list[tuple[str, int]]:
    """Rule and number of clients of every table there is."""
    found = {tuple(key.split(" / ")[1:]) for key in book.raw if key.count(" / ") == 2 and key.split(" / ")[1] in RULES}
    return sorted(((rule, int(clients)) for rule, clients in found), key=lambda pair: (pair[1], pair[0]))


def table_of_rounds(book: Book, rule: str, clients: int) -> dict[str, Any]:
    on_cpu = book.device == "cpu"
    base = key_of(FLOWER, "fedavg", clients) if on_cpu else key_of(ONE_BY_ONE, rule, clients)
    against = "Flower FedAvg / this" if on_cpu else "one by one / this"
    rows = []
    for each in contestants(book.device):
        key = key_of(each.name, rule, clients)
        seconds = book.median(key)
        if seconds is None:
            continue
        share = book.ratio(key_of(LIMIT_2 if "2 threads" in each.name else LIMIT, rule, clients), key)
        peak, off = book.median(key, "peak"), book.median(key, "difference")
        turns, speed = len(book.seconds(key)), flops(rule, clients) / seconds
        rows.append(
            [
                each.name,
                f"{seconds:.4g}",
                shown(book.ratio(base, key), "{:.1f}"),
                shown(share, "{:.0%}"),
                shown(peak, "{:.0f}"),
                f"{speed / 1e12:.2f} T" if speed > 1e12 else f"{speed / 1e9:.0f} G",
                shown(off, "{:.1e}"),
                turns,
            ]
        )
    columns = ["system", "s/round", against, "of the factored loop's speed", "peak MB", "FLOP/s", "off by", "turns"]
    return {"title": f"{RULES[rule]}, {clients} clients a round", "columns": columns, "rows": rows}


def shown(value: float | None, form: str) -> str:
    return "" if value is None or value != value else form.format(value)


def targets(book: Book) -> list[list[str]]:
    rows = []
    for rule, clients in measured(book):
        rows += targets_on_cpu(book, rule, clients) if book.device == "cpu" else targets_on_gpu(book, rule, clients)
    offs = [turn["difference"] for turns in book.raw.values() for turn in turns.values() if turn.get("difference")]
    offs = [off for off in offs if off == off]
    if offs:
        rows.append(verdict("first round, largest difference of any system's update", max(offs), "{:.1e}", most=0.01))
    return rows


LEAST_OVER_FLOWER = {("fedavg", 100): 12, ("fedavg", 1000): 25, ("ist", 100): 80, ("ist", 1000): 180}


def targets_on_cpu(book: Book, rule: str, clients: int) -> list[list[str]]:
    where = f"{RULES[rule]}, {clients} clients"
    flower, pfl = key_of(FLOWER, "fedavg", clients), key_of(PFL, "fedavg", clients)
    keys = {1: key_of(AUTO, rule, clients), 2: key_of(AUTO_2, rule, clients)}
    rows = []
    least = LEAST_OVER_FLOWER.get((rule, clients))
    for threads, aim in ((2, least), (1, None)):  # Flower has both cores, and so may we
        said = f"{where}: auto on {threads} thread{'s' * (threads > 1)} over Flower's FedAvg on two actors"
        rows.append(verdict(said, book.ratio(flower, keys[threads]), "{:.1f} ×", least=aim))
    limit = book.ratio(key_of(LIMIT, rule, clients), keys[1])
    rows.append(verdict(f"{where}: auto's speed of the hand-written factored loop's", limit, "{:.0%}", least=0.75))
    if rule == "fedavg":
        for threads in (1, 2):
            said = f"{where}: auto on {threads} thread{'s' * (threads > 1)} over pfl-research on one"
            rows.append(verdict(said, book.ratio(pfl, keys[threads]), "{:.1f} ×", least=4))
    ours = [peak for key in keys.values() if (peak := book.median(key, "peak"))]
    for peer in PEERS:
        theirs = book.median(key_of(peer.name, "fedavg", clients), "peak")
        if ours and theirs:
            rows.append(verdict(f"{where}: peak MB, below {peer.name}", max(ours), "{:.0f}", most=theirs))
    return [row for row in rows if row[1]]


def targets_on_gpu(book: Book, rule: str, clients: int) -> list[list[str]]:
    where, auto = f"{RULES[rule]}, {clients} clients", key_of(AUTO, rule, clients)
    faster = book.ratio(key_of(ONE_BY_ONE, rule, clients), auto)
    rows = [
        verdict(
            f"{where}: auto over one by one", faster, "{:.1f} ×", least=50 if (rule, clients) == ("ist", 1000) else None
        )
    ]
    seconds = book.median(auto)
    if seconds and (card := book.median("card", "tflops")):
        speed = flops(rule, clients) / seconds / 1e12
        rows.append([f"{where}: TFLOP/s of the card's in a large float32 product", f"{speed:.2f} of {card:.0f}", ""])
    if clients == 100_000:
        rows.append(
            [
                f"{where}: s/round",
                shown(seconds, "{:.2f}") or "failed",
                "completes: " + ("met" if seconds else "MISSED"),
            ]
        )
    return [row for row in rows if row[1]]


def verdict(
    what: str, value: float | None, form: str, least: float | None = None, most: float | None = None
) -> list[str]:
    if value is None or (least is None and most is None):
        return [what, shown(value, form), ""]
    if least is not None:
        return [what, shown(value, form), f"≥ {form.format(least)}: {'met' if value >= least else 'MISSED'}"]
    assert most is not None
    return [what, shown(value, form), f"≤ {form.format(most)}: {'met' if value <= most else 'MISSED'}"]


# --- Part: what remains -----------------------------------------------------------------------------------------------

PRACTICE = {"norm": "batch", "momentum": 0.9, "weight_decay": 1e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "the workload above": {},
    "BatchNorm, momentum, weight decay": PRACTICE,
    "the same, 20 steps of 32": PRACTICE | {"steps": 20, "batch": 32},
}
WAYS: dict[str, str | None] = {"one by one": "one by one", "stacked": "stacked", "factored": "factored", "auto": None}
WORK = ((1, 16), (4, 16), (8, 16), (8, 32), (20, 32), (20, 64))
"""Steps and batch."""
WIDTHS = (64, 128, 256, 512, 1024)
MAP_CLIENTS, MAP_CYCLES = 20, 2


def what_remains(book: Book, cycles: int, clients: int) -> None:
    for cycle in range(1, min(cycles, 3) + 1):
        for setting, more in SETTINGS.items():
            for rule in RULES:
                for way, only in WAYS.items():
                    order = {"rule": rule, "clients": clients, "only": only, "warm_up": 1, **more}
                    book.turn(f"remains / {setting} / {rule} / {way}", cycle, "product", order)
    for cycle in range(1, min(cycles, MAP_CYCLES) + 1):
        for width in WIDTHS:
            for steps, batch in WORK:
                for way in ("stacked", "factored", "auto"):
                    order = {"clients": MAP_CLIENTS, "hidden": width, "steps": steps, "batch": batch, "warm_up": 1}
                    key = f"map / {width} / {steps} / {batch} / {way}"
                    book.turn(key, cycle, "product", order | {"only": WAYS[way]})


def table_of_what_remains(book: Book) -> dict[str, Any]:
    rows = []
    for setting in SETTINGS:
        for rule, name in RULES.items():
            keys = {way: f"remains / {setting} / {rule} / {way}" for way in WAYS}
            if book.median(keys["one by one"]) is None:
                continue
            times = [shown(book.median(key), "{:.3g}") for key in keys.values()]
            gains = [
                shown(book.ratio(keys["one by one"], keys[way]), "{:.1f} ×") for way in WAYS if way != "one by one"
            ]
            said = {line.split("train ")[1].split(",")[0] for line in picked(book, keys["auto"])}
            rows.append([setting, name, *times, *gains, ", ".join(sorted(said))])
    columns = ["setting", "rule", *(f"{way}, s/round" for way in WAYS)]
    columns += [f"{way} is faster by" for way in WAYS if way != "one by one"] + ["auto takes"]
    return {"title": "What remains of the gain, 100 clients, one thread", "columns": columns, "rows": rows}


def picked(book: Book, key: str) -> list[str]:
    return [line for turn in book.raw.get(key, {}).values() for line in turn.get("said", []) if "train " in line]


def map_of_ways(book: Book) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Width, steps, batch → seconds of both ways, and whether auto took factors."""
    found = {}
    for width in WIDTHS:
        for steps, batch in WORK:
            keys = {way: f"map / {width} / {steps} / {batch} / {way}" for way in ("stacked", "factored", "auto")}
            gain = book.ratio(keys["stacked"], keys["factored"])
            if gain is not None:
                factors = any("train factored" in line for line in picked(book, keys["auto"]))
                best = min(filter(None, map(book.median, keys.values())))
                times = {way: book.median(key) for way, key in keys.items()}
                found[width, steps, batch] = {**times, "gain": gain, "factors": factors, "best": best}
    return found


# --- Part: scaling ----------------------------------------------------------------------------------------------------

SMALL = {"rule": "ist", "samples": 16, "inputs": 32, "hidden": 64, "groups": 8, "steps": 4, "batch": 8}
MANY = (100, 1000, 10_000, 100_000)


def scaling(book: Book, cycles: int, sizes: Sequence[int]) -> None:
    for cycle in range(1, cycles + 1):
        for clients in sizes:
            book.turn(f"scaling / {clients}", cycle, "product", {"clients": clients, **SMALL})
    book.turn("steady", 1, "steady", {})


def tables_of_scaling(book: Book) -> list[dict[str, Any]]:
    each = per_client(book)
    tables = []
    if each:
        cheapest = min(each.values())
        rows = [
            [f"{clients:,}".replace(",", " "), f"{seconds * clients:.4g}", f"{1e6 * seconds:.1f}",
             f"+{seconds / cheapest - 1:.0%}"]
            for clients, seconds in each.items()
        ]  # fmt: skip
        columns = ["clients a round", "s/round", "µs a client", "over the cheapest"]
        tables.append({"title": "Seconds a client, by the number of clients", "columns": columns, "rows": rows})
    marks = next((turn["resident"] for turn in book.raw.get("steady", {}).values() if "resident" in turn), {})
    if marks:
        rows = [[number, f"{mb:.1f}"] for number, mb in marks.items()]
        tables.append({"title": "Resident memory of a long run", "columns": ["round", "MB"], "rows": rows})
    return tables


def per_client(book: Book) -> dict[int, float]:
    keys = [key for key in book.raw if key.startswith("scaling / ")]
    found = {int(key.split(" / ")[1]): book.median(key) for key in keys}
    return {clients: seconds / clients for clients, seconds in sorted(found.items()) if seconds}


def targets_of_scaling(book: Book) -> list[list[str]]:
    each, rows = per_client(book), []
    if len(each) > 1:
        few, many = min(each), max(each)
        rows.append(
            verdict(
                f"seconds a client, {few} to {many} clients: the dearest over the cheapest",
                max(each.values()) / min(each.values()),
                "{:.2f}",
                most=1.2,
            )
        )
        rows.append(
            verdict(f"seconds a client at {many} clients over {few}", each[many] / each[few], "{:.2f}", most=1.2)
        )
    marks = next((turn["resident"] for turn in book.raw.get("steady", {}).values() if "resident" in turn), {})
    if len(marks) > 1:
        early, late = marks[min(marks, key=int)], marks[max(marks, key=int)]
        said = f"resident memory at round {max(marks, key=int)} over round {min(marks, key=int)}"
        rows.append(verdict(said, late / early, "{:.3f}", most=1.05))
    return rows


# --- All of it --------------------------------------------------------------------------------------------------------

NOTES = [
    f"Every client has {SAMPLES} samples of {INPUTS} floats and trains MLP {INPUTS}-{HIDDEN}-{HIDDEN}-{OUTPUTS} "
    f"without normalisation for one epoch of plain SGD at batch 16 (4 steps), learning rate 0.1; all clients train "
    f"every round, and weights are averaged uniformly. IST: {GROUPS} disjoint subnets of 51 or 52 units a layer. Peers "
    f"do FedAvg only, so IST, too, is compared with their FedAvg.",
    "*Loops* are hand-written for this one network; they get plans and orders of examples drawn beforehand. One thread "
    "each, unless a row says otherwise; Flower has two actors of one thread. Ratios are medians over the cycles in "
    "which both took their turns.",
    "*Off by*: how far the weights after the first round are from a float64 computation, in lengths of the update, "
    "which is some 0.002 of the weights' own length. float32 alone makes 10⁻⁵ to 10⁻³ of it, mostly by units that lie "
    "at the kink of ReLU; another order of the examples would make more than 10⁻¹. All systems see the examples in the "
    "same order in that round: peers take them unshuffled, laid out in the product's order.",
    "*Peak MB* is resident memory of the process, the examples included (Flower: of all its processes, what they share "
    "counted once; GPU: what torch had allocated there). *FLOP/s* count the arithmetic of training one by one, "
    "whatever was really done.",
]


def summary(book: Book) -> dict[str, Any]:
    """The results file, in the shape that `table.py` renders."""
    tables = [table_of_rounds(book, rule, clients) for rule, clients in measured(book)]
    tables += [table for table in (table_of_what_remains(book), *tables_of_scaling(book)) if table["rows"]]
    on_cpu = book.device == "cpu"
    reasons = [f"{key.split(' / ')[0]}: {reason}" for key in book.raw if (reason := book.reason(key))]
    pictures = [f"![{title}](images/{name})" for name, title in plots.KNOWN.items() if (book.images / name).exists()]
    return {
        "title": "Simulated rounds" if on_cpu else "Simulated rounds on a GPU",
        "machine": busy_machine() | ({} if on_cpu else {"gpu": gpu_name(book)}),
        "command": "make bench-sim" if on_cpu else "python benchmarks/bench_sim.py --device cuda",
        "columns": ["what", "measured", "target"],
        "rows": targets(book) + targets_of_scaling(book),
        "notes": NOTES + sorted(set(reasons)) + (pictures if on_cpu else []),
        "tables": tables,
        "raw": book.raw,
    }


def gpu_name(book: Book) -> str:
    return next((turn["name"] for turn in book.raw.get("card", {}).values() if "name" in turn), "unknown")


def draw(book: Book) -> None:
    if found := map_of_ways(book):
        plots.ways(found, MAP_CLIENTS, book.images / plots.WAYS)
    if len(each := per_client(book)) > 1:
        plots.scaling(each, book.images / plots.SCALING)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", help="of the round; by default 100 and 1000")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="file for the results")
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    options = parser.parse_args()
    end_on_sigterm()
    if options.fresh:
        for kept in CACHE.glob("*.pt"):  # plans and orders are drawn anew, too
            kept.unlink()
    path = options.results or RESULTS / ("sim.json" if options.device == "cpu" else "sim_cuda.json")
    book = Book(path, options.fresh, options.device)
    if options.part in ("rounds", "all"):
        rounds(book, options.cycles, options.clients or (100, 1000))
    if options.part in ("what-remains", "all"):
        what_remains(book, options.cycles, (options.clients or [100])[0])
    if options.part in ("scaling", "all"):
        scaling(book, options.cycles, options.clients or MANY)
    if options.device == "cpu":
        draw(book)
    book.write()
    show(summary(book))


def show(results: Mapping[str, Any]) -> None:
    for table in [{"title": "Targets", **results}, *results["tables"]]:
        print(f"\n{table.get('title')}")
        cells = [[str(cell) for cell in row] for row in (table["columns"], *table["rows"])]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
