"""Model factories: each returns `build(**sizes) -> nn.Module`, a function of its sizes and of nothing else."""

from ist_fed.models.mlp import mlp

__all__ = ["mlp"]
