"""What `bench_paper.py` trains: methods, networks, and runs that are kept as they are finished."""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paper_clock import Work, by_ring, by_server, ring_bytes
from stage import Kept

from ist_fed.engines.local import simulate
from ist_fed.errors import RoundError
from ist_fed.run import Run
from ist_fed.scenario import Scenario, parse_scenario

SCENARIOS = Path(__file__).parents[1] / "scenarios"
PLAIN = ('training.schedule="constant"', "record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu")


class There(Exception):
    """The target was reached."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Args:
        name: in the tables and in the results file.
        settings: of the scenario, at so many workers.
        groups: how many subnets, at so many workers.
        all_reduce: one step a round.
        ring: timed as a ring, not through a server.
        same: the name of the method whose runs these are, if only the clock differs.
    """

    name: str
    settings: Callable[["Setup", int], list[str]]
    groups: Callable[[int], int] = lambda n: 1
    all_reduce: bool = False
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


def _ist(keep: int) -> Callable[["Setup", int], list[str]]:
    return lambda setup, n: [f'rule={{name="disjoint",groups={n},min_units=1,keep={keep or n}}}', f"clients={n}"]


def _full(setup: "Setup", n: int) -> list[str]:
    return ['rule={name="full"}', f"clients={n}"]


def _pooled(setup: "Setup", n: int) -> list[str]:
    alone = ['rule={name="full"}', "clients=1", 'training.state="travels"', f"training.batch_size={setup.batch * n}"]
    return [*alone, f"record.evaluate_every={setup.every}", *setup.pooled(n)]


