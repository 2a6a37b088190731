"""CIFAR's binary version: small files of the real format, and such as are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ist_fed import Task, infer
from ist_fed.arrays import arrays_of
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import load_task
from ist_fed.tasks.cifar import Cifar

EACH = 12  # images of a file
SIZES = {"mid1": 4, "mid2": 5, "mid3": 6}


def record(label: int, seed: int, coarse: int | None = None) -> bytes:
    """As the data set's page says: the label, then red, green and blue of 32 × 32 pixels, row by row."""
    head = [label] if coarse is None else [coarse, label]
    return bytes(head) + np.random.default_rng(seed).integers(0, 256, 3072, dtype=np.uint8).tobytes()


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for file, name in enumerate(names):
        content = (record(i % 10, EACH * file + i) for i in range(EACH))
        (folder / name).write_bytes(b"".join(content))
    return folder


def rows(*parts: TensorDataset) -> list[bytes]:
    return sorted(
        image.numpy().tobytes() + bytes([label])
        for part in parts
        for image, label in zip(part.tensors[0], part.tensors[1].tolist(), strict=True)
    )


@pytest.mark.parametrize("partition", ["iid", "sorted"])
def test_every_image_is_in_exactly_one_place(ten: Path, partition: str) -> None:
    task = Cifar(path=str(ten), partition=partition)
    assert isinstance(task, Task)
    written = [record(i % 10, EACH * file + i) for file in range(6) for i in range(EACH)]
    everything = sorted(row[1:] + row[:1] for row in written)
    assert rows(*(task.client_data(i, 4) for i in range(4)), task.calibration_data(), task.test_data()) == everything
    assert rows(task.test_data()) == sorted(row[1:] + row[:1] for row in written[-EACH:])
    assert len(task.calibration_data()) == 5 * EACH // 10


def test_pixels_lie_as_the_format_says(ten: Path) -> None:
    image, label = Cifar(path=str(ten)).test_data()[7]
    raw = (ten / "test_batch.bin").read_bytes()[7 * 3073 :]
    assert (image.dtype, int(label)) == (torch.uint8, raw[0])
    for channel, row, column in ((0, 0, 1), (1, 5, 0), (2, 31, 31)):
        assert int(image[channel, row, column]) == raw[1 + 1024 * channel + 32 * row + column]


def test_a_hundred_classes_are_the_fine_ones(tmp_path: Path) -> None:
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(b"".join(record(90 + i, i, coarse=i) for i in range(10)))
    task = Cifar(path=str(tmp_path), classes=100)
    assert task.test_data().tensors[1].tolist() == list(range(90, 100))
    assert task.build(**SIZES)(task.test_data().tensors[0]).shape == (10, 100)


def test_the_environment_says_where(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IST_FED_DATA", str(ten.parent))
    assert rows(Cifar().test_data()) == rows(Cifar(path=str(ten)).test_data())


@pytest.mark.parametrize("options", [{}, {"classes": 100}])
def test_without_data_it_says_what_to_do(
    options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IST_FED_DATA", raising=False)
    said = rf"CIFAR-{options.get('classes', 10)} must be brought along, but neither .* is set; get the binary version"
    for ask in (
        Cifar(**options).test_data,
        Cifar(**options).calibration_data,
        lambda: Cifar(**options).client_data(0, 2),
    ):
        with pytest.raises(TaskError, match=said):
            ask()
    with pytest.raises(TaskError, match=r"but there is no folder '.*nowhere'"):
        Cifar(path=str(tmp_path / "nowhere"), **options).test_data()
    monkeypatch.setenv("IST_FED_DATA", str(tmp_path))
    with pytest.raises(TaskError, match=r"but there is no folder '.*cifar-10"):
        Cifar(**options).test_data()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes, 0 after 0 whole records"),
        (record(1, 0) + b"x", "has 3074 bytes, 1 after 1 whole records; it is cut off"),
        (record(1, 0)[:-1], "has 3072 bytes, 3072 after 0"),
        (record(3, 0) + record(10, 1), r"labels of CIFAR-10 are 0 to 9, but record 1 \(from 0\) of '.*' says 10"),
    ],
)
def test_a_file_that_is_not_right_is_refused(ten: Path, content: bytes, said: str) -> None:
    for name in ("test_batch.bin", "data_batch_3.bin"):
        (ten / name).write_bytes(content)
    task = Cifar(path=str(ten))
    for ask, name in ((task.test_data, "test_batch"), (lambda: task.client_data(0, 2), "data_batch_3")):
        with pytest.raises(TaskError, match=said) as caught:
            ask()
        assert f"{ten / name}.bin" in str(caught.value)


def test_a_file_that_is_missing_is_named(ten: Path) -> None:
    (ten / "data_batch_4.bin").unlink()
    with pytest.raises(TaskError, match=r"data_batch_4.bin', which cannot be read: No such file"):
        Cifar(path=str(ten)).client_data(0, 2)


def test_a_clients_own_files(ten: Path) -> None:
    task = Cifar()
    assert rows(task.local_data(ten / "test_batch.bin")) == rows(Cifar(path=str(ten)).test_data())
    assert len(task.local_data(ten)) == 6 * EACH
    (ten.parent / "empty").mkdir()
    with pytest.raises(TaskError, match="there is none in"):
        task.local_data(ten.parent / "empty")
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        task.local_data(ten / "none.bin")


# --- Its network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, SIZES),
        ({"order": "preactivation", "widths": [4, 6], "norm": "layer"}, {"mid1": 4, "mid2": 6}),
        ({"model": "cnn"}, {"conv1": 4, "conv2": 5, "hidden1": 6}),
        ({"model": "mlp"}, {"hidden1": 6}),
    ],
)
def test_its_network_can_be_cut_and_constants_do_not_travel(
    ten: Path, options: dict[str, object], sizes: dict[str, int]
) -> None:
    task = Cifar(path=str(ten), **options)
    axes = infer(task.build, sizes, task.declared)
    images, labels = task.test_data().tensors
    check_symmetry(task.build, sizes, axes, lambda model: task.loss(model, (images[:2], labels[:2])))
    assert not any(name.startswith("0.") for name in arrays_of(task.build(**sizes)))


def test_the_first_layer_makes_numbers_of_bytes() -> None:
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    made = Cifar().build(**SIZES)[0](image)
    expected = [(0 - 0.4914) / 0.2470, (128 / 255 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616]
    assert made[0, :, 3, 4].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 20}, "classes must be 10 or 100, but is 20"),
        ({"path": 3}, "path must be a folder's, in quotes, but is 3"),
        ({"model": "vgg"}, "model must be one of mlp, cnn, resnet, but is 'vgg'"),
        ({"widths": []}, "widths must be whole numbers"),
        ({"order": "post"}, "order must be one of standard, preactivation"),
        ({"partition": "speaker"}, "partition must be one of iid, dirichlet, sorted, but is 'speaker'"),
    ],
)
def test_an_option_that_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task("cifar", options)
