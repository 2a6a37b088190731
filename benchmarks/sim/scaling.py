"""Part *scaling*: what a client costs when there are many, and what memory a long run takes."""

from collections.abc import Sequence
from typing import Any

from sim.book import Book
from sim.cells import verdict
from sim.workload import GROUPS

MANY = (100, 1000, 10_000, 100_000)
FEW_EXAMPLES = {"samples": 16, "warm_up": 1}
"""What 100 000 clients have room for; the first of their rounds, which takes minutes, is enough to warm up."""

KINDS: dict[str, dict[str, Any]] = {
    "small": {"rule": "ist", "samples": 16, "inputs": 32, "hidden": 64, "groups": 8, "steps": 4, "batch": 8},
    "IST": {"rule": "ist", **FEW_EXAMPLES},
    "FedAvg": {"rule": "fedavg", **FEW_EXAMPLES},
}
"""Small clients, of which a round's own cost is much, and those of the rounds above with a quarter of the examples."""

NAMES = {
    "small": "IST, MLP 32-64-64-10, 8 subnets, 4 steps of 8",
    "IST": f"IST, MLP 784-512-512-10, {GROUPS} subnets, 4 steps of 16",
    "FedAvg": "FedAvg, MLP 784-512-512-10, 4 steps of 16",
}


def scaling(book: Book, cycles: int, sizes: Sequence[int]) -> None:
    for cycle in range(1, cycles + 1):
        for kind, order in KINDS.items():
            for clients in sizes:
                book.turn(f"scaling / {kind} / {clients}", cycle, "product", {"clients": clients, **order})
    book.turn("steady", 1, "steady", {})


def tables_of_scaling(book: Book) -> list[dict[str, Any]]:
    tables = []
    for kind, each in per_client(book).items():
        cheapest = min(each.values())
        rows = [
            [f"{clients:,}".replace(",", " "), f"{seconds * clients:.4g}", f"{1e6 * seconds:.1f}",
             f"+{seconds / cheapest - 1:.0%}", len(book.seconds(f"scaling / {kind} / {clients}"))]
            for clients, seconds in each.items()
        ]  # fmt: skip
        columns = ["clients a round", "s/round", "µs a client", "over the cheapest", "turns"]
        tables.append({"title": f"Seconds a client, by their number: {NAMES[kind]}", "columns": columns, "rows": rows})
    marks = next((turn["resident"] for turn in book.raw.get("steady", {}).values() if "resident" in turn), {})
    if marks:
        rows = [[number, f"{mb:.1f}"] for number, mb in marks.items()]
        tables.append({"title": "Resident memory of a long run", "columns": ["round", "MB"], "rows": rows})
    return tables


def per_client(book: Book) -> dict[str, dict[int, float]]:
    """Kind of clients → number of clients in a round → seconds for each of them."""
    found: dict[str, dict[int, float]] = {}
    for kind in KINDS:
        numbers = sorted(int(key.split(" / ")[2]) for key in book.raw if key.startswith(f"scaling / {kind} / "))
        medians = {clients: book.median(f"scaling / {kind} / {clients}") for clients in numbers}
        if each := {clients: seconds / clients for clients, seconds in medians.items() if seconds}:
            found[kind] = each
    return found


def targets_of_scaling(book: Book) -> list[list[str]]:
    rows = []
    for kind, each in per_client(book).items():
        if len(each) > 1:
            said = f"seconds a client, {min(each)} to {max(each)} clients, the dearest over the cheapest: {NAMES[kind]}"
            rows.append(verdict(said, max(each.values()) / min(each.values()), "{:.2f}", most=1.2))
    marks = next((turn["resident"] for turn in book.raw.get("steady", {}).values() if "resident" in turn), {})
    if len(marks) > 1:
        early, late = marks[min(marks, key=int)], marks[max(marks, key=int)]
        said = f"resident memory at round {max(marks, key=int)} over round {min(marks, key=int)}"
        rows.append(verdict(said, late / early, "{:.3f}", most=1.05))
    return rows
