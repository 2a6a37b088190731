"""The digits task: real images, split once and for all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks.digits import Digits


def keys(data: TensorDataset) -> list[bytes]:
    """Each image by its bytes and its label."""
    images, labels = data.tensors
    return [image.numpy().tobytes() + bytes([label]) for image, label in zip(images, labels.tolist(), strict=True)]


@pytest.mark.parametrize("options", [{}, {"partition": "dirichlet"}, {"partition": "dirichlet", "alpha": 5.0}])
@pytest.mark.parametrize("clients", [1, 3, 20])
def test_every_image_is_in_exactly_one_place(options: dict[str, object], clients: int) -> None:
    task = Digits(**options)
    parts = [keys(task.client_data(client, clients)) for client in range(clients)]
    everything = [key for part in (*parts, keys(task.test_data()), keys(task.calibration_data())) for key in part]
    real = load_digits()
    images = torch.tensor(real.data / 16, dtype=torch.float32)
    assert sorted(everything) == sorted(keys(TensorDataset(images, torch.tensor(real.target))))
    assert all(len(part) >= 2 for part in parts)


def test_the_split_is_fixed() -> None:
    task = Digits()
    assert [len(task.test_data()), len(task.calibration_data()), len(task.client_data(0, 1))] == [360, 256, 1181]
    for other in (Digits(partition="dirichlet", partition_seed=5), Digits(norm="layer")):
        assert keys(other.test_data()) == keys(task.test_data())
        assert keys(other.calibration_data()) == keys(task.calibration_data())
    assert task.test_data().tensors[1][:12].tolist() == FIRST_LABELS


FIRST_LABELS = load_digits().target[np.random.default_rng(0).permutation(1797)[:12]].tolist()


def test_every_class_is_tested_and_calibrated() -> None:
    for data in (Digits().test_data(), Digits().calibration_data()):
        assert set(data.tensors[1].tolist()) == set(range(10))


def test_another_process_gets_the_same_share_and_reaches_for_no_network() -> None:
    script = (
        "import socket\n"
        "def refuse(*args, **more): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from ist_fed.tasks.digits import Digits\n"
        "images, labels = Digits(partition='dirichlet', alpha=0.3).client_data(2, 7).tensors\n"
        "print((images.sum(1) * 16).int().tolist(), labels.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images, labels = Digits(partition="dirichlet", alpha=0.3).client_data(2, 7).tensors
    assert done.stdout.strip() == f"{(images.sum(1) * 16).int().tolist()} {labels.tolist()}"


def test_another_seed_deals_otherwise() -> None:
    one, other = (Digits(partition_seed=seed).client_data(0, 4) for seed in (0, 1))
    assert keys(one) != keys(other)


@pytest.mark.parametrize(("client", "clients"), [(4, 4), (-1, 4), (0, 0), (1, 1)])
def test_a_client_that_there_is_not(client: int, clients: int) -> None:
    with pytest.raises(TaskError, match=f"from 0 to below {clients}, how many there are; {client} was asked for"):
        Digits().client_data(client, clients)


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_too_many_clients(partition: str) -> None:
    with pytest.raises(TaskError, match="1181 are too few for 591 clients; use at most 590"):
        Digits(partition=partition).client_data(0, 591)


def test_pixels_are_between_zero_and_one() -> None:
    images, labels = Digits().test_data().tensors
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_its_network_can_be_cut(norm: str) -> None:
    task = Digits(norm=norm)
    assert isinstance(task, Task)
    sizes = {"hidden1": 8, "hidden2": 6}
    axes = infer(task.build, sizes, task.declared)
    images, labels = task.test_data().tensors
    batch = (images[:8].double(), labels[:8])
    check_symmetry(task.build, sizes, axes, lambda model: task.loss(model, batch))


def test_the_loss_and_the_score_of_a_known_answer() -> None:
    task = Digits()
    labels = torch.tensor([3, 1, 4])
    sure = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(sure.weight)
    with torch.no_grad():
        sure.bias.copy_(torch.nn.functional.one_hot(torch.tensor(3), 10) * 50.0)
    batch = (torch.zeros(3, 64), labels)
    assert float(task.score(sure, batch)) == pytest.approx(1 / 3)
    assert float(task.loss(sure, batch).detach()) == pytest.approx(100 / 3, rel=1e-5)


# --- A client's own file ----------------------------------------------------------------------------------------------


def test_a_clients_own_file_is_read(tmp_path: Path) -> None:
    real = load_digits()
    for images in (real.images[:40], real.data[:40], real.data[:40].astype(np.uint8)):
        np.savez(tmp_path / "mine.npz", images=images, labels=real.target[:40])
        inputs, labels = Digits().local_data(tmp_path / "mine.npz").tensors
        assert torch.equal(inputs, torch.tensor(real.data[:40] / 16, dtype=torch.float32))
        assert torch.equal(labels, torch.tensor(real.target[:40]))


GOOD, LABELS = np.zeros((4, 64)), np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": GOOD}, "'labels"),
        ({"images": GOOD, "labels": np.arange(3)}, r"float64 \(4, 64\) and \(3,\)"),
        ({"images": np.zeros((4, 63)), "labels": LABELS}, "n × 64 or n × 8 × 8"),
        ({"images": np.zeros(4), "labels": LABELS}, "n × 64 or n × 8 × 8"),
        ({"images": GOOD.astype(str), "labels": LABELS}, "must be numbers"),
        ({"images": GOOD + 17, "labels": LABELS}, "pixels from 0 to 16"),
        ({"images": GOOD * np.nan, "labels": LABELS}, "pixels from 0 to 16"),
        ({"images": GOOD, "labels": LABELS + 7}, "labels from 0 to 9"),
        ({"images": GOOD, "labels": LABELS * 1.0}, "labels from 0 to 9"),
        ({"images": np.array([[None] * 64], dtype=object), "labels": np.arange(1)}, "allow_pickle"),
    ],
)
def test_a_file_that_is_not_right_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(TaskError, match=said):
        Digits().local_data(tmp_path / "mine.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(TaskError, match=r"read from a .npz file with 'images' and 'labels'"):
        Digits().local_data(tmp_path / "mine.npz")
    with pytest.raises(TaskError, match="No such file"):
        Digits().local_data(tmp_path / "none.npz")


# --- As images --------------------------------------------------------------------------------------------------------

IMAGES = [("cnn", {"conv1": 4, "conv2": 5, "hidden1": 6}), ("resnet", {"mid1": 4, "mid2": 5})]


@pytest.mark.parametrize(("model", "sizes"), IMAGES)
def test_as_images_for_other_networks(model: str, sizes: dict[str, int], tmp_path: Path) -> None:
    task, rows = Digits(model=model), Digits()
    np.savez(tmp_path / "mine.npz", images=np.arange(256).reshape(4, 64) / 16, labels=np.arange(4))
    for ask in (
        lambda task: task.client_data(1, 5),
        lambda task: task.test_data(),
        lambda task: task.calibration_data(),
        lambda task: task.local_data(tmp_path / "mine.npz"),
    ):
        assert torch.equal(ask(task).tensors[0], ask(rows).tensors[0].view(-1, 1, 8, 8))
        assert torch.equal(ask(task).tensors[1], ask(rows).tensors[1])
    images, labels = task.test_data().tensors
    axes = infer(task.build, sizes)
    check_symmetry(task.build, sizes, axes, lambda net: task.loss(net, (images[:4].double(), labels[:4])))


def test_a_model_that_there_is_not() -> None:
    with pytest.raises(TaskError, match="model must be one of mlp, cnn, resnet, but is 'vgg'"):
        Digits(model="vgg")
