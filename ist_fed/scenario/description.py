"""One experiment, as a frozen dataclass: what it says, and whether its parts go together."""

import re
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import tomli_w

from ist_fed.errors import ScenarioError, nearest
from ist_fed.network import Network, nodes_of
from ist_fed.phases import Phase, Stretch
from ist_fed.privacy import Privacy, check_conditions
from ist_fed.privacy.example import ExamplePrivacy, Guard
from ist_fed.privacy.secure import Secure
from ist_fed.robust import Robust, check_trust
from ist_fed.rules import RULES, Node, Rule
from ist_fed.scenario.settings import Record, Rounds
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.tables import from_table
from ist_fed.train import Precision, Training


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One experiment.

    Args:
        name: what the run's folder is called: up to 64 letters, digits, `.`, `_` and `-`.
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
        if self.example_privacy.on and self.training.carried:
            raise ValueError("steps on private examples carry no state of the optimiser; set training.state to 'fresh'")

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
            raise ScenarioError(
                f"there must be a key 'rule.name', but it is missing; add it (which rule deals the units out)"
                f"{nearest('', list(RULES))}"
            )
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
