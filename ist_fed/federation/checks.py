"""What is checked before the first round: that units are what they seem, and that the rules can deal them out."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ist_fed.arrays import build_module
from ist_fed.batches import fetch, length
from ist_fed.device import pick_device
from ist_fed.errors import ScenarioError, TaskError, asking, nearest
from ist_fed.evaluate import evaluate
from ist_fed.rules import Plan, plan_round
from ist_fed.scenario import Scenario
from ist_fed.sealed import check_cohorts
from ist_fed.seeds import seeded
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import Batch, Task
from ist_fed.tasks.task import loss_of

_CHECKED_UNITS = 16  # of an axis; the law holds at any sizes or at none


def check_model(scenario: Scenario, task: Task, strategy: IndependentSubnetTraining) -> None:
    """Evaluate on a few test examples and check the symmetry law, at the sizes of a small subnet, with all blocks.

    Raises:
        AxesError: an axis breaks it.
        RuleError: a rule cannot deal these sizes out to these clients.
        ScenarioError: a phase is to last until something that nobody measures, or cohorts are too small for secure
            rounds.
        TaskError: the loss or the metric is not one number, or the loss is not finite before anything is trained.
        TrainingError: there is no test example.
    """
    known = [task.metric, "loss", "train_loss", "coverage"]
    for phase in scenario.make_phases():
        for metric in phase.until.keys() - known:
            raise ScenarioError(
                f"a phase lasts until a metric is reached, but '{metric}' is none{nearest(metric, known)}"
            )
    plan, *_ = first_plans(scenario)
    sizes = {axis: min(_CHECKED_UNITS, max(1, len(units))) for axis, units in plan.subnets[0].items()}
    with asking("test_data()"):
        data = task.test_data()
    few = torch.arange(min(8, length(data))).numpy()
    _try_evaluation(task, sizes, Subset(data, few.tolist()), pick_device(scenario.device))
    batch = fetch(data, few, torch.device("cpu"))
    inputs, targets = (part.double() if part.is_floating_point() else part for part in batch)

    def function(model: nn.Module) -> Tensor:
        with asking("loss(), in float64 (give its constants the dtype of the outputs),"):
            return loss_of(task, model, (inputs, targets))

    check_symmetry(task.build, sizes, strategy.axes, function)


def _try_evaluation(task: Task, sizes: Mapping[str, int], few: Dataset[Batch], device: torch.device) -> None:
    """Loss and metric before anything is trained: what fails after a round fails here."""
    with seeded(0):
        model = build_module(task.build, sizes).to(device)
    loss = evaluate(model, task, few)["loss"]
    if not isfinite(loss):
        raise TaskError(
            f"the loss must be finite before anything is trained, but on the first test examples it is {loss}; look "
            f"for NaN and infinities in what test_data() gives, or mend loss()"
        )


def first_plans(scenario: Scenario) -> list[Plan]:
    """The plan of a first round with everyone, if there can be one: by the scenario's rule, and by its phases'.

    Raises:
        RuleError: a rule cannot deal these sizes out to these clients.
        ScenarioError: cohorts are too small for secure rounds.
    """
    rules = [scenario.make_rule(), *(phase.rule for phase in scenario.make_phases() if phase.rule)]
    plans = [plan_round(rule, 1, scenario.nodes(), scenario.sizes, scenario.seed) for rule in rules]
    if scenario.is_secure:
        for plan in plans:
            check_cohorts(plan, scenario.secure)
    return plans
