"""Secure rounds: seconds of a processor and bytes, for a cohort of 20 with a million numbers and three drop-outs.

Beside it Flower's own SecAgg+ on the same sizes, called without any network: the functions of its mod and its workflow.
Writes benchmarks/results/secure.json.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import numpy as np
from bench_core import RESULTS, machine
from secagg import flower_secagg

from ist_fed.pki.signing import signers_of_one_run
from ist_fed.privacy.secure import Aggregator, Grid, Member, fit_grid
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.limits import threshold_of
from ist_fed.privacy.secure.skellam import draw

MEMBERS, LENGTH, LOST, REPEATS = 20, 1_000_000, 3, 5
CLIENT_S, SERVER_S, BYTES = 0.5, 1.0, 1.02
Result = TypeVar("Result")


class Clock:
    """Processor seconds, added up by who spends them."""

    def __init__(self) -> None:
        self.seconds: dict[object, float] = {}

    def __call__(self, who: object, work: Callable[[], Result]) -> Result:
        began = time.process_time()
        result = work()
        self.seconds[who] = self.seconds.get(who, 0.0) + time.process_time() - began
        return result


def terms_of(grid: Grid) -> say.Terms:
    return say.Terms(
        run=bytes(16),
        round=1,
        cohort=0,
        members=MEMBERS,
        threshold=threshold_of(MEMBERS),
        length=LENGTH,
        bound=grid.bound,
        grid=grid.step,
        clip=grid.clip,
        variance=grid.variance,
        model=bytes(32),
        units=bytes(32),
        order=bytes(32),
    )


def one_round(noise: float) -> dict[str, float]:
    """A round from messages to messages; what each side does, encoding included."""
    signer = signers_of_one_run()
    members = [Member(signer(f"client{number}")) for number in range(MEMBERS)]
    grid = fit_grid(clip=1.0, noise=noise, length=LENGTH, members=MEMBERS)
    rng = np.random.default_rng(1)
    updates = [rng.standard_normal(LENGTH).astype(np.float32) * 5e-4 for _ in members]
    aggregator, clock, up = Aggregator[int](terms_of(grid), 5), Clock(), dict.fromkeys(range(MEMBERS), 0)

    def exchange(
        asked: dict[int, bytes], answer: Callable[[int, bytes], bytes], taken: Callable[[int, bytes], None]
    ) -> None:
        for at, data in asked.items():
            body = clock(at, lambda at=at, data=data: answer(at, data))
            up[at] += len(body)
            clock("server", lambda at=at, body=body: taken(at, body))

    def masked(at: int, data: bytes) -> bytes:
        members[at].receive(say.Boxes.unpack(data), model=bytes(32), order=bytes(32))
        values = grid.quantise(updates[at])
        if noise:
            values += draw(grid.variance, LENGTH)
        return members[at].mask(values).pack()

    everyone = list(range(MEMBERS))
    call = clock("server", lambda: aggregator.call().pack())
    exchange(
        dict.fromkeys(everyone, call),
        lambda at, data: members[at].advertise(say.Call.unpack(data)).pack(),
        lambda at, body: aggregator.advertised(at, say.Advert.unpack(body)),
    )
    roster = clock("server", lambda: aggregator.roster().pack())
    exchange(
        dict.fromkeys(everyone, roster),
        lambda at, data: members[at].share(say.Roster.unpack(data)).pack(),
        lambda at, body: aggregator.shared(at, say.Shares.unpack(body)),
    )
    boxes = clock("server", lambda: {at: each.pack() for at, each in aggregator.boxes().items()})
    stay = everyone[LOST:]
    exchange({at: boxes[at] for at in stay}, masked, lambda at, body: aggregator.masked(at, say.Masked.unpack(body)))
    survivors = clock("server", lambda: aggregator.survivors().pack())
    exchange(
        dict.fromkeys(stay, survivors),
        lambda at, data: members[at].agree(say.Survivors.unpack(data)).pack(),
        lambda at, body: aggregator.voted(at, say.Vote.unpack(body)),
    )
    votes = clock("server", lambda: aggregator.votes().pack())
    exchange(
        dict.fromkeys(stay, votes),
        lambda at, data: members[at].unmask(say.Votes.unpack(data)).pack(),
        lambda at, body: aggregator.opened(at, say.Opened.unpack(body)),
    )
    total, count = clock("server", lambda: aggregator.total())
    if not noise:
        assert np.array_equal(total, sum(grid.quantise(updates[at]) for at in stay))
    assert count == MEMBERS - LOST
    clients = [clock.seconds[at] for at in stay]
    return {
        "client_seconds": max(clients),
        "server_seconds": clock.seconds["server"],
        "bytes_up": max(up.values()),
        "bytes_up_of_4L": max(up.values()) / (4 * LENGTH),
    }


def measured(round_: Callable[[], dict[str, float]], repeats: int = REPEATS) -> dict[str, float]:
    """Medians of several rounds, after one that counts for nothing."""
    round_()
    rounds = [round_() for _ in range(repeats)]
    return {key: median(each[key] for each in rounds) for key in rounds[0]}


def main() -> None:
    threshold = threshold_of(MEMBERS)
    rounds = {
        "ours": measured(lambda: one_round(0.0)),
        "ours, with Skellam noise": measured(lambda: one_round(1.0)),
        "Flower's SecAgg+": measured(lambda: flower_secagg(MEMBERS, LENGTH, LOST, threshold), 1),
    }
    columns = ["", "client, s", "server, s", "bytes up, of 4L"]
    targets = ["target", f"≤ {CLIENT_S}", f"≤ {SERVER_S}", f"≤ {BYTES}"]
    rows = [
        [who, f"{found['client_seconds']:.2f}", f"{found['server_seconds']:.2f}", f"{found['bytes_up_of_4L']:.4f}"]
        for who, found in rounds.items()
    ]
    results = {
        "title": "Secure rounds",
        "machine": machine(),
        "command": "make bench-secure",
        "columns": columns,
        "rows": [targets, *rows],
        "notes": [
            f"One round of a cohort of {MEMBERS} with L = {LENGTH:,} numbers and a threshold of {threshold}; {LOST} "
            "members share their secrets and are lost before they send an update. Seconds are a processor's, messages "
            "packed and read included, training and network left out: the slowest client's, and all of the server's. "
            f"Medians of {REPEATS} rounds after a first; of Flower's, one.",
            "SecAgg+ is called as Flower's own workflow and mod call each other, everyone a neighbour of everyone, in "
            "its default ring of 2³²; it sends numbers of eight bytes. It has no signatures and no vote on survivors, "
            "which ours pays for.",
        ],
        "rounds": rounds,
    }
    (RESULTS / "secure.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
