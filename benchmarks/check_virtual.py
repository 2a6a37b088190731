"""Does the virtual network predict what was measured? Round times of `bench_net.py`, against `ist_fed.network`.

    python benchmarks/check_virtual.py       # seconds; reads benchmarks/results/net.json

Predicted is one round (torch DDP: one step) of a server and 4 clients whose every link is limited both ways. *Links
alone*: nothing but the bytes of the closed formula over the links, the server's shared by its clients. *Calibrated*:
with what the method's rounds at the first rate took beyond that, clients' own clocks of training apart, as
`round_seconds`; so a rate is predicted that nothing was taken from. Training itself is taken as clients measured it.
"""

import json
import statistics
import sys
from itertools import pairwise
from typing import Any

from bench_core import RESULTS
from bench_digits import state_bytes
from bench_net import CLIENTS, DDP, FEDAVG, IST, RATES, Method
from stage import save

from ist_fed.network import Asked, Network, Virtual
from ist_fed.train import Training

BYTES = {IST.name: state_bytes(512, 512), FEDAVG.name: state_bytes(2048, 2048)}
PARAMETERS = 4 * (64 * 2048 + 2048 * 2048 + 10 * 2048 + 10 + 2 * (2048 + 2048))  # bytes that DDP sums up
WITHIN = 0.2


def measured(runs: dict[str, Any], method: Method, mbit: int) -> tuple[float, float]:
    """Seconds of the mean round, and of a client's training in it."""
    found = [run for key, run in runs.items() if key.startswith(f"{method.name} | {mbit} Mbit/s")]
    rounds = [later - sooner for run in found for sooner, later in pairwise([0.0, *(at for at, _ in run["marks"])])]
    if method is DDP:
        return statistics.mean(run["per_step"] for run in found), 0.0
    return statistics.mean(rounds), statistics.mean(run["train"] for run in found) / CLIENTS


def predicted(method: Method, mbit: int, train: float, round_seconds: float) -> float:
    """The same from the virtual network."""
    rate = 1e6 * mbit
    if method is DDP:  # a ring: every rank sends, and receives at the same time, 2 (n - 1) / n of what is summed up
        return round_seconds + 8 * 2 * (CLIENTS - 1) / CLIENTS * PARAMETERS / rate
    links = {"down": rate, "up": rate, "server_down": rate, "server_up": rate}
    network = Network(compute="measured", round_seconds=round_seconds, **links)
    virtual = Virtual(network, 0, CLIENTS, lambda sizes, training: 0.0)
    asked = (
        Asked(client=client, sizes={}, bytes=BYTES[method.name], steps=1, training=Training(), seconds=train)
        for client in range(CLIENTS)
    )
    return virtual.round_seconds(map(virtual.trip, asked))


def main() -> None:
    given = json.loads((RESULTS / "net.json").read_text(encoding="utf-8"))
    rows, missed = [], 0
    for method in (IST, FEDAVG, DDP):
        own = 0.0
        for mbit in RATES:
            seconds, train = measured(given["runs"], method, mbit)
            alone, calibrated = predicted(method, mbit, 0.0, 0.0), predicted(method, mbit, train, own)
            row = [f"{mbit}", method.name, f"{seconds:.2f}", f"{alone:.2f} ({off(alone, seconds)})"]
            if mbit == RATES[0]:
                own = max(0.0, seconds - calibrated)  # one client may train while another's subnet travels
                rows.append([*row, f"calibrated: {own:.2f} s a round", ""])
            else:
                near = abs(calibrated / seconds - 1) <= WITHIN
                missed += not near
                verdict = f"within {WITHIN:.0%}: {'met' if near else 'MISSED'}"
                rows.append([*row, f"{calibrated:.2f} ({off(calibrated, seconds)})", verdict])
    results = {
        "title": "The virtual network against real links",
        "machine": given["machine"],
        "command": "python benchmarks/check_virtual.py",
        "columns": ["Mbit/s", "method", "s a round, measured", "links alone", "calibrated", "target"],
        "rows": rows,
        "notes": [(__doc__ or "").split("\n\n", 2)[2].strip(), HONEST],
    }
    save(RESULTS / "virtual.json", results)
    for row in rows:
        print(" | ".join(row))
    sys.exit(bool(missed))


HONEST = (
    "What differs: the links alone account for most of a round only where much travels over a slow link. The rest is "
    "processes on two shared cores under load (gRPC, TLS, packing, merging, evaluating), seconds a round, which no "
    "description of links can know: on a cluster it must be measured once, and set as `round_seconds`. Where it is 0, "
    "rounds were as short as links alone allow, or a little shorter: one client's subnet comes while another's goes."
)


def off(value: float, truth: float) -> str:
    return f"{100 * (value / truth - 1):+.0f} %"


if __name__ == "__main__":
    main()
