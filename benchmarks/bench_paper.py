"""The IST paper's comparison at our scale: real training, timed on its clusters in virtual time.

    python benchmarks/bench_paper.py            # about an hour and a half on one core; goes on where it was stopped
    python benchmarks/bench_paper.py --fresh    # forget finished runs

The product itself trains in process; the clock changes nothing in that, so a run is timed on every network afterwards.
IST deals n disjoint subnets to n workers, keeping a draw for n rounds while the workers move on (IST, kept) or dealing
anew every round as the paper does (IST, anew); local SGD is rule `full`. These go through a server whose own link is no
bottleneck; local SGD is also timed as a ring all-reduce a round. All-reduce is data parallel training, a ring in every
step, and as favourable to it as can be: momentum is kept, the backward pass hides what it can. It is trained as what it
equals, one worker that has all examples and n times the batch (its BatchNorm sees the whole batch).

A worker is like an m5.2xlarge: 100 GFLOP/s, 1 ms a step besides, latency 0.1 ms. Learning rate and local steps (10 or
40 a round; on text 20) are chosen for each method, number of workers and bandwidth, by the mean time to the target on
seeds that are not reported (three with 3 layers, else one); a rate at the edge of those tried brings in the next one of
the ladder. The rate is constant; SGD with momentum 0.9, on text AdamW.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_core import RESULTS, machine
from paper_clock import by_server
from paper_runs import ALL, KEPT, LOCAL, METHODS, MLP3, RING, SETUPS, Bench, Method, Setup

RATES = {"10 Gbit/s": 1e10, "1 Gbit/s": 1e9, "100 Mbit/s": 1e8}
SLOW = RATES["100 Mbit/s"]
SWEEP = [10 ** (7 + at / 4) for at in range(17)]
PROMISED = {LOCAL: 4.0, RING: 4.0, ALL: 10.0}
IMAGE = "paper.png"
STYLES = {2: ":", 4: "--", 8: "-"}
"""Number of workers → line."""


def rows(bench: Bench, setup: Setup) -> list[list[str]]:
    return [row(bench, setup, method, n) for n in setup.workers for method in METHODS]


def columns(setup: Setup) -> list[str]:
    metric = "accuracy, %" if setup.metric == "accuracy" else "loss"
    times = [f"s at {name}" for name in RATES]
    return ["workers", "method", *times, "IST is sooner by", "lr, steps", metric, "MB until there", "memory, MB"]


def row(bench: Bench, setup: Setup, method: Method, n: int) -> list[str]:
    """Times at each bandwidth, and at 100 Mbit/s all else."""
    (lr, steps), work = bench.tuned(setup, method, n, SLOW), method.work(setup.make(), n, 1)
    found = [bench.found(setup, method, n, (lr, steps), seed) for seed in setup.seeds]
    rounds = statistics.median(bench.time(setup, method, n, SLOW, (lr, steps), seed) for seed in setup.seeds)
    rounds /= method.seconds(method.work(setup.make(), n, steps), n, SLOW)
    final = statistics.median(statistics.mean(each[-max(1, len(each) // 4) :]) for each in found)
    return [
        f"{n}",
        method.name,
        *(seconds(bench.median(setup, method, n, rate)) for rate in RATES.values()),
        "" if method is KEPT else f"{ratio(bench, setup, method, n, SLOW):.1f} ×",
        f"{lr:g}, {steps}",
        f"{100 * final:.2f}" if setup.metric == "accuracy" else f"{final:.3f}",
        "never" if math.isinf(rounds) else f"{rounds * method.bytes(work, n) / 1e6:.2f}",
        f"{work.cost.memory / 1e6:.1f}",
    ]


def ratio(bench: Bench, setup: Setup, method: Method, n: int, rate: float) -> float:
    """How many times sooner IST is there."""
    return bench.median(setup, method, n, rate) / bench.median(setup, KEPT, n, rate)


def seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}"


# --- Saying what came out ---------------------------------------------------------------------------------------------


def verdicts(bench: Bench) -> str:
    said = []
    for method, least in PROMISED.items():
        found = ratio(bench, MLP3, method, 8, SLOW)
        said.append(f"{method.name}: {found:.1f} ×, at least {least:g} ×: {'met' if found >= least else 'MISSED'}")
    return f"At 100 Mbit/s and 8 workers, {MLP3.name}, IST is sooner than {'; '.join(said)}."


def one_link(bench: Bench) -> str:
    """With a server that has a link like its workers, which only IST and local SGD mind."""
    found = {}
    for method in (KEPT, LOCAL):
        choice = bench.tuned(MLP3, method, 8, SLOW)
        work = method.work(MLP3.make(), 8, choice[1])
        rounds = bench.median(MLP3, method, 8, SLOW) / by_server(work, 8, SLOW)
        found[method] = rounds * by_server(work, 8, SLOW, server=SLOW)
    ring = bench.median(MLP3, ALL, 8, SLOW) / found[KEPT]
    return (
        f"If the server's own link is 100 Mbit/s as well, and 8 workers share it: IST {seconds(found[KEPT])} s, local "
        f"SGD {seconds(found[LOCAL])} s, {found[LOCAL] / found[KEPT]:.1f} × (all-reduce has no server: {ring:.1f} ×)."
    )


def crossings(bench: Bench, setup: Setup) -> str:
    """The bandwidth from which on IST is no longer sooner than a method, if there is one."""
    said = []
    for method in (LOCAL, RING, ALL):
        ahead = {n: [ratio(bench, setup, method, n, rate) >= 1 for rate in SWEEP] for n in setup.workers}
        each = [f"at {bits(SWEEP[found.index(False)])} (n = {n})" for n, found in ahead.items() if not all(found)]
        always = [f"{n}" for n, found in ahead.items() if all(found)]
        nowhere = [f"nowhere up to {bits(SWEEP[-1])} (n = {', '.join(always)})"] if always else []
        said.append(f"than {method.name} {' and '.join([*each, *nowhere])}")
    return f"{setup.name}: IST stops being sooner {'; '.join(said)}."


def bits(rate: float) -> str:
    return f"{rate / 1e9:.3g} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:.3g} Mbit/s"


NOTE = (
    "Virtual seconds to 97 % of the test images, medians over three seeds. The columns after them are at 100 Mbit/s: "
    "how much sooner IST (kept) is there, what was chosen, mean accuracy over the last quarter of 200 local steps, "
    "what a worker has sent and received until then, and what training takes of its memory."
)
SMALLER = (
    "The 2 layers are 64-4096-10, one hidden layer. Text is next characters of Python's sources, two blocks of 8 heads "
    "and 256 units, batch 8, to a loss of 2.6 nats on files that nobody trains on, which everyone can reach early: far "
    "from converged. It has two seeds and one number of local steps, and all-reduce is evaluated at every fifth "
    "step only, so its times there may be up to 4 steps too long. One worker in place of all has as many characters as "
    "they, but not the same ones."
)
COARSE = (
    "Digits are easy: a method may need one or two rounds, or a dozen steps of all-reduce, so times move by whole "
    "rounds from seed to seed, and the curves have kinks where another rate or number of steps is chosen. Times mean "
    "something relative to each other only. Of a step, arithmetic is 2.1 ms for the whole network and 0.04 ms for an "
    "eighth of it: that is why IST can stay ahead where bytes cost nothing."
)


def plot(bench: Bench, setups: Sequence[Setup]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(setups), figsize=(5.5 * len(setups), 4), sharey=True, squeeze=False)
    for panel, setup in zip(panels[0], setups, strict=True):
        for method, colour in ((LOCAL, "tab:orange"), (ALL, "tab:green")):
            for n, style in ((n, STYLES[n]) for n in setup.workers):
                ratios = [ratio(bench, setup, method, n, rate) for rate in SWEEP]
                panel.plot(SWEEP, ratios, style, color=colour, label=f"{method.name}, n = {n}")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=setup.name, xlabel="bits a second of each link", xscale="log", yscale="log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.legend(fontsize=8)
    panels[0][0].set_ylabel("IST is sooner by")
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "images" / IMAGE, dpi=110)


def fill(bench: Bench, setups: Sequence[Setup]) -> None:
    """Write what is to be said of these networks, the first of which is promised something."""
    first, *others = setups
    bench.results |= {
        "title": "The paper's clusters, in virtual time",
        "machine": machine(),
        "command": "make bench-paper",
        "columns": columns(first),
        "rows": rows(bench, first),
        "notes": [
            (__doc__ or "").split("\n\n", 2)[2].strip(),
            NOTE,
            SMALLER,
            COARSE,
            verdicts(bench),
            one_link(bench),
            *(crossings(bench, setup) for setup in setups),
            f"![how much sooner IST is there, over bandwidth](images/{IMAGE})",
        ],
        "tables": [{"title": setup.name, "columns": columns(setup), "rows": rows(bench, setup)} for setup in others],
    }
    bench.save()
    plot(bench, setups)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    torch.set_num_threads(1)
    bench = Bench(RESULTS / "paper.json", fresh=arguments.parse_args().fresh)
    for count in range(1, len(SETUPS) + 1):  # after each network, so that what is finished can be read
        fill(bench, SETUPS[:count])


if __name__ == "__main__":
    main()