KEPT = Method(name="IST, kept", settings=_ist(0), groups=lambda n: n)
ANEW = Method(name="IST, anew", settings=_ist(1), groups=lambda n: n)
LOCAL = Method(name="local SGD", settings=_full)
RING = Method(name="local SGD, ring", settings=_full, ring=True, same=LOCAL.name)
ALL = Method(name="all-reduce", settings=_pooled, all_reduce=True, ring=True)
METHODS = (KEPT, ANEW, LOCAL, RING, ALL)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is learnt.

    Args:
        name: in the tables.
        scenario: the file it is taken from.
        settings: changes of it.
        metric: `accuracy`, or `loss`.
        target: of the metric.
        workers: how many there may be.
        seeds: that are reported.
        tuning_seeds: by which learning rates and local steps are chosen.
        local_steps: a round, that are tried.
        steps: local steps of a run.
        every: steps of all-reduce between two evaluations.
        batch: examples of a worker in a step.
        pooled: what else changes where one worker has the examples of so many.
        ladder: learning rates.
        start: those tried first.
    """

    name: str
    scenario: str
    settings: tuple[str, ...]
    metric: Literal["accuracy", "loss"] = "accuracy"
    target: float
    workers: tuple[int, ...] = (2, 4, 8)
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seeds: tuple[int, ...] = (101, 102, 103)
    local_steps: tuple[int, ...] = (10, 40)
    steps: int = 200
    every: int = 1
    batch: int = 32
    pooled: Callable[[int], list[str]] = lambda n: []
    ladder: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    start: tuple[float, ...] = (0.03, 0.1)

    def make(self, *more: str) -> Scenario:
        return parse_scenario((SCENARIOS / self.scenario).read_text(encoding="utf-8"), [*self.settings, *PLAIN, *more])

    def there(self, value: float) -> bool:
        """Whether that is good enough."""
        return value >= self.target if self.metric == "accuracy" else value <= self.target

    @property
    def worst(self) -> float:
        """Of a run that came to nothing."""
        return 0.0 if self.metric == "accuracy" else 99.0


MLP3 = Setup(name="MLP, 3 layers", scenario="digits.toml", settings=("sizes={hidden1=1024,hidden2=1024}",), target=0.97)
MLP2 = Setup(
    name="MLP, 2 layers",
    scenario="digits.toml",
    settings=("sizes={hidden1=4096}",),
    target=0.97,
    tuning_seeds=(101,),
)
TEXT = Setup(
    name="Text, a transformer",
    scenario="text.toml",
    settings=(
        "sizes={heads0=8,ffn0=256,heads1=8,ffn1=256}",
        "options={test_characters=10000,head=8}",
        "training.batch_size=8",
        "record.evaluate_every=1",
    ),
    metric="loss",
    target=2.6,
    seeds=(1, 2),
    tuning_seeds=(101,),
    local_steps=(20,),
    every=5,
    batch=8,
    pooled=lambda n: [f"options.characters={200_000 * n}"],
    ladder=(0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04),
    start=(0.005, 0.01),
)
SETUPS = (MLP3, MLP2, TEXT)


# --- Runs, kept -------------------------------------------------------------------------------------------------------


class Bench(Kept):
    """Runs that are not in the results file yet, written after each."""

    def found(self, setup: Setup, method: Method, n: int, choice: tuple[float, int], seed: int) -> list[float]:
        """Accuracy or loss of the whole network after every round; a tuning run ends when it is there."""
        lr, steps = choice
        key = f"{setup.name} | {method.same or method.name} | n {n} | {steps} steps | lr {lr:g} | seed {seed}"
        if key not in self.results["runs"]:
            more = [f"local_steps={steps}", f"rounds={setup.steps // steps}", f"training.lr={lr}", f"seed={seed}"]
            began = time.perf_counter()
            found = train(setup.make(*method.settings(setup, n), *more), setup, whole=seed in setup.seeds)
            self.results["runs"][key] = [round(value, 4) for value in found]
            print(f"{key:80} {len(found):4} rounds {found[-1]:.4f} {time.perf_counter() - began:5.1f} s", flush=True)
            self.save()
        known: list[float] = self.results["runs"][key]
        return known

    def time(self, setup: Setup, method: Method, n: int, rate: float, choice: tuple[float, int], seed: int) -> float:
        """Virtual seconds to the target; infinite if it is never reached."""
        found = self.found(setup, method, n, choice, seed)
        rounds = next((at for at, value in enumerate(found, 1) if setup.there(value)), math.inf)
        return rounds * method.seconds(method.work(setup.make(), n, choice[1]), n, rate)

    def tuned(self, setup: Setup, method: Method, n: int, rate: float) -> tuple[float, int]:
        """The learning rate and local steps that are soonest there."""
        tried = {(lr, steps) for lr in setup.start for steps in ((1,) if method.all_reduce else setup.local_steps)}
        while True:
            best = min(sorted(tried), key=lambda choice: self._mean(setup, method, n, rate, choice))
            at = setup.ladder.index(best[0])
            more = {(lr, best[1]) for lr in setup.ladder[max(0, at - 1) : at + 2]} - tried
            if not more:
                return best
            tried |= more

    def _mean(self, setup: Setup, method: Method, n: int, rate: float, choice: tuple[float, int]) -> float:
        total = 0.0
        for seed in setup.tuning_seeds:
            total += self.time(setup, method, n, rate, choice, seed)
            if total == math.inf:
                break  # whatever the others take
        return total

    def median(self, setup: Setup, method: Method, n: int, rate: float) -> float:
        """Seconds to the target, over the reported seeds."""
        choice = self.tuned(setup, method, n, rate)
        return statistics.median(self.time(setup, method, n, rate, choice, seed) for seed in setup.seeds)


def train(scenario: Scenario, setup: Setup, *, whole: bool) -> list[float]:
    """The metric after every round, as it was last evaluated; up to the first that is there, or of the whole run."""
    found = list[float]()

    def note(line: dict[str, Any]) -> None:
        before = found[-1] if found else setup.worst
        found.append(line.get(setup.metric, before))
        if not whole and setup.there(found[-1]):
            raise There

    # RoundError: no client's weights were finite any more
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(There, RoundError):
        simulate(Run.create(Path(folder, "run"), scenario), on_line=note)
    return [value if math.isfinite(value) else setup.worst for value in found] or [setup.worst]
