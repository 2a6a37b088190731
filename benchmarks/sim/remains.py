"""Part *what remains*: what the ways to train gain in settings of practice, and where factors stop paying."""

from typing import Any

from sim.book import Book
from sim.cells import shown
from sim.contestants import RULES

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
    """Width, steps, batch → seconds of each way, and how many times as fast as stacked factored is."""
    found = {}
    for width in WIDTHS:
        for steps, batch in WORK:
            keys = {way: f"map / {width} / {steps} / {batch} / {way}" for way in ("stacked", "factored", "auto")}
            gain = book.ratio(keys["stacked"], keys["factored"])
            if gain is not None:
                found[width, steps, batch] = {**{way: book.median(key) for way, key in keys.items()}, "gain": gain}
    return found
