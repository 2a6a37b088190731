"""One second of sound as 64 × 64 log-mel features: 64 frames in time, 64 bands in pitch."""

from functools import cache

import numpy as np

RATE = 16_000
"""Samples in a second, and in a recording."""

FRAMES = BANDS = 64

_STEP = RATE // FRAMES  # 250 samples, 15.6 ms
_WINDOW = 512  # samples, 32 ms
_FFT = 1024  # the window, filled up with zeros: so that every band has a frequency in it
_LOWEST, _HIGHEST = 20.0, RATE / 2  # Hz
_FLOOR = 1e-6  # power of what is taken to be silence, 100 dB below full scale: filling up with zeros then shows little


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Log power in each band and frame, of mean 0 and deviation 1 over the recording.

    A recording is normalised by itself, so that loudness does not matter and no client need know another's statistics.
    Silence gives zeros.

    Args:
        samples: `(16000,)`, from -1 to 1.

    Returns:
        `(frames, bands)`, float32.

    Source: Stevens, Volkmann and Newman, 1937 (the mel scale), in the form of O'Shaughnessy, 1987: m = 2595 log10(1 +
    f/700).
    """
    side = (_WINDOW - _STEP) // 2
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, side), _WINDOW)[::_STEP]
    power = np.abs(np.fft.rfft(frames * _hann(), _FFT)) ** 2
    logs = np.log(power @ _bank() + _FLOOR)
    centred = logs - logs.mean()
    scaled: np.ndarray = centred / max(float(centred.std()), 1e-3)
    return scaled.astype(np.float32)


@cache
def _hann() -> np.ndarray:
    """Periodic."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)


@cache
def _bank() -> np.ndarray:
    """Weight of each frequency in each band, `(frequencies, bands)`: triangles of height 1, evenly spaced in mel."""
    edges = _hertz(np.linspace(_mel(_LOWEST), _mel(_HIGHEST), BANDS + 2))
    frequencies = np.fft.rfftfreq(_FFT, 1 / RATE)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    bank: np.ndarray = np.clip(np.minimum(rising, falling), 0, None)
    return bank


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
