"""Which of the two ways to lend it is to be."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.cohort import is_direct
from ist_fed.errors import RuleError
from ist_fed.lending.contract import Lending
from ist_fed.lending.desk import in_real_time
from ist_fed.lending.simulated import in_virtual_time
from ist_fed.round import RoundReport


def lend(
    lending: Lending, arrays: Arrays, first_round: int, loans: Mapping[str, Tensor] | None = None
) -> Iterator[RoundReport]:
    """Lend and take back without end, and say after every round what happened in it.

    A round is as many leases that ended as there are clients: merged, or refused, lost or expired. Where clients live
    in this process, or a network is simulated, time is virtual, and the same seed gives the same bits, also when the
    run is taken up again. Elsewhere units are lent by the server's own clock; leases that were out when a run stopped
    are then given up.

    Args:
        lending: what is lent, how and to whom.
        arrays: the wide network before `first_round`.
        first_round: its number.
        loans: of the last report, to take a run up again.

    Raises:
        RoundError: a round brought fewer than `min_replies` usable replies.
        RuleError: the units cannot be lent so, or not on this simulated network.
    """
    if lending.network is not None and lending.network.network.compute == "measured":
        raise RuleError(
            "in virtual time it is known when a lease ends before anything is trained, but [network] compute is "
            "'measured'; give flops and step_seconds, and set compute to 'flops'"
        )
    if lending.network is not None or is_direct(lending.grid):
        return in_virtual_time(lending, arrays, first_round, loans or {})
    return in_real_time(lending, arrays, first_round)
