"""What stands between a client's examples and its training: noise, and a count of what it spent."""

import logging
from functools import lru_cache
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.batches import length
from ist_fed.errors import IstFedError, PrivacyError
from ist_fed.privacy.accounting import QUIETEST
from ist_fed.privacy.example.settings import ExamplePrivacy, check_network
from ist_fed.privacy.example.spent import Spent, Steps, loose_bounds_allowed
from ist_fed.privacy.example.steps import sample_rate, train_privately
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training

logger = logging.getLogger("ist_fed")


class Guard:
    """Trains on a client's examples within their budget.

    Args:
        settings: what is promised.
        path: of the file in which this client's steps are counted, over all rounds, runs and restarts.
        client: its number, for the log.
        planned: steps of the whole run, for which `epsilon` is to last.
        batch_size: the largest of the run, for the same.
        tell: whether the server may be told epsilon; it is the client's to say.
    """

    def __init__(
        self, settings: ExamplePrivacy, path: Path, *, client: int, planned: int, batch_size: int, tell: bool = False
    ) -> None:
        self._settings, self._client, self._tell = settings, client, tell
        self._spent = Spent(path, settings.delta)
        self._planned, self._batch_size = planned, batch_size
        self._epsilon = 0.0

    def train(
        self,
        model: nn.Module,
        task: Task,
        data: Dataset[Batch],
        training: Training,
        *,
        lr: float,
        steps: int,
        round: int,
    ) -> None:
        """Take local steps, changing `model` in place, after they were counted.

        What goes wrong then stands in the client's own log, for it may tell of its examples; `model` stays as it was.

        Raises:
            PrivacyError: the budget does not last for them, or this network cannot be trained so.
            TrainingError: weights are no longer finite.
            RunError: they cannot be counted.
        """
        check_network(model)
        taken = Steps(self._noise_for(length(data)), sample_rate(length(data), training.batch_size), steps)
        before = {name: array.clone() for name, array in arrays_of(model).items()}
        try:
            train_privately(
                model,
                task,
                data,
                training,
                max_grad_norm=self._settings.max_grad_norm,
                noise_multiplier=taken.noise_multiplier,
                lr=lr,
                steps=steps,
                spend=lambda: self._spend(taken, round),
            )
        except IstFedError:
            raise
        except Exception as error:
            logger.error("round %d: client %d could not train", round, self._client, exc_info=error)
            load_arrays(model, before)

    @property
    def told(self) -> float | None:
        """Epsilon after the last round, if the server may know it."""
        return self._epsilon if self._tell else None

    def _noise_for(self, examples: int) -> float:
        """The noise multiplier; where it is not given, what the budget takes for the whole run."""
        settings = self._settings
        if settings.delta * examples >= 1:
            raise PrivacyError(
                f"delta must be below one over a client's number of examples, but {settings.delta:g} is not; lower it "
                f"in [example_privacy], or where the client is started (--example-delta)"
            )
        if settings.noise_multiplier:
            return settings.noise_multiplier
        needed = _needed(settings.epsilon, settings.delta, sample_rate(examples, self._batch_size), self._planned)
        return max(QUIETEST, needed)

    def _spend(self, taken: Steps, round: int) -> None:
        self._epsilon = self._spent.add(taken, round, self._allow)
        logger.info(
            "round %d: client %d: epsilon of its examples is %.4g at delta %g",
            round,
            self._client,
            self._epsilon,
            self._settings.delta,
        )

    def _allow(self, after: float) -> None:
        budget = self._settings.epsilon
        if budget and after > budget:
            logger.warning("client %d: another round would bring epsilon to %.4g of %g", self._client, after, budget)
            raise PrivacyError("this client's budget for its examples does not last for another round")


@lru_cache(maxsize=256)  # clients of a simulation that have equally many examples ask the same
def _needed(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with loose_bounds_allowed():
        noise: float = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
        )
    return noise
