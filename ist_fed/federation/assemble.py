"""What a scenario describes, made: the strategy, what guards it, the simulated network, the first weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ist_fed.arrays import arrays_of, build_module, build_on_meta
from ist_fed.batches import length
from ist_fed.cost import cost
from ist_fed.device import pick_device
from ist_fed.errors import asking
from ist_fed.evaluate import evaluate, network, ready
from ist_fed.network import Network, Virtual
from ist_fed.privacy import LEDGER, Central, Ledger, mechanism
from ist_fed.robust import Keeper
from ist_fed.round import RoundReport
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.seeds import seeded, torch_generator
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.tasks import Task
from ist_fed.train import Training


def make_strategy(
    scenario: Scenario,
    task: Task,
    private: Central | None,
    robust: Keeper | None,
    on_round: Callable[[RoundReport], Mapping[str, float]],
) -> IndependentSubnetTraining:
    """The strategy that a scenario describes.

    Args:
        scenario: says what is done.
        task: what is learnt.
        private: keeps the scenario's promise.
        robust: guards the merge.
        on_round: called after each round; gives what was measured.
    """
    return IndependentSubnetTraining(
        build=task.build,
        sizes=scenario.sizes,
        rule=scenario.make_rule(),
        local_steps=scenario.local_steps,
        training=scenario.training,
        seed=scenario.seed,
        declared=task.declared,
        weighting=scenario.round.weighting,
        min_nodes=scenario.round.min_clients or scenario.clients,
        min_replies=scenario.round.min_replies,
        adapt=scenario.round.adapt,
        min_limit=scenario.round.min_limit,
        privacy=private,
        network=simulated_network(scenario, task),
        secure=scenario.secure if scenario.is_secure else None,
        robust=robust,
        on_round=on_round,
        server_optimizer=scenario.server,
        phases=scenario.make_phases(),
        in_place=scenario.round.in_place,
    )


def make_private(run: Run, ledgers: Sequence[Path]) -> Central | None:
    """What keeps the scenario's promise, if it makes one."""
    scenario, settings = run.scenario, run.scenario.privacy
    if settings.mode != "central":
        return None
    promised = mechanism(settings, scenario.make_rule(), clients=scenario.clients, rounds=scenario.rounds)
    ledger = Ledger([run.folder / LEDGER, *ledgers], epsilon=settings.epsilon, delta=settings.delta)
    return Central(promised, ledger)


def make_robust(scenario: Scenario, task: Task) -> Keeper | None:
    """What guards the merge, if the scenario asks for it."""
    with asking("calibration_data()"):
        data = task.calibration_data() if scenario.robust.loss_margin else None
    if data is None or not length(data):
        return Keeper(scenario.robust) if scenario.robust.on else None
    device, names = pick_device(scenario.device), arrays_of(build_on_meta(task.build, scenario.sizes))

    def loss(arrays: Mapping[str, Tensor]) -> float:
        own = {name: arrays[name] for name in names}  # a state that travels may stand beside
        model = ready(network(task, scenario.sizes, own, device), task)
        return evaluate(model, task, data)["loss"]

    return Keeper(scenario.robust, loss)


def simulated_network(scenario: Scenario, task: Task) -> Virtual | None:
    """The network that `[network]` describes; None if it describes none."""
    if scenario.network == Network():
        return None

    def flops(sizes: Mapping[str, int], training: Training) -> float:
        return cost(task, sizes, training).flops

    return Virtual(scenario.network, scenario.seed, scenario.clients, flops)


def initial_arrays(scenario: Scenario, task: Task) -> dict[str, Tensor]:
    """The wide network's first state, drawn from the scenario's seed."""
    with seeded(torch_generator(scenario.seed, "initial").initial_seed()):
        return arrays_of(build_module(task.build, scenario.sizes))
