"""The networks that tasks of images offer, by name."""

from collections.abc import Sequence
from typing import Literal, get_args

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models import cnn, mlp, resnet
from ist_fed.models.norm import Norm
from ist_fed.models.resnet import Order

Model = Literal["mlp", "cnn", "resnet"]


def image_network(
    model: Model,
    shape: tuple[int, int, int],
    classes: int,
    norm: Norm,
    widths: Sequence[int] = (16, 32),
    order: Order = "standard",
) -> Build:
    """The factory of that name.

    Args:
        model: `mlp`, `cnn` or `resnet`.
        shape: channels, height and width of an image.
        classes: how many.
        norm: `batch`, `layer` or `none`.
        widths: channels of a resnet's stages.
        order: of a resnet's blocks, `standard` or `preactivation`.

    Raises:
        TaskError: there is no such network, or it cannot be made so.
    """
    if model not in get_args(Model):
        raise TaskError(f"model must be one of {', '.join(get_args(Model))}, but is {model!r}")
    if model == "cnn":
        return cnn(shape, classes, norm)
    if model == "resnet":
        return resnet(shape[0], classes, widths, norm, order)
    channels, height, width = shape
    return mlp(channels * height * width, classes, norm)
