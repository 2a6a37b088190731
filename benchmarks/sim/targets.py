"""What the product's rounds are to reach, beside loops and peers, and whether they do."""

from sim.book import Book
from sim.cells import shown, verdict
from sim.contestants import AUTO, AUTO_2, FLOWER, LIMIT, ONE_BY_ONE, PEERS, PFL, RULES, key_of
from sim.rounds import flops, measured


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
