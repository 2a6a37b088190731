"""Opacus' optimiser with noise from the operating system."""

import torch
from opacus.optimizers import DPOptimizer

from ist_fed.privacy import noise


class SecretOptimizer(DPOptimizer):  # type: ignore[misc]
    """Clips, sums and scales as Opacus does.

    Opacus draws from torch's generator, which a client seeds with what the server knows, unless a package is there that
    is no longer kept. And it leaves an example whose gradient is not a number unclipped.
    """

    def clip_and_accumulate(self) -> None:
        """Sum the clipped gradients of the examples; what is not a number counts as zero."""
        for parameter in self.params:
            parameter.grad_sample.nan_to_num_(0.0, 0.0, 0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Put noise on the sum."""
        for parameter in self.params:
            summed, std = parameter.summed_grad, self.noise_multiplier * self.max_grad_norm
            drawn = torch.from_numpy(noise.normal(summed.numel())).view_as(summed).to(summed.device) * std
            parameter.grad = (summed + drawn.to(summed.dtype)).view_as(parameter)
