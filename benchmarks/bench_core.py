"""How fast the core is: cutting and merging, as fractions of the time it takes to copy the memory they must touch.

    python benchmarks/bench_core.py

One 4096 × 4096 float32 matrix is cut into n groups by rows, by columns, and by both (a block, as between two hidden
layers). What is measured and what it is compared with take turns in one run, on matrices that together are larger than
the cache and come round in turn. Numbers are of the thread's processor time, which is its wall time on an idle machine:
medians, and beside them the fractions of the best runs, which another process that used the memory has disturbed least.
Freed memory is kept by the allocator, so that neither side pays for the kernel clearing new pages, which would be most
of the time of both.

Two things are timed besides `extract`. `merge` is a whole round: `Merge`, n times `add`, and `result`, which makes one
new wide matrix. `write` is the indexed write of one part alone, into a matrix that is there already. What must be
touched: of rows the slice; of columns the matrix, since a cache line holds sixteen neighbours; of a block the rows it
lies in. A merge must touch that n times and clone the matrix; the last lines of the table compare it with the least
anything could do, to clone the matrix and copy n slices that lie in one piece.
"""

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import parse, sizes_of
from ist_fed.places import places_of, write
from ist_fed.rules import Disjoint, Node
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract

RESULTS = Path(__file__).parent / "results"
WIDTH = 4096
GROUPS = (2, 4, 8)
REPEATS = 21
SLICES = {"rows": "out .", "columns": ". in", "block": "out in"}
TARGETS = {"rows": 0.7, "columns": 1.0, "block": 0.5}
TOUCHED = {"rows": "the slice", "columns": "the matrix", "block": "the rows it lies in"}

Work = Callable[[Tensor], object]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    results = {"machine": machine(), "core": core()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "core.json").write_text(json.dumps(results, indent=1) + "\n")
    print(" · ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print_core(results["core"])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def keep_freed_memory() -> None:
    """Let malloc keep large blocks instead of giving them back; where there is no glibc, both sides pay for pages."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def timed(work: Mapping[str, Work], matrices: list[Tensor]) -> dict[str, list[float]]:
    """Seconds of each piece of work on one thread, all of them in turn, each on the next matrix."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    turn = 0
    for _ in range(REPEATS + 1):  # the first is to warm up
        for name, run in work.items():
            matrix = matrices[turn % len(matrices)]
            turn += 1
            started = time.thread_time()
            run(matrix)
            seconds[name].append(time.thread_time() - started)
    return {name: times[1:] for name, times in seconds.items()}


# --- Cut and merge ----------------------------------------------------------------------------------------------------


def core() -> list[dict[str, Any]]:
    """Every slice, every number of groups: what it took, and what copying what must be touched took."""
    rng = np.random.default_rng(0)
    matrices = [torch.from_numpy(rng.standard_normal((WIDTH, WIDTH), dtype=np.float32)) for _ in range(4)]
    return [line for n in GROUPS for slice in SLICES for line in core_lines(slice, n, matrices)]


def core_lines(slice: str, n: int, matrices: list[Tensor]) -> list[dict[str, Any]]:
    axes = {"w": parse(SLICES[slice])}
    sizes = sizes_of({"w": matrices[0]}, axes)
    plan = Disjoint(groups=n)(1, [Node(i) for i in range(n)], sizes, generator(0, n, slice))
    parts = [extract({"w": matrices[0]}, axes, units) for units in plan.subnets]
    places = places_of({"w": matrices[0]}, axes, sizes, plan.subnets[0])["w"]
    written, copied, spare = (matrices[0].clone() for _ in range(3))
    touched = WIDTH if slice == "columns" else WIDTH // n  # rows

    def merge(matrix: Tensor) -> object:
        merge = Merge({"w": matrix}, axes)
        for units, part in zip(plan.subnets, parts, strict=True):
            merge.add(units, part)
        return merge.result()

    def clone_and_touch(matrix: Tensor) -> None:
        out = matrix.clone()
        for _ in range(n):
            out[:touched].copy_(spare[:touched])

    def clone_and_slices(matrix: Tensor) -> None:
        out = matrix.clone()
        for part in parts:
            out.view(-1)[: part["w"].numel()].copy_(part["w"].view(-1))

    seconds = timed(
        {
            "extract": lambda matrix: extract({"w": matrix}, axes, plan.subnets[0]),
            "clone touched": lambda matrix: matrix[:touched].clone(),
            "write": lambda matrix: write(written, places, parts[0]["w"]),
            "copy touched": lambda matrix: copied[:touched].copy_(matrix[:touched]),
            "merge": merge,
            "clone, touch n times": clone_and_touch,
            "clone, copy n slices": clone_and_slices,
        },
        matrices,
    )
    against = [
        ("extract", "clone touched", f"cloning {TOUCHED[slice]}", TARGETS[slice]),
        ("write", "copy touched", f"copying {TOUCHED[slice]}", None),
        (
            "merge",
            "clone, touch n times",
            f"cloning the matrix, and copying {TOUCHED[slice]} {n} times",
            TARGETS[slice],
        ),
        ("merge", "clone, copy n slices", f"cloning the matrix, and copying {n} slices, each in one piece", None),
    ]
    return [
        {
            "what": what,
            "slice": slice,
            "n": n,
            "seconds": median(seconds[what]),
            "against": words,
            "against_seconds": median(seconds[floor]),
            "fraction": median(seconds[floor]) / median(seconds[what]),
            "best_fraction": min(seconds[floor]) / min(seconds[what]),
            "target": target,
        }
        for what, floor, words, target in against
    ]


def print_core(lines: list[dict[str, Any]]) -> None:
    print(f"\n{WIDTH} × {WIDTH} float32, cold; fraction = time of the comparison / time taken; more is better\n")
    print(f"{'':8} {'slice':8} {'n':>2} {'ms':>6} {'fraction':>9} {'of best':>8} {'target':>7}   of the speed of")
    order = ["extract", "merge", "write"]
    for line in sorted(lines, key=lambda line: (order.index(line["what"]), line["target"] is None)):
        target = f"{line['target']:.1f}" if line["target"] else ""
        missed = "<" if line["target"] and line["fraction"] < line["target"] else ""
        print(
            f"{line['what']:8} {line['slice']:8} {line['n']:2} {1e3 * line['seconds']:6.1f} {line['fraction']:9.2f} "
            f"{line['best_fraction']:8.2f} {target:>7} {missed:1} {line['against']}"
        )


if __name__ == "__main__":
    main()
