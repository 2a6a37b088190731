"""Part *rounds*: a round of every contestant, and how fast that is beside the others."""

from collections.abc import Sequence
from typing import Any

from sim.book import Book
from sim.cells import shown
from sim.contestants import AUTO, FLOWER, LIMIT, LIMIT_2, ONE_BY_ONE, RULES, contestants, key_of
from sim.turn import take_turn
from sim.workload import GROUPS, HIDDEN, INPUTS, OUTPUTS, SAMPLES, start_file


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
