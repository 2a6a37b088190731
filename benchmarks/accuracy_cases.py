"""What `bench_accuracy.py` compares: cases, each with the methods that are put beside the first of them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of a table.

    Args:
        name: in the table and in the results file.
        settings: changes of the case's scenario.
        method: a key of `ist_fed.methods.METHODS`; empty runs the scenario as it stands.
        promised: whether it should come as near to the first row as the case says.
    """

    name: str
    settings: tuple[str, ...] = ()
    method: str = ""
    promised: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table.

    Args:
        name: in the results file.
        title: of the table.
        about: what is compared, and what is the same for all.
        scenario: the file it is taken from.
        settings: changes of it.
        recipes: rows; the first is what the others are compared with.
        metric: accuracy, in percent, or loss.
        within: how near a promised row should come, in points, or in percent of the loss.
        last: evaluations whose mean a run's result is.
        seeds: that are reported.
        tuning_seeds: that learning rates are chosen by.
        start: learning rates that are tried first.
        ladder: all that may be; if there is one only, it is not tuned.
        notes: what else is to be said.
    """

    name: str
    title: str
    about: str
    scenario: str
    settings: tuple[str, ...] = ()
    recipes: tuple[Recipe, ...]
    metric: Literal["accuracy", "loss"] = "accuracy"
    within: float = 0.0
    last: int = 5
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tuning_seeds: tuple[int, ...] = (101, 102)
    start: tuple[float, ...] = (0.03, 0.1, 0.3)
    ladder: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    notes: tuple[str, ...] = ()

    @property
    def sign(self) -> int:
        """1 if more is better."""
        return 1 if self.metric == "accuracy" else -1

    @property
    def worst(self) -> float:
        """What a run counts that came to nothing."""
        return 0.0 if self.metric == "accuracy" else 99.0

    @property
    def digits(self) -> int:
        """After the point."""
        return 2 if self.metric == "accuracy" else 4

    @property
    def unit(self) -> str:
        """Of `within`."""
        return " points" if self.metric == "accuracy" else " %"

    def gap(self, mine: float, theirs: float) -> float:
        """How far apart, in points or in percent."""
        return mine - theirs if self.metric == "accuracy" else 100 * (mine / theirs - 1)

    def shown(self, value: float) -> float:
        """As the table has it."""
        return 100 * value if self.metric == "accuracy" else value


def _disjoint(groups: int, keep: int, **more: str) -> tuple[str, ...]:
    return (
        f'rule={{name="disjoint",groups={groups},keep={keep}}}',
        *(f'{key}="{value}"' for key, value in more.items()),
    )


def _dense(rounds: int, lr: float) -> str:
    """Last rounds in which everyone holds everything."""
    return f'phases=[{{}},{{rounds={rounds},rule={{name="full"}},training={{lr={lr},schedule="constant"}}}}]'


_SQRT = ('training.rescale="sqrt"',)
_WHOLE = 1000  # rounds, longer than any run: one draw, and the clients move on

DIGITS = Case(
    name="digits",
    title="Digits, 8 clients, 8 subnets",
    about="`scenarios/digits.toml`: 40 rounds of 10 local steps, a cosine learning rate",
    notes=("the overlapping subnets and the one draw with dense rounds were added when the others had been seen",),
    scenario="digits.toml",
    start=(0.1, 0.3),
    within=0.3,
    recipes=(
        Recipe(name="FedAvg", settings=('rule={name="full"}',)),
        Recipe(name="IST, dealt anew every round", settings=_disjoint(8, 1)),
        Recipe(name="IST, draw kept 8 rounds, rescaled", settings=(*_disjoint(8, 8), *_SQRT)),
        Recipe(name="the same, and 5 dense rounds", settings=(*_disjoint(8, 8), *_SQRT, _dense(5, 0.03))),
        Recipe(name="IST, one draw, clients move on", settings=_disjoint(8, _WHOLE), promised=True),
        Recipe(
            name="8 overlapping subnets, 2 holders a unit",
            settings=('rule={name="overlapping",groups=8,holders=2}',),
            promised=True,
        ),
        Recipe(name="one draw, and 5 dense rounds", settings=(*_disjoint(8, _WHOLE), _dense(5, 0.03)), promised=True),
    ),
)

SORTED = Case(
    name="sorted",
    title="Label-sorted shards, 4 clients, 4 subnets",
    about="digits, two shards of sorted images for each client, who so has two to four classes; rounds as above",
    notes=("the overlapping subnets were added when the others had been seen, by a look at the tuning seeds",),
    scenario="digits.toml",
    settings=("clients=4", 'options={partition="sorted"}', 'round.weighting="uniform"'),
    start=(0.03, 0.1),
    within=1.5,
    recipes=(
        Recipe(name="local SGD", settings=('rule={name="full"}',)),
        Recipe(name="IST, dealt anew every round", settings=_disjoint(4, 1), promised=True),
        Recipe(name="IST, draw kept 4 rounds", settings=_disjoint(4, 4)),
        Recipe(name="IST, one draw, clients move on", settings=_disjoint(4, _WHOLE)),
        Recipe(name="IST, draw kept 4 rounds, 10 dense", settings=(*_disjoint(4, 4), _dense(10, 0.03)), promised=True),
        Recipe(
            name="4 overlapping subnets, 2 holders a unit",
            settings=('rule={name="overlapping",groups=4,holders=2}',),
            promised=True,
        ),
    ),
)

UNEVEN = Case(
    name="uneven",
    title="Uneven data, Dirichlet(0.3), 8 clients",
    about="`scenarios/digits-noniid.toml`: each class of digits is dealt out to the clients by Dirichlet(0.3)",
    scenario="digits-noniid.toml",
    start=(0.03, 0.1),
    recipes=(
        Recipe(name="FedAvg", settings=('rule={name="full"}',)),
        Recipe(name="IST, 4 subnets, dealt anew every round", settings=_disjoint(4, 1)),
        Recipe(name="IST, 4 subnets, draw kept 4 rounds", settings=_disjoint(4, 4)),
        Recipe(name="IST, 8 subnets, dealt anew every round", settings=_disjoint(8, 1)),
        Recipe(name="IST, 8 subnets, draw kept 8 rounds", settings=_disjoint(8, 8)),
        Recipe(
            name="8 overlapping subnets, 2 holders a unit", settings=('rule={name="overlapping",groups=8,holders=2}',)
        ),
    ),
)

_UNEQUAL = (
    "clients=10",
    "rounds=20",
    "network={tiers={a={width=1.0},b={width=0.5},c={width=0.25},d={width=0.125},e={width=0.0625}}}",
)
_METHODS = (
    Recipe(name="HeteroFL (`nested`)", method="heterofl"),
    Recipe(name="FedRolex (`rolling`)", method="fedrolex"),
    Recipe(name="exclude-weak", method="exclude-weak"),
)

CNN_TIERS = Case(
    name="tiers",
    title="Unequal clients, digits-CNN",
    about="`scenarios/digits-cnn.toml`, 10 clients, two each that can hold 1, 1/2, 1/4, 1/8 and 1/16 of every layer, "
    "20 rounds of 10 steps; two seeds, one to tune by, learning rates from 0.03 to 0.3; bytes are averaged over all "
    "clients, also those left out",
    scenario="digits-cnn.toml",
    settings=(*_UNEQUAL, 'rule={name="disjoint",groups=5,min_units=4,keep=5}'),
    seeds=(1, 2),
    tuning_seeds=(101,),
    start=(0.1,),
    ladder=(0.03, 0.1, 0.3),
    recipes=(
        Recipe(name="IST, shares by capacity"),
        *_METHODS,
    ),
)

_TEXT = ("training.batch_size=8", "record.evaluate_every=5")

TEXT = Case(
    name="text",
    title="Text, a transformer, 4 clients, 4 subnets",
    about="`scenarios/text.toml` made smaller: two blocks of 8 heads of 8 features and 256 units, batch 8, 10 rounds "
    "of 20 steps of AdamW, tested on 10 000 characters; two seeds, and far from converged",
    notes=("dense rounds keep their rate, all others fall by a cosine; averaging at a constant rate was not tried",),
    scenario="text.toml",
    settings=(
        *_TEXT,
        "rounds=10",
        "sizes={heads0=8,ffn0=256,heads1=8,ffn1=256}",
        "options={test_characters=10000,head=8}",
    ),
    metric="loss",
    within=2.0,
    last=1,
    seeds=(1, 2),
    tuning_seeds=(101,),
    start=(0.005, 0.01),
    ladder=(0.0025, 0.005, 0.01, 0.02),
    recipes=(
        Recipe(name="FedAvg", settings=('rule={name="full"}',)),
        Recipe(name="IST, dealt anew every round", settings=('rule={name="disjoint",groups=4,min_units=2}',)),
        Recipe(
            name="IST, one draw, clients move on",
            settings=(f'rule={{name="disjoint",groups=4,min_units=2,keep={_WHOLE}}}',),
        ),
        Recipe(
            name="IST, draw kept 4 rounds, 3 dense",
            settings=('rule={name="disjoint",groups=4,min_units=2,keep=4}', _dense(3, 0.005)),
            promised=True,
        ),
    ),
)

TEXT_TIERS = Case(
    name="text tiers",
    title="Unequal clients, text",
    about="the same with 16 heads of 4 features, 5 clients that can hold 1, 1/2, 1/4, 1/8 and 1/16 of every layer; "
    "one seed, the scenario's learning rate for all",
    scenario="text.toml",
    settings=(
        *_TEXT,
        *_UNEQUAL,
        "clients=5",
        "rounds=10",
        "sizes={heads0=16,ffn0=256,heads1=16,ffn1=256}",
        "options={test_characters=10000,head=4}",
        'rule={name="disjoint",groups=5,min_units=1,keep=5}',
    ),
    metric="loss",
    last=1,
    seeds=(1,),
    start=(0.005,),
    ladder=(0.005,),
    recipes=(Recipe(name="IST, shares by capacity"), *_METHODS),
)

CASES = (DIGITS, SORTED, UNEVEN, CNN_TIERS, TEXT, TEXT_TIERS)
