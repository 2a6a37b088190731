"""Networks for images: laws at any depth, and functions said again in other words. Tables: `tests/networks.py`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ist_fed.arrays import Build, arrays_of, load_arrays
from ist_fed.axes import describe, infer
from ist_fed.errors import AxesError, TaskError
from ist_fed.models import cnn, resnet
from ist_fed.models.norm import norm_channels
from ist_fed.subnet import Merge, extract
from ist_fed.symmetry import check_symmetry

NORMS = ["batch", "layer", "none"]
norms = st.sampled_from(NORMS)
widths = st.lists(st.integers(2, 5), min_size=1, max_size=3)


def keeps_the_laws(build: Build, sizes: dict[str, int], example: Tensor, data: st.DataObject) -> None:
    """Symmetry; and a narrow network that loads what is cut out for it, computes, and merges back."""
    axes = infer(build, sizes)
    check_symmetry(build, sizes, axes, lambda model: model(example))
    units = {
        axis: torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for axis, size in sizes.items()
    }
    whole = arrays_of(build(**sizes))
    narrow = build(**{axis: len(held) for axis, held in units.items()})
    part = extract(whole, axes, units)
    load_arrays(narrow, part)
    assert bool(narrow.double()(example).isfinite().all())
    merge = Merge(whole, axes)
    merge.add(units, part)
    assert all(torch.equal(array, whole[name]) for name, array in merge.result().items())


@settings(max_examples=20)
@given(widths, widths | st.just([]), norms, st.sampled_from(["flatten", "global"]), st.data())
def test_a_cnn_of_any_depth(conv: list[int], hidden: list[int], norm: str, pooling: str, data: st.DataObject) -> None:
    sizes = {f"conv{i}": width for i, width in enumerate(conv, 1)} | {f"hidden{i}": w for i, w in enumerate(hidden, 1)}
    example = torch.rand(3, 2, 9, 6, dtype=torch.float64)
    keeps_the_laws(cnn((2, 9, 6), 3, norm, pooling), sizes, example, data)


@settings(max_examples=15)
@given(st.integers(1, 3), widths, norms, st.sampled_from(["standard", "preactivation"]), st.integers(2, 5), st.data())
def test_a_resnet_of_any_depth(
    each: int, stream: list[int], norm: str, order: str, mid: int, data: st.DataObject
) -> None:
    sizes = {f"mid{i}": mid + i % 2 for i in range(1, each * len(stream) + 1)}
    build = resnet(2, 3, stream, norm, order)
    keeps_the_laws(build, sizes, torch.rand(3, 2, 8, 8, dtype=torch.float64), data)
    for name, dims in infer(build, sizes).items():  # the stream is whole: only a block's inside is cut
        assert sum(dim.axis is not None for dim in dims) <= 1, f"{name} {describe(dims)}"


def test_an_image_is_halved_while_it_is_large_enough() -> None:
    for side, left in ((8, 2), (7, 3), (4, 2), (3, 3), (32, 2)):
        build, sizes = cnn((1, side, side), 10), {f"conv{i}": 3 for i in range(1, 6)}
        assert build(**sizes)[-1].in_features == 3 * left**2


def test_as_many_parameters_as_the_paper_says() -> None:
    """ResNet-20 for CIFAR-10: 0.27 M (He et al., table 6), whose shortcuts have none; ours are 2 projections."""
    sizes = {f"mid{i}": width for i, width in enumerate([16] * 3 + [32] * 3 + [64] * 3, 1)}
    made = sum(parameter.numel() for parameter in resnet(3, 10)(**sizes).parameters())
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert made - projections == 269_722


@pytest.mark.parametrize("norm", NORMS)
def test_a_standard_block_by_its_formula(norm: str) -> None:
    block = resnet(3, 5, (4, 6), norm)(mid1=5, mid2=7)[4]
    x = torch.rand(2, 4, 6, 6)
    inner = functional.conv2d(x, block.conv1.weight, stride=2, padding=1)
    inner = functional.conv2d(block.norm1(inner).relu(), block.conv2.weight, padding=1)
    past = block.shortcut[1](functional.conv2d(x, block.shortcut[0].weight, stride=2))
    assert torch.allclose(block(x), (block.norm2(inner) + past).relu(), atol=1e-6)


def test_a_preactivation_block_by_its_formula() -> None:
    model = resnet(3, 5, (4,), "layer", "preactivation")(mid1=5)
    block, x = model[1], torch.randn(2, 4, 6, 6)
    active = functional.group_norm(x, 1).relu()  # fresh scale and shift are one and zero
    inner = functional.group_norm(functional.conv2d(active, block.conv1.weight, padding=1), 1).relu()
    assert torch.allclose(block(x), x + functional.conv2d(inner, block.conv2.weight, padding=1), atol=1e-5)


@pytest.mark.parametrize("order", ["standard", "preactivation"])
def test_what_is_pooled_has_been_activated(order: str) -> None:
    model = resnet(3, 5, (4,), "batch", order)(mid1=5, mid2=6)
    stream = model[:-3](torch.randn(2, 3, 8, 8))
    assert bool((stream >= 0).all())
    assert torch.allclose(model[-1](stream.mean(dim=(2, 3))), model[-3:](stream), atol=1e-6)


def test_layer_norm_of_channels_is_over_all_of_them() -> None:
    x = torch.randn(3, 6, 4, 4)
    assert torch.allclose(norm_channels("layer", 6)(x), functional.layer_norm(x, x.shape[1:]), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cnn((1, 8, 8), 10, "group"), "norm must be one of"),
        (lambda: cnn((1, 8, 8), 10, pooling="max"), "pooling must be one of flatten, global, but is 'max'"),
        (lambda: resnet(3, 10, norm="group"), "norm must be one of"),
        (lambda: resnet(3, 10, order="last"), "order must be one of standard, preactivation, but is 'last'"),
        (lambda: resnet(3, 10, ()), "widths must be whole numbers, at least 1, one for each stage"),
        (lambda: resnet(3, 10, (16, 0)), "widths must be whole numbers"),
    ],
)
def test_a_factory_that_is_not_is_refused(make: object, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("build", "sizes", "said"),
    [
        (cnn((1, 8, 8), 10), {"hidden1": 4}, "the sizes of a cnn are conv1, .* but are hidden1"),
        (cnn((1, 8, 8), 10), {"conv1": 4, "width": 3}, "but are conv1, width"),
        (
            resnet(3, 10, (4, 8)),
            {"mid1": 4, "mid2": 4, "mid3": 4},
            "a multiple of 2, one for each block, but there are 3",
        ),
    ],
)
def test_sizes_of_another_network_are_refused(build: Build, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(AxesError, match=said):
        infer(build, sizes)
