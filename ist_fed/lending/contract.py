"""What is lent, how and to whom."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from ist_fed.arrays import Build
from ist_fed.axes import Axes
from ist_fed.coverage import Coverage
from ist_fed.network import Virtual
from ist_fed.roster import Roster
from ist_fed.rules import Lease
from ist_fed.train import Training


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a lease asks of a client.

    Args:
        seed: the scenario's.
        local_steps: steps a client takes before it returns what it borrowed.
        training: how.
        scales: what the inputs of a subnet's layers are multiplied by, given its sizes.
        rounds: of the whole run, for the learning rate.
        min_replies: stop if a round brings fewer usable replies.
    """

    seed: int
    local_steps: int
    training: Training
    scales: Callable[[dict[str, int]], Mapping[str, float]]
    rounds: int
    min_replies: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Lending:
    """All that lending needs.

    Args:
        rule: by which units are lent.
        conditions: what is asked of a client.
        build: the model factory.
        axes: the table from `infer`.
        sizes: units of each axis of the full network.
        coverage: of the whole run.
        roster: who is connected.
        grid: where the clients are.
        network: that is simulated; None if clients take their own time.
        config: sent along with every order.
        timeout: seconds for which clients are waited for.
    """

    rule: Lease
    conditions: Conditions
    build: Build
    axes: Axes
    sizes: Mapping[str, int]
    coverage: Coverage
    roster: Roster
    grid: Grid
    network: Virtual | None
    config: ConfigRecord
    timeout: float
