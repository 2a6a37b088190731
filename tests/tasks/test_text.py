"""Texts: every file in one place, the same for everyone, and what is no text is said."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks.text import Text

SIZES = {"heads0": 2, "ffn0": 6}


def folder(path: Path, files: int = 30) -> Path:
    """Files that each hold one letter only, so that an example says where it is from."""
    for number in range(files):
        inner = path / f"d{number % 3}"
        inner.mkdir(exist_ok=True)
        (inner / f"f{number}.txt").write_text(chr(ord("A") + number) * 40)
    (path / "other.md").write_text("not asked for" * 100)
    (path / "site-packages").mkdir()
    (path / "site-packages" / "installed.txt").write_text("not of it" * 100)
    return path


def text(path: Path, **options: object) -> Text:
    return Text(**{"path": str(path), "suffix": ".txt", "context": 8, "vocabulary": "bytes", **options})


def letters(data: TensorDataset) -> set[str]:
    return {chr(token) for part in data.tensors for token in part.flatten().tolist()}


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_every_file_is_in_exactly_one_place(tmp_path: Path, clients: int) -> None:
    task = text(folder(tmp_path))
    parts = [letters(task.client_data(client, clients)) for client in range(clients)] + [letters(task.test_data())]
    everything = sorted(letter for part in parts for letter in part)
    assert everything == [chr(ord("A") + number) for number in range(30)]


def test_the_test_is_of_the_files_whose_hash_says_so(tmp_path: Path) -> None:
    tested = {
        chr(ord("A") + number)
        for number in range(30)
        if sha256(f"d{number % 3}/f{number}.txt".encode()).digest()[-1] % 10 == 0
    }
    assert tested
    assert letters(text(folder(tmp_path)).test_data()) == tested


def test_an_example_is_what_stands_there_and_what_comes_next(tmp_path: Path) -> None:
    said = "def f(x):\n\treturn x + 1  # é\n"
    (tmp_path / "mine.py").write_text(said)
    before, after = Text(context=5).local_data(tmp_path / "mine.py").tensors
    raw = said.encode()
    assert before.shape == after.shape == ((len(raw) - 1) // 5, 5)
    shown = "\n\t" + "".join(map(chr, range(32, 127)))
    wanted = [shown.index(chr(byte)) if chr(byte) in shown else 97 for byte in raw]
    assert before.flatten().tolist() == wanted[: before.numel()]
    assert after.flatten().tolist() == wanted[1 : before.numel() + 1]
    assert Text(context=5, vocabulary="bytes").local_data(tmp_path).tensors[0].flatten().tolist() == list(raw)[:30][:25]


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    task = text(folder(tmp_path), characters=50, test_characters=17)
    assert [len(task.client_data(client, 2)) for client in range(2)] == [6, 6]
    assert len(task.test_data()) == 2
    assert len(task.local_data(tmp_path)) == 6


def test_by_default_it_reads_the_standard_library_and_the_same_each_time() -> None:
    task = Text(characters=20_000, test_characters=5_000)
    parts = [task.client_data(client, 3) for client in range(3)] + [task.test_data()]
    again = [Text(characters=20_000).client_data(client, 3) for client in range(3)]
    assert [len(part) for part in parts] == [312, 312, 312, 78]
    for one, other in zip(parts, again, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))
    assert len({bytes(part.tensors[0][:50].flatten().tolist()) for part in parts}) == 4
    common = torch.bincount(parts[0].tensors[0].flatten(), minlength=98)
    assert int(common.argmax()) == 2  # of Python's characters the blank
    assert int(common[97]) < 200


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("tied", [True, False])
def test_its_network_can_be_cut(tmp_path: Path, norm: str, tied: bool) -> None:
    task = text(folder(tmp_path), norm=norm, tied=tied, width=6, head=4)
    assert isinstance(task, Task)
    before, after = task.test_data().tensors
    axes = infer(task.build, SIZES, task.declared)
    check_symmetry(task.build, SIZES, axes, lambda model: task.loss(model, (before[:4], after[:4])))


def test_the_loss_and_the_score_of_a_known_answer(tmp_path: Path) -> None:
    class Repeats(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 50.0 * torch.nn.functional.one_hot(ids, 256)

    task, ids = text(folder(tmp_path)), torch.tensor([[1, 1, 2, 2, 2]])
    batch = (ids[:, :-1], ids[:, 1:])
    assert float(task.score(Repeats(), batch)) == 3 / 4
    assert float(task.loss(Repeats(), batch)) == pytest.approx(50 / 4, rel=1e-5)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vocabulary": "words"}, "vocabulary must be one of ascii, bytes, but is 'words'"),
        ({"context": 0}, "context must be a whole number, at least 1, but is 0"),
        ({"characters": 1e5}, "characters must be a whole number, at least 1, but is 100000.0"),
        ({"head": 5}, "head even"),
        ({"norm": "batch"}, "norm must be one of"),
    ],
)
def test_options_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        Text(**options)


def test_folders_that_hold_no_text(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is none at '.*none'; name one in options.path"):
        text(tmp_path / "none").client_data(0, 1)
    with pytest.raises(TaskError, match=r"files named \*.txt, but in '.*' there are none; see options.suffix"):
        text(tmp_path).test_data()
    with pytest.raises(TaskError, match="there are none"):
        text(tmp_path).local_data(tmp_path)


def test_a_binary_file_is_named_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    with pytest.raises(TaskError, match=r"no zero byte, but '.*image.txt' has one at byte 8: it is no text, or UTF-16"):
        text(tmp_path).local_data(tmp_path)


@pytest.mark.parametrize("content", ["", "few", "12345678"])
def test_too_little_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "short.txt").write_text(content)
    with pytest.raises(TaskError, match=f"8 characters and one to come, but '.*' has only {len(content)}"):
        text(tmp_path).local_data(tmp_path)


def test_more_clients_than_files(tmp_path: Path) -> None:
    task = text(folder(tmp_path, files=12))
    with pytest.raises(TaskError, match="every client needs a file of its own, but in"):
        task.client_data(0, 13)
    with pytest.raises(TaskError, match="from 0 to below 2"):
        task.client_data(2, 2)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TaskError, match=r"the text '.*gone.txt' cannot be read: No such file"):
        text(tmp_path).local_data(tmp_path)
