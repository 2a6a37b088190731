"""Recordings and their features: against formulas written out, and files that are wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
from sounds import tone, write

from ist_fed.errors import TaskError
from ist_fed.tasks.mel import log_mel
from ist_fed.tasks.recordings import find_recordings, read_wav
from ist_fed.tasks.speech import WORDS

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
