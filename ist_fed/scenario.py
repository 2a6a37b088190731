"""How a task is run: one TOML file, read into frozen dataclasses. Unknown keys and wrong types are errors."""

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from ist_fed.errors import ScenarioError, nearest
from ist_fed.network import Network, nodes_of
from ist_fed.phases import Phase, Stretch
from ist_fed.privacy import Privacy, check_conditions
from ist_fed.privacy.example import ExamplePrivacy, Guard
from ist_fed.privacy.secure import Secure
from ist_fed.robust import Robust, check_trust
from ist_fed.roster import Weighting
from ist_fed.rules import RULES, Node, Rule
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.tables import from_table, override
from ist_fed.train import Precision, Training


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """When a round ends.

    Args:
        deadline: seconds after which a round goes on without the replies still missing.
        min_clients: wait until so many clients are connected; 0 means all of them. Where units are lent (rule `lease`),
            only at the start.
        min_replies: stop the run if a round brings fewer usable replies.
        weighting: within a cohort, weigh clients by their `examples` or `uniform`ly.
        adapt: let shares follow the time that each client's rounds take; results then differ from run to run.
        min_limit: leave out clients that can hold less than this fraction of every axis.
        in_place: for networks that fill the memory: where every unit has one holder, subnets are cut one by one and
            written over the network as they come back. A run that is stopped or fails within a round then goes on from
            its last checkpoint, not from its last round.
    """

    deadline: float = 3600.0
    min_clients: int = 0
    min_replies: int = 1
    weighting: Weighting = "examples"
    adapt: bool = False
    min_limit: float = 0.0
    in_place: bool = False

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if not 0 <= self.min_limit <= 1:
            raise ValueError(f"min_limit must be a fraction from 0 to 1, but is {self.min_limit}")
        if not 0 < self.deadline < inf:
            raise ValueError(f"deadline must be a positive number of seconds, but is {self.deadline}")
        if self.min_clients < 0:
            raise ValueError(f"min_clients must not be negative, but is {self.min_clients}; 0 means all of them")
        if self.min_replies < 1:
            raise ValueError(f"min_replies must be at least 1, but is {self.min_replies}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run writes down, and when.

    Args:
        evaluate_every: rounds between evaluations of the assembled network.
        checkpoint_every: rounds between checkpoints; one is also written at the end and when a run is stopped.
        keep: how many checkpoints, the newest, are kept.
        tensorboard: write TensorBoard event files too, if the package is installed.
    """

    evaluate_every: int = 1
    checkpoint_every: int = 10
    keep: int = 3
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("evaluate_every", "checkpoint_every", "keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, but is {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One experiment.

    Args:
        name: of the run's folder: up to 64 letters, digits, `.`, `_` and `-`.
        task: a built-in task, or `package.module:attribute`.
        options: keyword arguments of the task.
        sizes: units of each axis of the full network.
        rule: `name` and the rule's own fields.
        clients: how many take part.
        rounds: how many.
        local_steps: steps a client takes in a round.
        seed: of every draw, from 0.
        training: optimiser, learning rate, batch size.
        round: when a round ends.
        record: what is written down.
        privacy: what is promised to the clients, and what that takes.
        network: clients and links that are simulated, in virtual time.
        secure: how updates are added up in secret, where `privacy.mode` is `secure`.
        example_privacy: of a client's single examples, by noise in its own steps; beside `privacy` or without.
        robust: what is done against clients that may send anything.
        device: where a simulated client trains and the server evaluates: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: of what a simulated client computes: `float32`; `tf32`, which NVIDIA GPUs multiply faster; `bf16` or
            `fp16`, mixed, with weights in float32. Clients in other places choose for themselves (`--amp`).
        server: what the server does with a round's change of the network.
        phases: stretches of rounds that differ from the above, such as dense final rounds.
    """

    name: str
    task: str
    sizes: dict[str, int]
    rule: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    clients: int = 8
    rounds: int = 40
    local_steps: int = 40
    seed: int = 0
    training: Training = field(default_factory=Training)
    round: Rounds = field(default_factory=Rounds)
    record: Record = field(default_factory=Record)
    privacy: Privacy = field(default_factory=Privacy)
    network: Network = field(default_factory=Network)
    secure: Secure = field(default_factory=Secure)
    example_privacy: ExamplePrivacy = field(default_factory=ExamplePrivacy)
    robust: Robust = field(default_factory=Robust)
    device: str = "auto"
    precision: Precision = "float32"
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    phases: tuple[Stretch, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,64}", self.name):
            raise ValueError(
                f"name becomes a folder: at most 64 of A-Z, a-z, 0-9, '.', '_' and '-', and no '.' first, but it is "
                f"{self.name!r}"
            )
        for key in ("clients", "rounds", "local_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, but is {getattr(self, key)}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, but is {self.seed}")
        if not self.sizes:
            raise ValueError("[sizes] must name at least one axis and its units, such as hidden1 = 512, but is empty")
        for axis, units in self.sizes.items():
            if units < 1:
                raise ValueError(f"sizes.{axis} must be at least 1, but is {units}")
        for key in ("min_clients", "min_replies"):
            if getattr(self.round, key) > self.clients:
                raise ValueError(
                    f"round.{key} must be at most clients, {self.clients}, but is {getattr(self.round, key)}"
                )
        check_conditions(
            self.privacy,
            weighting=self.round.weighting,
            adapt=self.round.adapt,
            phases=bool(self.phases),
            travels=bool(self.training.carried),
        )
        if self.privacy.mode != "off" and self.network != Network():
            raise ValueError(
                "how long a simulated round lasts tells who was drawn for it, so a private run has no [network]; leave "
                "one of them out"
            )
        self._check_secure()
        if self.round.in_place and (self.server.optimizer != "none" or self.privacy.mode != "off" or self.robust.on):
            raise ValueError(
                "round.in_place keeps no network as it was, to which [server], [privacy] and [robust] compare what "
                "came back; leave it out, or them"
            )
        check_trust(self.robust, self.privacy.mode)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be auto, cpu, cuda, cuda:1 and so on, or mps, but is {self.device!r}")
        if self.example_privacy.on and self.precision != "float32":
            raise ValueError(f"steps on private examples are in float32, but precision is '{self.precision}'")

    @property
    def is_secure(self) -> bool:
        """Whether updates are added up in secret."""
        return self.privacy.mode == "secure"

    def _check_secure(self) -> None:
        if not self.is_secure and self.secure != Secure():
            raise ValueError(
                "[secure] says how updates are added up in secret: set privacy.mode = 'secure', or drop it"
            )
        if self.is_secure and self.privacy != Privacy(mode="secure"):
            raise ValueError("with privacy.mode = 'secure' all other settings stand in [secure], not in [privacy]")
        if self.is_secure and (self.round.weighting != "uniform" or self.round.adapt):
            raise ValueError(
                "secure rounds need round.weighting = 'uniform' and no round.adapt, for what the server learns must "
                "not depend on a client's data"
            )

    def nodes(self) -> list[Node]:
        """The clients as the rule sees them in simulation, if all are there."""
        return nodes_of(self.network, self.seed, self.clients, self.round.min_limit)

    def make_rule(self) -> Rule:
        """The rule that `[rule]` describes.

        Raises:
            ScenarioError: there is no such rule, or it has no such field.
        """
        own = dict(self.rule)
        name = own.pop("name", None)
        if name is None:
            raise ScenarioError(f"'rule.name' is missing: which rule deals the units out{nearest('', list(RULES))}")
        if not isinstance(name, str) or name not in RULES:
            raise ScenarioError(f"'rule.name' must name a rule, but is {name!r}{nearest(str(name), list(RULES))}")
        rule: Rule = from_table(RULES[name], own, "rule", f" of rule '{name}'")
        return rule

    def during(self, number: int) -> "Scenario":
        """The scenario as its phase `number`, from 1, has it; 0 is without phases.

        Raises:
            ScenarioError: `[training]` has no such key, or a value is wrong.
        """
        if not number:
            return replace(self, phases=())
        phase = self.phases[number - 1]
        rule = phase.rule if "name" in phase.rule else {**self.rule, **phase.rule}
        training = from_table(Training, {**asdict(self.training), **phase.training}, f"phases[{number}].training")
        return replace(self, rule=rule, training=training, local_steps=phase.local_steps or self.local_steps, phases=())

    def make_phases(self) -> tuple[Phase, ...]:
        """The phases that `[[phases]]` describe.

        Raises:
            ScenarioError: they do not fit into the run; or as of `make_rule` and `during`.
        """
        if sum(not phase.rounds for phase in self.phases) > 1:
            raise ScenarioError(
                "one of [[phases]] at most may leave its rounds out, for it takes what the others leave"
            )
        if (taken := sum(phase.rounds for phase in self.phases)) > self.rounds:
            raise ScenarioError(f"the rounds of all [[phases]] must fit into rounds, {self.rounds}, but are {taken}")
        each = [(phase, self.during(number)) for number, phase in enumerate(self.phases, 1)]
        return tuple(
            Phase(
                rounds=phase.rounds,
                until=phase.until,
                rule=own.make_rule(),
                local_steps=own.local_steps,
                training=own.training,
            )
            for phase, own in each
        )

    def guard(self, client: int, path: Path, *, allowed: float = inf, tell: bool = False) -> Guard | None:
        """What trains on a client's private examples, if they are; its budget lasts for the dearest rounds throughout.

        Args:
            client: its number.
            path: where it counts what it spent.
            allowed: what its operator lets it spend, whatever the scenario says.
            tell: whether the server may be told that.
        """
        if not self.example_privacy.on:
            return None
        each = [self.during(number) for number in range(len(self.phases) + 1)]
        bound = min(self.example_privacy.epsilon or inf, allowed)
        return Guard(
            replace(self.example_privacy, epsilon=bound) if bound < inf else self.example_privacy,
            path,
            client=client,
            planned=self.rounds * max(own.local_steps for own in each),
            batch_size=max(own.training.batch_size for own in each),
            tell=tell,
        )

    def to_toml(self) -> str:
        """The scenario with every default filled in."""
        return tomli_w.dumps(asdict(self, dict_factory=_told))


def _told(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """What is not None, for TOML has no word for it."""
    return {key: value for key, value in items if value is not None}


def load_scenario(path: Path | str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file.

    Args:
        path: of the TOML file.
        overrides: `key=value`, the value in TOML, as in `training.lr=0.05`.

    Raises:
        ScenarioError: the file cannot be read, or a key, a type or a value is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScenarioError(f"scenario '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"a scenario is a text file in UTF-8, but '{path}' is not: {error}") from error
    try:
        return parse_scenario(text, overrides)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def parse_scenario(text: str, overrides: Sequence[str] = ()) -> Scenario:
    """The same from the text of a scenario file."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ScenarioError(f"a scenario is written in TOML, but this is not: {error}") from error
    for setting in overrides:
        override(table, setting)
    scenario: Scenario = from_table(Scenario, table, elsewhere=every_key())
    scenario.make_rule()
    scenario.make_phases()
    return scenario


def differences(one: Scenario, other: Scenario) -> list[str]:
    """The keys in which two scenarios differ, as `key: one's value → the other's`."""
    a, b = _flat(asdict(one)), _flat(asdict(other))
    changed = (key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key))
    return [f"{key}: {a.get(key, 'not set')} → {b.get(key, 'not set')}" for key in changed]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@cache
def every_key() -> tuple[str, ...]:
    """Every key that a scenario may have, as `training.lr`; but for those of `options` and `sizes`."""
    hints = get_type_hints(Scenario)
    keys = [f.name for f in fields(Scenario)]
    keys += [f"{name}.{f.name}" for name in keys if is_dataclass(kind := hints[name]) for f in fields(kind)]
    rules: list[Any] = [rule for rule in RULES.values() if is_dataclass(rule)]
    return (*keys, *(f"rule.{f.name}" for rule in rules for f in fields(rule)))


def from_run_config(config: Mapping[str, object], app: Path) -> Scenario:
    """The scenario that Flower's run configuration describes.

    Args:
        config: `scenario` is a path within the app, or the text of a scenario; `set` is overrides, space between them.
        app: the app's folder.
    """
    value, overrides = str(config["scenario"]), shlex.split(str(config.get("set", "")))
    return parse_scenario(value, overrides) if "\n" in value else load_scenario(app / value, overrides)
