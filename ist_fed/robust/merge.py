"""One round's merge where clients may send anything."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes
from ist_fed.flat import Flat, flat
from ist_fed.places import Units
from ist_fed.robust.centre import centre
from ist_fed.robust.settings import FEWEST, REFUSED_BEYOND, Robust
from ist_fed.subnet import Merge, extract

logger = logging.getLogger("ist_fed")

Loss = Callable[[Arrays], float]
"""Loss of the wide network on examples that the server holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    client: int
    arrays: Flat
    weight: float
    length: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """What a cohort came to."""

    units: Units
    arrays: Flat
    weight: float
    clients: tuple[int, ...]


class RobustMerge:
    """The wide network as narrow ones come back, in any order; what a few clients send does not decide it.

    The subnets of a cohort are kept until all of it are there, then their centre takes their place. So at most what
    is under way of cohorts that are not whole is held beside the centres; in a run's first round with `norm_bound`,
    which has nothing to compare with but itself, everything is.

    Args:
        settings: what is asked for.
        arrays: the wide network as it was; it is not changed.
        axes: the table from `infer`.
        trained: names of the arrays that are parameters; only they count in an update's length.
        cohorts: how many clients were asked for each subnet, by the id of its units.
        usual: length of an update in the rounds before; None if there was none.
        loss: for `loss_margin`.

    Attributes:
        refused: client → why, as far as it is known; complete after `result`.
        clipped: client → how many times the usual length its update had, before it was scaled down.
        lengths: of the updates that were accepted, client → root mean square of what changed, after scaling down.
        small: whether a cohort had too few members to outvote one.
    """

    def __init__(
        self,
        settings: Robust,
        arrays: Mapping[str, Tensor],
        axes: Axes,
        trained: Collection[str],
        cohorts: Mapping[int, int],
        usual: float | None = None,
        loss: Loss | None = None,
    ) -> None:
        self._settings, self._arrays, self._axes = settings, arrays, axes
        self._trained = [name for name in arrays if name in trained and arrays[name].is_floating_point()]
        self._asked, self._usual, self._loss = cohorts, usual, loss
        self._waiting: dict[int, tuple[Units, list[_Part]]] = {}
        self._blocks: list[_Block] = []
        self.refused: dict[int, str] = {}
        self.clipped: dict[int, float] = {}
        self.lengths: dict[int, float] = {}
        self.small = False

    @torch.no_grad()
    def add(self, units: Units, part: Mapping[str, Tensor], weight: float, client: int) -> None:
        """Take one narrow network back.

        Args:
            units: the units it was cut with; a cohort shares one object.
            part: its arrays, of the names, shapes and dtypes that were sent; not to be changed any more. One that is
                not finite is refused.
            weight: its share in the mean.
            client: who sent it.
        """
        _, parts = self._waiting.setdefault(id(units), (units, []))
        here = flat(part).to(next(iter(self._arrays.values())).device)
        if not all(bool(run.isfinite().all()) for run in here.runs):
            self.refused[client] = "its subnet must be finite, but is not"
        bounded = self._settings.norm_bound and client not in self.refused
        length = self._length(units, here) if bounded else 0.0
        parts.append(_Part(client=client, arrays=here, weight=weight, length=length))
        knows = self._usual is not None or not self._settings.norm_bound
        if knows and len(parts) == self._asked.get(id(units)):
            self._settle(id(units))

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; what is refused is known then, and nothing can be added any more."""
        if self._usual is None and self._settings.norm_bound:
            came = [part for _, parts in self._waiting.values() for part in parts]
            lengths = [part.length for part in came if part.client not in self.refused]
            self._usual = median(lengths) if len(lengths) >= FEWEST else None
        for key in list(self._waiting):
            self._settle(key)
        self._blocks.sort(key=lambda block: block.clients)
        merged = self._merged(self._blocks)
        return self._without_harm(merged) if self._settings.loss_margin else merged

    @property
    def held(self) -> list[Units]:
        """The subnets of which something was merged; complete after `result`."""
        return [block.units for block in self._blocks]

    # --- One cohort ---------------------------------------------------------------------------------------------------

    def _settle(self, key: int) -> None:
        """A cohort's centre in the place of its parts."""
        units, parts = self._waiting.pop(key)
        # In the order of their numbers, so that the order in which they came does not show.
        came = sorted(parts, key=lambda part: part.client)
        bounded = [self._bounded(units, part) for part in came if part.client not in self.refused]
        kept = [part for part in bounded if part.client not in self.refused]
        if not kept:
            return
        settings, weights = self._settings, [part.weight for part in kept]
        self.small = self.small or len(kept) < FEWEST
        arrays = centre([part.arrays for part in kept], weights, settings.merge, settings.trim)
        clients = tuple(part.client for part in kept)
        self._blocks.append(_Block(units=units, arrays=arrays, weight=sum(weights), clients=clients))
        self.lengths |= {part.client: part.length for part in kept}

    def _length(self, units: Units, part: Flat) -> float:
        """Root mean square of what changed; a longer subnet is not a longer update."""
        sent = self._sent(units)
        moved = [(part[name].double() - sent[name]).contiguous() for name in self._trained if name in sent]
        # The arrays of a resumed run stand in another order, which an exact sum does not show.
        total = fsum(float(array.square().sum()) for array in moved)
        return float((total / max(1, sum(array.numel() for array in moved))) ** 0.5)

    def _bounded(self, units: Units, part: _Part) -> _Part:
        """The part, scaled down or refused if its update is too long; it is not changed itself."""
        usual, bound = self._usual, self._settings.norm_bound
        if not bound or not usual or part.length <= bound * usual:
            return part
        times = part.length / usual
        if times > REFUSED_BEYOND:
            self.refused[part.client] = (
                f"its update is {times:.4g} times as long as is usual; beyond {REFUSED_BEYOND:g} times it is refused"
            )
            return part
        self.clipped[part.client] = times
        logger.warning("client %d: its update is %.4g times as long as is usual; it is scaled down", part.client, times)
        sent = self._sent(units)
        arrays = {
            name: torch.lerp(sent[name].double(), array.double(), bound / times).to(array.dtype)
            if name in self._trained
            else array
            for name, array in part.arrays.items()
        }
        shorter = flat(arrays, part.arrays.layout)
        return _Part(client=part.client, arrays=shorter, weight=part.weight, length=bound * usual)

    def _sent(self, units: Units) -> dict[str, Tensor]:
        return extract(self._arrays, self._axes, units)

    # --- All of them --------------------------------------------------------------------------------------------------

    def _merged(self, blocks: Sequence[_Block]) -> dict[str, Tensor]:
        merge = Merge(self._arrays, self._axes)
        for block in blocks:
            merge.add(block.units, block.arrays, block.weight)
        return merge.result()

    def _without_harm(self, merged: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network without the blocks that harm it: the worst is left out first, then all are looked at anew."""
        assert self._loss is not None
        own = self._loss(merged)
        while self._blocks:
            losses = [_order(self._loss(self._merged(self._but(at)))) for at in range(len(self._blocks))]
            best = losses.index(min(losses))
            if not _order(own) > losses[best] * (1 + self._settings.loss_margin):
                break
            reason = f"with its block the loss on the server's examples is {own:.4g}, without it {losses[best]:.4g}"
            for client in self._blocks[best].clients:
                self.refused[client] = reason
                self.lengths.pop(client, None)
            self._blocks, own = self._but(best), losses[best]
            merged = self._merged(self._blocks)
        return merged

    def _but(self, at: int) -> list[_Block]:
        return self._blocks[:at] + self._blocks[at + 1 :]


def _order(loss: float) -> float:
    """A loss that is no number is worse than any."""
    return loss if loss == loss else float("inf")
