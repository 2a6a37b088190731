"""A folder of recorded words, as Google Speech Commands lays them out, and their features, kept on disk once made."""

import hashlib
import logging
import os
import re
import wave
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ist_fed.errors import RunError, TaskError, nearest
from ist_fed.files import write_atomically
from ist_fed.tasks.mel import BANDS, FRAMES, RATE, log_mel

logger = logging.getLogger("ist_fed.task")

FEATURES = FRAMES * BANDS

_MADE_BY = "1"  # changed with whatever changes the features, so that old ones are not read
_NAME = re.compile(r"([0-9A-Za-z]+)_nohash_\d+\.wav")


@dataclass(frozen=True)
class Recordings:
    """Recordings in one folder, in the order of their names.

    Args:
        folder: holds a folder for each word.
        names: `word/speaker_nohash_number.wav` of each.
        labels: number of each one's word.
        speakers: of each, as its name gives it; empty where a name gives none.
    """

    folder: Path
    names: tuple[str, ...]
    labels: np.ndarray
    speakers: tuple[str, ...]


def find_recordings(folder: Path, words: tuple[str, ...]) -> Recordings:
    """List the recordings of a folder; folders whose name begins with `_` or `.` are none of words.

    Raises:
        TaskError: there is no recording, or a folder of no known word.
    """
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        folders = [name for name in inside if name[0] not in "._"]
        for name in folders:
            if name not in words:
                raise TaskError(
                    f"a folder of recordings holds a folder for each word, but '{folder}' has '{name}', which is none "
                    f"of the {len(words)} words{nearest(name, list(words))}"
                )
        names = [f"{word}/{entry}" for word in folders for entry in sorted(os.listdir(folder / word)) if _is_wav(entry)]
    except OSError as error:
        raise TaskError(f"recordings are read from the folder '{folder}', which is not: {error.strerror}") from error
    if not names:
        raise TaskError(
            f"'{folder}' must hold a folder for each word with .wav files in it, such as "
            f"'{words[0]}/0a7c2a8d_nohash_0.wav', but there is none"
        )
    labels = np.array([words.index(name.partition("/")[0]) for name in names], dtype=np.int64)
    matches = (_NAME.fullmatch(name.partition("/")[2]) for name in names)
    return Recordings(folder, tuple(names), labels, tuple(match[1] if match else "" for match in matches))


def _is_wav(name: str) -> bool:
    return name.endswith(".wav") and not name.startswith(".")


def read_list(folder: Path, name: str, names: dict[str, int]) -> list[int]:
    """The recordings that a list names, a line each, by their place in `names`.

    Raises:
        TaskError: it cannot be read, names none, or one that is not there.
    """
    path = folder / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"'{path}' must list recordings, but cannot be read: {error}; unpack the data again") from error
    listed = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and line.strip() not in names:
            raise TaskError(
                f"line {number} of '{path}' names the recording '{line.strip()[:80]}', which is not in '{folder}'; "
                f"unpack the data again"
            )
        if line.strip():
            listed.append(names[line.strip()])
    if not listed:
        raise TaskError(f"'{path}' must list recordings, but is empty; unpack the data again")
    return listed


def read_wav(path: Path) -> np.ndarray:
    """One second of sound, from -1 to 1, `(16000,)`; a shorter recording is followed by silence.

    Raises:
        TaskError: it is not at most a second of 16 kHz, 16 bit, one channel, or is cut off.
    """
    try:
        with wave.open(str(path), "rb") as file:
            kind = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            promised, data = file.getnframes(), file.readframes(min(file.getnframes(), RATE + 1))
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise TaskError(f"'{path}' must be a .wav file, but cannot be read: {error or 'it is cut off'}") from error
    if kind != (1, 16, RATE):
        raise TaskError(
            f"a recording has 1 channel of 16 bits at {RATE} Hz, but '{path}' has {kind[0]} of {kind[1]} bits at "
            f"{kind[2]} Hz; convert it"
        )
    if not 1 <= promised <= RATE:
        raise TaskError(f"a recording is at most 1 s long, {RATE} samples, but '{path}' has {promised}; cut it")
    if len(data) != 2 * promised:
        raise TaskError(f"'{path}' is cut off: it has {len(data) // 2} of {promised} samples")
    samples = np.frombuffer(data, dtype="<i2") / 32768
    return np.pad(samples, (0, RATE - promised))


def features_of(recordings: Recordings, cache: Path) -> np.ndarray:
    """Log-mel features of every recording, `(recordings, 4096)`, float16, from the cache if they are there.

    Args:
        recordings: whose.
        cache: folder to keep them in, 8 kB a recording. They are known by the names, sizes and times of the
            recordings; where it cannot be written they are made anew next time.

    Raises:
        TaskError: a recording cannot be read.
    """
    kept = cache / f"speech-{_fingerprint(recordings)}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged: it is made anew
        found: np.ndarray = np.load(kept, mmap_mode="r", allow_pickle=False)
        if found.shape == (len(recordings.names), FEATURES) and found.dtype == np.float16:
            return found
    logger.info("making features of %d recordings in '%s'", len(recordings.names), recordings.folder)
    head = BytesIO()
    shape = (len(recordings.names), FEATURES)
    np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
    whole = bytearray(head.getbuffer().nbytes + 2 * shape[0] * shape[1])  # the file; the features are made in place
    whole[: head.tell()] = head.getvalue()
    features = np.frombuffer(whole, dtype="<f2", offset=head.tell()).reshape(shape)
    for number, name in enumerate(recordings.names):
        features[number] = log_mel(read_wav(recordings.folder / name)).ravel()
    _keep(kept, whole)
    return features


def _keep(path: Path, data: bytearray) -> None:
    """Several processes may do so at once, each in a folder of its own until it is whole. Like the recordings, features
    may be private, so nobody else may read them."""
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            own = Path(folder) / path.name
            write_atomically(own, data)
            own.chmod(0o600)
            own.replace(path)
    except (OSError, RunError) as error:
        logger.warning("features are not kept for the next time: %s", error)


def _fingerprint(recordings: Recordings) -> str:
    digest = hashlib.sha256(_MADE_BY.encode())
    for name in recordings.names:
        try:
            about = (recordings.folder / name).stat()
        except OSError as error:
            raise TaskError(f"'{recordings.folder / name}' cannot be read: {error.strerror}") from error
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]
