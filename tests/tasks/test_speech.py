"""Speech commands: tiny recordings in the real layout, and lists and names that are wrong."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sounds import tone, write

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import load_task, recordings, speech
from ist_fed.tasks.mel import log_mel
from ist_fed.tasks.recordings import find_recordings, read_wav
from ist_fed.tasks.speech import WORDS, Speech

SPEAKERS = ["0a7c2a8d", "1b4c9b89", "2aca1e72", "39833acb", "f2a90886"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three words, five speakers; of each word one recording to test and one to validate with."""
    root = tmp_path / "data"
    for number, word in enumerate(("bed", "yes", "zero")):
        for speaker in SPEAKERS:
            write(root / word / f"{speaker}_nohash_0.wav", tone(300 * (number + 1), 15_000 + number))
    write(root / "_background_noise_" / "rain.wav", tone(50, 40_000))
    for kind, speaker in (("testing", SPEAKERS[0]), ("validation", SPEAKERS[1])):
        lines = [f"{word}/{speaker}_nohash_0.wav\n" for word in ("bed", "yes", "zero")]
        (root / f"{kind}_list.txt").write_text("".join(lines))
    return root


def task_of(folder: Path, **options: object) -> Speech:
    return Speech(path=str(folder), cache=str(folder.parent / "cache"), **options)


# --- The task ---------------------------------------------------------------------------------------------------------


def test_every_recording_is_in_one_place_and_each_speaker_with_one_client(folder: Path) -> None:
    task, found = task_of(folder), find_recordings(folder, WORDS)
    assert isinstance(task, Task)
    _, _, training = speech._split(folder)
    shares = speech._shares(folder, 3, "speaker", 0.5, 0)
    assert sorted(np.concatenate(shares).tolist()) == training.tolist()
    owners = {found.speakers[number]: client for client, share in enumerate(shares) for number in share}
    for client, share in enumerate(shares):
        assert {owners[found.speakers[number]] for number in share} <= {client}
        if len(share):
            assert len(task.client_data(client, 3)) == len(share)
        else:
            with pytest.raises(TaskError, match=f"none of the speakers falls to client {client} of 3"):
                task.client_data(client, 3)
    words = [WORDS[label] for label in task.test_data().tensors[1].tolist()]
    assert words == ["bed", "yes", "zero"]
    assert sorted(task.calibration_data().tensors[1].tolist()) == task.test_data().tensors[1].tolist()
    assert len(training) == 9


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "sorted"])
def test_dealt_out_otherwise(folder: Path, partition: str) -> None:
    task = task_of(folder, partition=partition, alpha=10.0)
    assert sum(len(task.client_data(client, 3)) for client in range(3)) == 9


def test_features_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> torch.Tensor:
        speech._features.cache_clear()
        return task_of(folder).test_data().tensors[0]

    made = read()
    expected = torch.from_numpy(log_mel(read_wav(folder / "bed" / f"{SPEAKERS[0]}_nohash_0.wav")))
    assert torch.allclose(made[0].view(64, 64), expected, atol=1e-2)
    monkeypatch.setattr(recordings, "read_wav", lambda path: pytest.fail("read again"))
    assert torch.equal(read(), made)
    monkeypatch.undo()
    (kept,) = (folder.parent / "cache").iterdir()
    for damaged in (b"", kept.read_bytes()[:5000], b"\x80\x04pickled"):
        kept.write_bytes(damaged)
        assert torch.equal(read(), made)
        assert len(kept.read_bytes()) > 15 * 4096 * 2
    os.utime(folder / "bed" / f"{SPEAKERS[0]}_nohash_0.wav", (1, 1))  # a recording that was changed
    read()
    assert len(list((folder.parent / "cache").iterdir())) == 2


def test_nobody_else_may_read_what_was_made_of_recordings(folder: Path) -> None:
    before = os.umask(0)
    try:
        task_of(folder).local_data(folder)
    finally:
        os.umask(before)
    cache = folder.parent / "cache"
    (kept,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_cache_that_cannot_be_written_is_no_obstacle(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder.parent / "cache").write_text("a file where a folder should be")
    assert len(task_of(folder).test_data()) == 3
    assert "features are not kept for the next time" in caplog.text


def test_a_clients_own_folder(folder: Path) -> None:
    task = task_of(folder)
    (folder / "testing_list.txt").unlink()
    inputs, labels = task.local_data(folder).tensors
    assert inputs.shape == (15, 4096)
    assert sorted(set(labels.tolist())) == [WORDS.index(word) for word in ("bed", "yes", "zero")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "bed/0a7c2a8d_nohash_0.wav\nbed/other.wav\n",
            r"line 2 of '.*testing_list.txt' names the recording 'bed/other.wav'",
        ),
        ("../../etc/passwd\n", r"line 1 of .* which is not in"),
        ("\n", "must list recordings, but is empty"),
        (None, "must list recordings, but cannot be read: .*No such file"),
    ],
)
def test_a_list_that_is_not_right_is_refused(folder: Path, text: str | None, said: str) -> None:
    path = folder / "testing_list.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(TaskError, match=said):
        task_of(folder).test_data()


def test_a_recording_that_is_wrong_is_named(folder: Path) -> None:
    write(folder / "yes" / f"{SPEAKERS[2]}_nohash_0.wav", tone(440), rate=8000)
    with pytest.raises(TaskError, match=re.escape(f"'{folder / 'yes' / SPEAKERS[2]}_nohash_0.wav' has")):
        task_of(folder).client_data(0, 1)


def test_a_name_without_a_speaker_is_dealt_out_only_otherwise(folder: Path) -> None:
    write(folder / "yes" / "mine.wav", tone(440))
    with pytest.raises(TaskError, match=r"the name of '.*mine.wav' says none"):
        task_of(folder).client_data(0, 1)
    assert len(task_of(folder, partition="iid").client_data(0, 1)) == 10


def test_without_data_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IST_FED_DATA", raising=False)
    with pytest.raises(
        TaskError, match=r"Google Speech Commands must be brought along, .*get speech_commands_v0.02.tar.gz"
    ):
        Speech().test_data()


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("mlp", {"hidden1": 5}), ("cnn", {"conv1": 4, "conv2": 5}), ("resnet", {"mid1": 4, "mid2": 5})],
)
def test_its_networks_can_be_cut(folder: Path, model: str, sizes: dict[str, int]) -> None:
    task = task_of(folder, model=model)
    inputs, labels = task.test_data().tensors
    axes = infer(task.build, sizes)
    check_symmetry(task.build, sizes, axes, lambda net: task.loss(net, (inputs[:1].double(), labels[:1])))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "word"}, "partition must be one of speaker, iid, dirichlet, sorted, but is 'word'"),
        ({"cache": 1}, "cache must be a folder's, in quotes, but is 1"),
        ({"alpha": 0}, "alpha must be a positive number"),
        ({"model": "lstm"}, "model must be one of"),
    ],
)
def test_an_option_that_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task("speech", options)
