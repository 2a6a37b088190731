"""Plain convolutional networks."""

from typing import Literal, get_args

from torch import nn

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.norm import Norm, check_norm, norm_channels, norm_features

Pooling = Literal["flatten", "global"]


def cnn(shape: tuple[int, int, int], outputs: int, norm: Norm = "batch", pooling: Pooling = "flatten") -> Build:
    """A factory of `Conv 3×3 → norm → ReLU → halve` layers, hidden linear layers, and a linear head.

    The name of a size says what its layer is: `conv1`, `conv2`, … are the channels of convolutions, in their order, and
    `hidden1`, … the units of linear layers behind them. An image is halved after a convolution as long as it is at
    least 4 pixels high and wide, so that there may be more convolutions than halvings.

    Args:
        shape: channels, height and width of an image.
        outputs: length of the output, such as the number of classes.
        norm: `batch`, `layer` or `none`. With a norm the layers before it have no bias: the norm's own takes its place.
        pooling: what the linear layers see of an image: all that is left of it (`flatten`), where one unit of the last
            convolution owns a block of their inputs, or the mean of each channel (`global`).
    """
    check_norm(norm)
    if pooling not in get_args(Pooling):
        raise TaskError(f"pooling must be one of {', '.join(get_args(Pooling))}, but is '{pooling}'")

    def build(**sizes: int) -> nn.Module:
        channels, hidden = _kinds(sizes)
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=norm == "none"), norm_channels(norm, after)]
            layers.append(nn.ReLU())
            if min(height, width) >= 4:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            before = after
        if pooling == "global":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        layers.append(nn.Flatten())
        before *= height * width
        for after in hidden:
            layers += [nn.Linear(before, after, bias=norm == "none"), norm_features(norm, after), nn.ReLU()]
            before = after
        return nn.Sequential(*layers, nn.Linear(before, outputs))

    return build


def _kinds(sizes: dict[str, int]) -> tuple[list[int], list[int]]:
    """Channels of the convolutions, and units of the linear layers behind them."""
    channels = [units for axis, units in sizes.items() if axis.startswith("conv")]
    hidden = [units for axis, units in sizes.items() if axis.startswith("hidden")]
    if not channels or len(channels) + len(hidden) < len(sizes):
        raise TaskError(
            f"the sizes of a cnn are conv1, conv2 and so on, at least one, and hidden1 and so on, but are "
            f"{', '.join(sizes) or 'none'}"
        )
    return channels, hidden
