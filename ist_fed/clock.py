"""How long the phases of a round take."""

import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Self

import torch
from torch.profiler import record_function


class Timed:
    """Add the time spent inside to a phase, and mark it in the trace of a profiler, if there is one.

    A class, for what `contextmanager` makes takes longer than some phases last; so does a mark that nobody reads.

    Args:
        seconds: of each phase so far.
        phase: its name.
    """

    __slots__ = ("_mark", "_phase", "_seconds", "_started")

    def __init__(self, seconds: MutableMapping[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase
        self._mark = record_function(phase) if torch._C._autograd._profiler_enabled() else None

    def __enter__(self) -> Self:
        """Begin."""
        if self._mark is not None:
            self._mark.__enter__()  # type: ignore[no-untyped-call]
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + time.perf_counter() - self._started
        if self._mark is not None:
            self._mark.__exit__(kind, error, trace)
