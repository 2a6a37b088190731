"""What a scenario says about the privacy of single examples."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import inf

from torch import nn

from ist_fed.batchnorm import mixes_examples
from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting import QUIETEST


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """DP-SGD in every client's local steps. Off unless `max_grad_norm` is given.

    Args:
        max_grad_norm: largest norm of one example's gradient; 0 is off.
        noise_multiplier: standard deviation of the noise on a step's sum of gradients, over `max_grad_norm`; 0 works
            out what `epsilon` takes for all rounds, for each client from how many examples it has.
        epsilon: what a client may spend on its examples at most, at `delta`; it takes no step beyond. 0 sets no bound.
        delta: should be well below one over a client's number of examples.
    """

    max_grad_norm: float = 0.0
    noise_multiplier: float = 0.0
    epsilon: float = 0.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("max_grad_norm", "noise_multiplier", "epsilon"):
            if not 0 <= getattr(self, key) < inf:
                raise ValueError(f"{key} must be finite and not negative, but is {getattr(self, key)}")
        if 0 < self.noise_multiplier < QUIETEST:
            raise ValueError(
                f"noise_multiplier must be at least {QUIETEST}, or 0 to have it worked out, but is "
                f"{self.noise_multiplier:g}; so little noise protects nobody"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, but is {self.delta}")
        if self.on and not (self.noise_multiplier or self.epsilon):
            raise ValueError(
                "without noise nothing is private: give noise_multiplier, or epsilon to have it worked out"
            )
        if not self.on and (self.noise_multiplier or self.epsilon):
            raise ValueError("max_grad_norm must be given, as in max_grad_norm = 1.0, for noise is in proportion to it")

    @property
    def on(self) -> bool:
        """Whether examples are protected."""
        return self.max_grad_norm > 0


def check_network(model: nn.Module) -> None:
    """Refuse a network whose examples do not have gradients of their own.

    Raises:
        PrivacyError: it has BatchNorm, or Opacus is not installed.
    """
    if mixes_examples(model):
        raise PrivacyError(
            "with BatchNorm the examples of a batch change each other's gradients, so none can be clipped alone; use "
            'another normalisation, for most tasks norm = "layer" in [options]'
        )
    if find_spec("opacus") is None:
        raise PrivacyError("privacy of single examples needs Opacus: pip install 'ist-fed[privacy]'")
