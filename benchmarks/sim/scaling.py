"""Part *scaling*: what a client costs when there are many, and what memory a long run takes."""

from collections.abc import Sequence
from typing import Any

from sim.book import Book
from sim.cells import verdict

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
