"""Residual networks for small images, cut inside their blocks."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.blocks import Branch, apart, check_blocks
from ist_fed.models.norm import Norm, check_norm, norm_channels

Order = Literal["standard", "preactivation"]


def resnet(
    channels: int, outputs: int, widths: Sequence[int] = (16, 32, 64), norm: Norm = "batch", order: Order = "standard"
) -> Build:
    """A factory of residual networks as for CIFAR: a 3×3 convolution, stages of blocks, a mean of each channel, a head.

    A block has one axis: the filters of its first convolution, with the inputs of the second that read them. The
    stream that blocks add to is whole on every client; so are the shortcuts and the head, which therefore are averaged
    over clients. There is one block for each size (`mid1`, `mid2`, …), equally many in each stage, which are a multiple
    of the stages: with widths 16, 32, 64 and 3·n sizes of its stage's width it is ResNet-(6n + 2).

    A size `block2 = 1` beside them makes the second block an axis of its own, which a client holds or not; the first of
    a stage can be one only if it leaves the stream's shape as it is.

    Args:
        channels: of an image.
        outputs: length of the output, such as the number of classes.
        widths: channels of the stream in each stage; an image is halved at the start of every stage but the first.
        norm: `batch`, `layer` or `none`.
        order: `standard` normalises after a convolution, and so absorbs that a narrow block adds less to the stream
            than it will after the merge; `preactivation` normalises before it, and does not.

    Source: He et al., CVPR 2016, section 4.2, with projections where the stream widens; He et al., ECCV 2016
    (preactivation). Cut as in Dun et al., LOFT, 2022; by whole blocks as in Dun et al., ResIST,
    UAI 2022.
    """
    check_norm(norm)
    if order not in get_args(Order):
        raise TaskError(f"order must be one of {', '.join(get_args(Order))}, but is '{order}'")
    if not widths or not all(type(width) is int and width >= 1 for width in widths):
        raise TaskError(f"widths must be whole numbers, at least 1, one for each stage, but are {list(widths)}")
    block: type[nn.Module] = _Standard if order == "standard" else _Preactivation

    def build(**sizes: int) -> nn.Module:
        sizes, blocks = apart(sizes)
        each, left = divmod(len(sizes), len(widths))
        if left or not each:
            raise TaskError(
                f"every stage has equally many blocks, so sizes must be a multiple of {len(widths)}, one for each "
                f"block, but there are {len(sizes)}"
            )
        check_blocks(blocks, [at + 1 for at in range(len(sizes)) if at == 0 or at % each])
        layers: list[nn.Module] = [_conv(channels, widths[0])]
        if order == "standard":
            layers += [norm_channels(norm, widths[0]), nn.ReLU()]
        before = widths[0]
        for number, mid in enumerate(sizes.values()):
            stage, first = divmod(number, each)
            stride = 2 if stage and not first else 1
            there = blocks.get(number + 1, 1)
            layers.append(block(before, mid, widths[stage], stride, norm) if there else nn.Identity())
            before = widths[stage]
        if order == "preactivation":
            layers += [norm_channels(norm, before), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))

    return build


def _conv(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


class _Standard(nn.Module):
    """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))`."""

    def __init__(self, before: int, mid: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(before, mid, stride=stride), norm_channels(norm, mid)
        self.conv2, self.norm2 = _conv(mid, after), norm_channels(norm, after)
        self.branch = Branch()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(_conv(before, after, 1, stride), norm_channels(norm, after))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(self.shortcut(x) + self.branch(branch))


class _Preactivation(nn.Module):
    """`shortcut(y) + conv(relu(norm(conv(y))))` of `y = relu(norm(x))`; a shortcut without weights takes `x` itself."""

    def __init__(self, before: int, mid: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm_channels(norm, before), _conv(before, mid, stride=stride)
        self.norm2, self.conv2 = norm_channels(norm, mid), _conv(mid, after)
        self.branch = Branch()
        self.shortcut = _conv(before, after, 1, stride) if stride > 1 or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        branch: Tensor = self.branch(self.conv2(functional.relu(self.norm2(self.conv1(active)))))
        return branch + (x if self.shortcut is None else self.shortcut(active))
