"""How long the phases of a round take."""

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import torch
from torch.profiler import record_function


@contextmanager
def timed(seconds: MutableMapping[str, float], phase: str) -> Iterator[None]:
    """Add the time spent inside to a phase, and mark it in the trace of a profiler, if there is one.

    A mark takes torch longer than some phases last.
    """
    started = time.perf_counter()
    if torch._C._autograd._profiler_enabled():
        with record_function(phase):
            yield
    else:
        yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
