"""Model factories: each returns `build(**sizes) -> nn.Module`, a function of its sizes and of nothing else."""

from ist_fed.models.blocks import Branch
from ist_fed.models.cnn import cnn
from ist_fed.models.mlp import mlp
from ist_fed.models.resnet import resnet
from ist_fed.models.transformer import transformer
from ist_fed.models.wide_output import wide_output

__all__ = ["Branch", "cnn", "mlp", "resnet", "transformer", "wide_output"]
