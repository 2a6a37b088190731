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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_core import RESULTS
from sim import plots
from sim.book import Book
from sim.remains import MAP_CLIENTS, map_of_ways, table_of_what_remains, what_remains
from sim.rounds import measured, rounds, table_of_rounds
from sim.scaling import MANY, NAMES, per_client, scaling, tables_of_scaling, targets_of_scaling
from sim.targets import targets
from sim.workload import CACHE, GROUPS, HIDDEN, INPUTS, OUTPUTS, SAMPLES
from stage import busy_machine, end_on_sigterm

PARTS = ("rounds", "what-remains", "scaling")

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
    if each := per_client(book):
        plots.scaling(each, NAMES, book.images / plots.SCALING)


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
    book = Book(path, options.fresh, options.device, summary)
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
