"""What `bench_paper.py` trains: methods, networks, and runs that are kept as they are finished."""

import contextlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_clock import Work, by_ring, by_server, ring_bytes
from stage import save

from ist_fed.engines.local import simulate
from ist_fed.errors import RoundError
from ist_fed.run import Run
from ist_fed.scenario import Scenario, parse_scenario

SCENARIOS = Path(__file__).parents[1] / "scenarios"
PLAIN = ('training.schedule="constant"', "record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu")
WORKERS, SEEDS, TUNING_SEEDS = (2, 4, 8), (1, 2, 3), (101, 102, 103)


class There(Exception):
    """The target was reached."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Args:
        name: in the tables and in the results file.
        settings: of the scenario, at so many workers.
        groups: how many subnets, at so many workers.
        steps: local steps a round that are tried; 1 is all-reduce.
        ring: timed as a ring, not through a server.
        same: the name of the method whose runs these are, if only the clock differs.
    """

    name: str
    settings: Callable[[int], list[str]]
    groups: Callable[[int], int] = lambda n: 1
    steps: tuple[int, ...] = (10, 40)
    ring: bool = False
    same: str = ""

    def work(self, scenario: Scenario, workers: int, steps: int) -> Work:
        """What a worker does in a round."""
        sizes = tuple((axis, units // self.groups(workers)) for axis, units in scenario.sizes.items())
        return Work(scenario.task, tuple(scenario.options.items()), sizes, scenario.training, steps)

    def seconds(self, work: Work, workers: int, rate: float) -> float:
        """Of a round."""
        return (by_ring if self.ring else by_server)(work, workers, rate)

    def bytes(self, work: Work, workers: int) -> float:
        """That a worker sends and receives in a round."""
        return 2 * (ring_bytes(work, workers) if self.ring else work.cost.bytes)


def _ist(keep: int) -> Callable[[int], list[str]]:
    return lambda n: [f'rule={{name="disjoint",groups={n},keep={keep or n}}}', f"clients={n}"]


def _full(n: int) -> list[str]:
    return ['rule={name="full"}', f"clients={n}"]


def _pooled(n: int) -> list[str]:
    return ['rule={name="full"}', "clients=1", f"training.batch_size={32 * n}", 'training.state="travels"']


KEPT = Method(name="IST, kept", settings=_ist(0), groups=lambda n: n)
ANEW = Method(name="IST, anew", settings=_ist(1), groups=lambda n: n)
LOCAL = Method(name="local SGD", settings=_full)
RING = Method(name="local SGD, ring", settings=_full, ring=True, same=LOCAL.name)
ALL = Method(name="all-reduce", settings=_pooled, steps=(1,), ring=True)
METHODS = (KEPT, ANEW, LOCAL, RING, ALL)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is learnt.

    Args:
        name: in the tables.
        scenario: the file it is taken from.
        settings: changes of it.
        target: accuracy.
        steps: local steps of a run.
        ladder: learning rates.
        start: those tried first.
    """

    name: str
    scenario: str
    settings: tuple[str, ...]
    target: float
    steps: int = 200
    ladder: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    start: tuple[float, ...] = (0.03, 0.1)

    def make(self, *more: str) -> Scenario:
        return parse_scenario((SCENARIOS / self.scenario).read_text(encoding="utf-8"), [*self.settings, *PLAIN, *more])


MLP3 = Setup(name="MLP, 3 layers", scenario="digits.toml", settings=("sizes={hidden1=1024,hidden2=1024}",), target=0.97)
SETUPS = (MLP3,)


# --- Runs, kept -------------------------------------------------------------------------------------------------------


class Bench:
    """Runs that are not in the results file yet, written after each."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self.results: dict[str, Any] = {"runs": {}}
        if path.exists() and not fresh:
            self.results = json.loads(path.read_text(encoding="utf-8"))

    def accuracy(self, setup: Setup, method: Method, n: int, choice: tuple[float, int], seed: int) -> list[float]:
        """Of the whole network after every round; a tuning run ends when it is there."""
        lr, steps = choice
        key = f"{setup.name} | {method.same or method.name} | n {n} | {steps} steps | lr {lr:g} | seed {seed}"
        if key not in self.results["runs"]:
            more = [f"local_steps={steps}", f"rounds={setup.steps // steps}", f"training.lr={lr}", f"seed={seed}"]
            began = time.perf_counter()
            found = train(setup.make(*method.settings(n), *more), setup.target if seed in TUNING_SEEDS else math.inf)
            self.results["runs"][key] = [round(value, 4) for value in found]
            print(f"{key:80} {len(found):4} rounds {found[-1]:.4f} {time.perf_counter() - began:5.1f} s", flush=True)
            self.save()
        known: list[float] = self.results["runs"][key]
        return known

    def time(self, setup: Setup, method: Method, n: int, rate: float, choice: tuple[float, int], seed: int) -> float:
        """Virtual seconds to the target; infinite if it is never reached."""
        found = self.accuracy(setup, method, n, choice, seed)
        rounds = next((at for at, value in enumerate(found, 1) if value >= setup.target), math.inf)
        return rounds * method.seconds(method.work(setup.make(), n, choice[1]), n, rate)

    def tuned(self, setup: Setup, method: Method, n: int, rate: float) -> tuple[float, int]:
        """The learning rate and local steps that are soonest there."""
        tried = {(lr, steps) for lr in setup.start for steps in method.steps}
        while True:
            best = min(sorted(tried), key=lambda choice: self._mean(setup, method, n, rate, choice))
            at = setup.ladder.index(best[0])
            more = {(lr, best[1]) for lr in setup.ladder[max(0, at - 1) : at + 2]} - tried
            if not more:
                return best
            tried |= more

    def _mean(self, setup: Setup, method: Method, n: int, rate: float, choice: tuple[float, int]) -> float:
        total = 0.0
        for seed in TUNING_SEEDS:
            total += self.time(setup, method, n, rate, choice, seed)
            if total == math.inf:
                break  # whatever the others take
        return total

    def median(self, setup: Setup, method: Method, n: int, rate: float) -> float:
        """Seconds to the target, over the reported seeds."""
        choice = self.tuned(setup, method, n, rate)
        return statistics.median(self.time(setup, method, n, rate, choice, seed) for seed in SEEDS)

    def save(self) -> None:
        save(self._path, self.results)


def train(scenario: Scenario, until: float) -> list[float]:
    """Accuracy after every round, up to the first that reaches `until`."""
    found = list[float]()

    def note(line: dict[str, Any]) -> None:
        found.append(line["accuracy"])
        if found[-1] >= until:
            raise There

    # RoundError: no client's weights were finite any more
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(There, RoundError):
        simulate(Run.create(Path(folder, "run"), scenario), on_line=note)
    return found or [0.0]
