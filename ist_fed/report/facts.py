"""All that the page about one run is written from."""

from dataclasses import dataclass, replace
from typing import Any

from ist_fed.report.curves import is_final, lines_of, metric_of, model_of, per_client
from ist_fed.report.holdings import Holdings, blocks_as_units, lack_blocks, plans_of, summarise
from ist_fed.report.network import Network, network_of
from ist_fed.rules import Plan
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the page is written from."""

    run: Run
    lines: list[dict[str, Any]]
    model: dict[str, Any]
    network: Network | None
    plans: list[Plan]
    shown: tuple[list[Plan], dict[str, int]]  # plans and sizes as they are drawn: of blocks, as if they were units
    holdings: Holdings
    full_bytes: int | None  # of the full network's arrays
    parameters: int | None  # of the full network

    @property
    def scenario(self) -> Scenario:
        """What was run."""
        return self.run.scenario

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return metric_of(self.lines)

    @property
    def lends(self) -> bool:
        """Whether units were lent to one client at a time, and not dealt out in rounds."""
        return self.scenario.rule.get("name") == "lease"

    @property
    def unit(self) -> str:
        """What the rule dealt out, one of it."""
        return "hidden unit" if self.shown[0] is self.plans else "block"

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return is_final(self.lines, self.model)

    @property
    def clients(self) -> int:
        """How many took part in some round."""
        return len({client for line in self.lines for client in line["clients"]})

    @property
    def rounds(self) -> int:
        """How many are finished."""
        return len(self.lines)

    def moved(self, *keys: str) -> float:
        """Bytes of the mean client in the mean round; `keys` are `bytes_down` and `bytes_up`."""
        return sum(per_client(self.lines, *keys)) / self.rounds


def gather(run: Run, task: Task | None) -> Facts:
    """Read a run's folder, and draw its plans again.

    Args:
        run: of which at least one round is finished.
        task: the scenario's, if the caller has it.

    Raises:
        RunError: no round is finished, or a file cannot be read.
    """
    lines, model, network = lines_of(run), model_of(run), network_of(run.scenario, task)
    plans, sizes = plans_of(run.scenario, lines), run.scenario.sizes
    shown, holdings = (plans, sizes), summarise(plans, sizes, network)
    if lack_blocks(plans, sizes):
        shown = blocks_as_units(plans, sizes)
        holdings = replace(summarise(*shown, None), parameters=holdings.parameters)
    return Facts(
        run=run,
        lines=lines,
        model=model,
        network=network,
        plans=plans,
        shown=shown,
        holdings=holdings,
        full_bytes=network.bytes if network else model.get("bytes"),
        parameters=network.parameters() if network else model.get("parameters"),
    )
