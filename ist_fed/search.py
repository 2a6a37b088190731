"""A small honest search: which learning rate, local steps or number of groups suit a scenario.

Honest, because every trial takes as many local steps in all, trials are chosen on examples that no test sees and on
seeds that the final run does not use, and what is reported of the best is a run of its own on the test examples.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ist_fed.device import pick_device
from ist_fed.errors import PrivacyError, RoundError, RuleError, ScenarioError, TaskError, TrainingError, asking, nearest
from ist_fed.evaluate import evaluate, network
from ist_fed.run import Run
from ist_fed.scenario import Scenario, every_key, parse_scenario
from ist_fed.seeds import generator
from ist_fed.tables import value_of
from ist_fed.tasks import load_task

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

Number = int | float
BAD_PLACES = (PrivacyError, RoundError, RuleError, ScenarioError, TrainingError)
"""Errors that lie in the values tried: a network that diverges, groups too narrow. Others say nothing about them."""

_TOLD_APART = 8  # a range whose ends differ by this factor is searched on a logarithmic scale


@dataclass(frozen=True)
class Vary:
    """One key of a scenario and the values it may take.

    Args:
        key: such as `training.lr`.
        values: to choose from; empty if there is a range.
        low: of a range, both ends of which belong to it.
        high: of a range.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: Number = 0
    high: Number = 0

    def suggest(self, trial: "Trial") -> Any:
        """A value for a trial."""
        if self.values:
            return trial.suggest_categorical(self.key, self.values)
        log = self.high >= _TOLD_APART * self.low
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=log)
        return trial.suggest_float(self.key, self.low, self.high, log=log)

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.key}={','.join(map(str, self.values)) if self.values else f'{self.low}..{self.high}'}"


def parse_vary(text: str) -> Vary:
    """Read `key=low..high` or `key=a,b,c`.

    Raises:
        ScenarioError: it is not written so, or no scenario has such a key.
    """
    key, _, values = (part.strip() for part in text.partition("="))
    if not (key and values):
        raise ScenarioError(f"what varies is written key=low..high or key=a,b,c, but is '{text}'")
    if key not in every_key() and not key.startswith(("options.", "sizes.")):
        raise ScenarioError(f"no scenario has a key '{key}'{nearest(key, every_key())}")
    low, between, high = values.partition("..")
    if not between:
        return Vary(key, tuple(value_of(value.strip()) for value in values.split(",")))
    ends = (value_of(low), value_of(high))
    if not (all(type(end) in (int, float) for end in ends) and 0 < ends[0] < ends[1]):
        raise ScenarioError(f"a range is two positive numbers, the lower first, as in {key}=0.01..1, but is '{values}'")
    return Vary(key, low=ends[0], high=ends[1])


