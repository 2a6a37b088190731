"""Where to compute, and how much memory there is for it."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ist_fed.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU if there is one.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        TrainingError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device '{name}' cannot be used here: {str(error).splitlines()[0]}; "
            f"say 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
        ) from error
    return device


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Let matrix products round what they multiply to 10 bits, while inside.

    Raises:
        TrainingError: it is no GPU that does.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise TrainingError(
            f"precision 'tf32' is for NVIDIA GPUs from Ampere on, but the device is '{device}'; use 'bf16' or 'float32'"
        )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def shares_memory(device: torch.device) -> bool:
    """Whether what is on its way to or from the device lies in the same memory as what is on it."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_properties(device).is_integrated)  # as a Jetson's
    return True


# --- Bytes ------------------------------------------------------------------------------------------------------------

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def parse_bytes(text: str) -> int:
    """An amount of memory: `2GiB`, `512 MiB`, `1.5GB`, or a plain number of bytes.

    Raises:
        TrainingError: it is none, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    unit = {"": 1, **{unit.lower(): size for unit, size in _UNITS.items()}}.get(found[2].lower()) if found else None
    amount = int(float(found[1]) * unit) if found and unit else 0
    if amount < 1:
        raise TrainingError(
            f"an amount of memory is written like 2GiB, 512MiB or 2GB, and is positive, but is {text!r}"
        )
    return amount


def format_bytes(amount: int) -> str:
    """The same the other way round: `1.5 GiB`."""
    unit = [unit for unit in ("B", "KiB", "MiB", "GiB", "TiB") if _UNITS[unit] <= max(1, amount)][-1]
    return f"{amount / _UNITS[unit]:.4g} {unit}"


# --- What is free -----------------------------------------------------------------------------------------------------

_M_MMAP_THRESHOLD = -3  # malloc.h


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that this process could still take: of the GPU's memory, else of the system's and of its control groups'.

    Args:
        device: whose memory is meant.
        root: where `proc` and `sys` lie.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next array
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return max(0, min((_available(root), *_left_by_groups(root))))


def return_freed_memory() -> None:
    """Let the C library give arrays back to the system as soon as they are freed, in the whole process.

    glibc keeps freed blocks of up to 32 MiB for later, in holes that the next array need not fit: a process took up to
    twice the memory of the arrays that lived.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def trim_memory() -> None:
    """Let the C library give back what lies unused between what is used: after a large transfer, tens of megabytes."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _available(root: Path) -> int:
    try:
        return 1024 * _table(root / "proc/meminfo")["MemAvailable:"]
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves; a group's limit also binds those within it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):  # version 1
            mount, prefix = root / "sys/fs/cgroup/memory", "total_"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # A container may see its group as the root, and still be told the path that it has outside.
        for group in (mount.joinpath(*Path(path).parts[1:depth]) for depth in range(1, len(Path(path).parts) + 1)):
            with suppress(OSError, ValueError, KeyError):  # there is none, or its limit is "max"
                stat = _table(group / "memory.stat")
                files = stat[f"{prefix}active_file"] + stat[f"{prefix}inactive_file"]  # given up when memory is short
                yield int((group / limit).read_text()) - int((group / used).read_text()) + files


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) >= 2}
