"""Speech commands: tiny recordings in the real layout, features against formulas, and files that are wrong."""

import math
import os
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import load_task, recordings, speech
from ist_fed.tasks.mel import log_mel
from ist_fed.tasks.recordings import find_recordings, read_wav
from ist_fed.tasks.speech import WORDS, Speech

SPEAKERS = ["0a7c2a8d", "1b4c9b89", "2aca1e72", "39833acb", "f2a90886"]


def write(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def tone(hertz: float, samples: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / 16_000)


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


# --- Features ---------------------------------------------------------------------------------------------------------


def by_formula(samples: np.ndarray, frame: int, band: int) -> float:
    """Log power of one band in one frame: the Fourier sum and the triangle written out."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    low, high = mel(20), mel(8000)
    edges = [700 * (10 ** ((low + (high - low) * i / 65) / 2595) - 1) for i in range(band, band + 3)]
    total = 0.0
    for k in range(513):
        hertz = k * 16_000 / 1024
        if edges[0] < hertz <= edges[1]:
            weight = (hertz - edges[0]) / (edges[1] - edges[0])
        elif edges[1] < hertz < edges[2]:
            weight = (edges[2] - hertz) / (edges[2] - edges[1])
        else:
            continue
        real = imaginary = 0.0
        for n in range(512):
            at = 250 * frame - 131 + n
            value = samples[at] if 0 <= at < 16_000 else 0.0
            value *= math.sin(math.pi * n / 512) ** 2
            real += value * math.cos(2 * math.pi * k * n / 1024)
            imaginary += value * math.sin(2 * math.pi * k * n / 1024)
        total += weight * (real**2 + imaginary**2)
    return math.log(total + 1e-6)


def test_features_are_those_of_the_formula() -> None:
    """Up to the recording's own mean and deviation, which cancel in a ratio of differences."""
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000) * np.linspace(0.1, 1, 16_000)
    made = log_mel(samples)
    places = [(0, 3), (17, 0), (40, 25), (63, 40)]
    expected = np.array([by_formula(samples, frame, band) for frame, band in places])
    found = np.array([float(made[place]) for place in places])
    assert np.allclose(
        (found - found[0]) / (found[1] - found[0]), (expected - expected[0]) / (expected[1] - expected[0])
    )


def test_a_tone_is_in_its_band() -> None:
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), 66) / 2595) - 1)
    for hertz in (100, 440, 1000, 3000, 7000):
        loudest = np.bincount(log_mel(tone(hertz)).argmax(axis=1)).argmax()
        assert edges[loudest] <= hertz <= edges[loudest + 2]


def test_features_are_of_mean_zero_whatever_the_loudness_and_silence_is_zero() -> None:
    loud = log_mel(np.random.default_rng(2).normal(0, 0.3, 16_000))
    assert (abs(loud.mean()) < 1e-5, loud.std()) == (True, pytest.approx(1, abs=1e-4))
    assert np.abs(log_mel(0.01 * np.random.default_rng(2).normal(0, 0.3, 16_000)) - loud).max() < 0.1
    assert np.array_equal(log_mel(np.zeros(16_000)), np.zeros((64, 64), dtype=np.float32))


# --- Recordings -------------------------------------------------------------------------------------------------------


def test_samples_are_read_back_and_filled_up_with_silence(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone(440, 12_000))
    read = read_wav(tmp_path / "a.wav")
    assert np.allclose(read[:12_000], tone(440, 12_000), atol=2 / 32768)
    assert read.shape == (16_000,)
    assert not read[12_000:].any()


@pytest.mark.parametrize(
    ("options", "samples", "said"),
    [
        (
            {"rate": 8000},
            8000,
            r"1 channel of 16 bits at 16000 Hz, but '.*a.wav' has 1 of 16 bits at 8000 Hz; convert it",
        ),
        ({"channels": 2}, 8000, "has 2 of 16 bits at 16000 Hz"),
        ({"width": 1}, 8000, "has 1 of 8 bits"),
        ({}, 16_001, "at most 1 s long, 16000 samples, but .* has 16001; cut it"),
        ({}, 0, "but .* has 0"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, options: dict[str, int], samples: int, said: str) -> None:
    write(tmp_path / "a.wav", tone(440, samples), **options)
    with pytest.raises(TaskError, match=said):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("keep", "said"), [(0, "cannot be read"), (20, "cannot be read"), (2044, "is cut off: it has 1000 of 4000 samples")]
)
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: int, said: str) -> None:
    write(tmp_path / "a.wav", tone(440, 4000))
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:keep])
    with pytest.raises(TaskError, match=said):
        read_wav(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [b"text, no sound", b"RIFF\x00\x00\x00\x00AVI ", b"\0" * 100])
def test_what_is_no_wav_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(TaskError, match=r"a.wav' must be a .wav file, but cannot be read"):
        read_wav(tmp_path / "a.wav")


def test_a_folder_of_no_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="must hold a folder for each word"):
        find_recordings(tmp_path, WORDS)
    with pytest.raises(TaskError, match=r"are read from the folder '.*none', which is not"):
        find_recordings(tmp_path / "none", WORDS)
    write(tmp_path / "zeroes" / "a.wav", tone(440))
    with pytest.raises(TaskError, match="has 'zeroes', which is none of the 35 words; did you mean 'zero'"):
        find_recordings(tmp_path, WORDS)


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