def default_space(scenario: Scenario) -> list[Vary]:
    """Learning rate a decade either way, local steps and groups a factor of two or four."""
    lr, steps, groups = scenario.training.lr, scenario.local_steps, scenario.rule.get("groups")
    space = [Vary("training.lr", low=lr / 10, high=lr * 10)]
    space.append(Vary("local_steps", tuple(sorted({max(1, steps // 4), max(1, steps // 2), steps, 2 * steps}))))
    if isinstance(groups, int):
        space.append(Vary("rule.groups", tuple(sorted({max(1, groups // 2), groups, 2 * groups}))))
    return space


@dataclass(frozen=True, kw_only=True)
class Found:
    """One finished trial.

    Args:
        values: of the keys that vary.
        score: the metric on the examples held for it; None if it could not be trained.
        reason: why not.
    """

    values: dict[str, Any]
    score: float | None
    reason: str = ""


class Search:
    """A search on disk: `study.log` and the runs of every trial lie in its folder, and it goes on where it stopped.

    Args:
        scenario: what is varied.
        space: how.
        folder: of the search.
        seeds: runs of each trial, whose scores are averaged.

    Raises:
        ScenarioError: the folder holds a search of something else, or the package that searches is not installed.
    """

    def __init__(self, scenario: Scenario, space: Sequence[Vary], folder: Path, seeds: int = 1) -> None:
        self.scenario, self.space, self.folder, self._seeds = scenario, list(space), folder, seeds
        self._study = _open_study(folder, scenario.seed)
        asked = {"scenario": scenario.to_toml(), "space": "; ".join(map(str, space)), "seeds": seeds}
        before = self._study.user_attrs
        if before and before != asked:
            changed = [key for key in asked if before.get(key) != asked[key]]
            raise ScenarioError(
                f"a search goes on with what it was started with, but '{folder}' differs in {', '.join(changed)}; "
                f"choose another --folder"
            )
        for key, value in asked.items():
            self._study.set_user_attr(key, value)

    def found(self) -> list[Found]:
        """Every finished trial, the best first."""
        trials = [_found(trial) for trial in self._study.get_trials(states=(_state("COMPLETE"), _state("PRUNED")))]
        return sorted(trials, key=lambda found: float("-inf") if found.score is None else found.score, reverse=True)

    def go_on(self, trials: int, train: Callable[[Scenario, Path], Run]) -> Iterator[Found]:
        """Try until there are so many finished trials.

        Args:
            trials: those of earlier calls included.
            train: runs a scenario in a folder, or goes on there.
        """
        self._take_up_again()
        while len(self.found()) < trials:
            trial = self._study.ask()
            values = {vary.key: vary.suggest(trial) for vary in self.space}
            try:
                score = self._score(values, train)
            except BAD_PLACES as error:
                trial.set_user_attr("reason", str(error))
                self._study.tell(trial, state=_state("PRUNED"))
                yield Found(values=values, score=None, reason=str(error))
            else:
                self._study.tell(trial, score)
                yield Found(values=values, score=score)

    def candidate(self, values: dict[str, Any], seed: int | None = None) -> Scenario:
        """The scenario with these values, taking as many local steps in all.

        Args:
            values: of the keys that vary.
            seed: by default the scenario's own.
        """
        made = parse_scenario(self.scenario.to_toml(), [_setting(key, value) for key, value in values.items()])
        steps = self.scenario.rounds * self.scenario.local_steps
        rounds = made.rounds if "rounds" in values else max(1, round(steps / made.local_steps))
        return replace(made, rounds=rounds, seed=made.seed if seed is None else seed)

    def _score(self, values: dict[str, Any], train: Callable[[Scenario, Path], Run]) -> float:
        name = sha256(repr(sorted(values.items())).encode()).hexdigest()[:12]
        scores = []
        for number in range(self._seeds):
            seed = int(generator(self.scenario.seed, "search", number).integers(1 << 31))
            scores.append(
                held_out_score(train(self.candidate(values, seed), self.folder / "trials" / f"{name}-{number}"))
            )
        return sum(scores) / len(scores)

    def _take_up_again(self) -> None:
        """Ask again for what an interrupted call was trying; its run goes on from its checkpoint."""
        for trial in self._study.trials:
            if not trial.state.is_finished() and trial.params:
                self._study.tell(trial.number, state=_state("FAIL"))
                self._study.enqueue_trial(trial.params)


def held_out_score(run: Run) -> float:
    """The metric of a finished run's network on the examples held for calibration, which no client and no test has.

    Raises:
        TaskError: the task holds none, or fails at it.
        TrainingError: the metric there is no number to choose by.
    """
    task = load_task(run.scenario.task, run.scenario.options)
    with asking("calibration_data()"):
        data = task.calibration_data()
    if data is None:
        raise TaskError(
            f"a search chooses by examples that are not the test's, but task '{run.scenario.task}' holds none; give "
            f"its calibration_data() some"
        )
    arrays, device = load_file(run.folder / "model.safetensors"), pick_device(run.scenario.device)
    score = evaluate(network(task, run.scenario.sizes, arrays, device), task, data)[task.metric]
    if not isfinite(score):
        raise TrainingError(
            f"a search chooses by numbers, but {task.metric} on the examples held for it is {score}; look at the "
            f"task's score(), or lower the learning rate"
        )
    return score


def _open_study(folder: Path, seed: int) -> "Study":
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ScenarioError("a search needs Optuna: pip install 'ist-fed[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    # A sampler of its own for each call: one that goes on must not draw what the one before drew.
    drawn = generator(seed, "search", "sampler", len(study.trials))
    study.sampler = optuna.samplers.TPESampler(seed=int(drawn.integers(1 << 31)), multivariate=False)
    return study


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _found(trial: "FrozenTrial") -> Found:
    value = trial.value if trial.state is _state("COMPLETE") else None
    return Found(values=trial.params, score=value, reason=trial.user_attrs.get("reason", ""))


def _setting(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}={json.dumps(value)}"
