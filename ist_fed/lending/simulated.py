"""Lending in virtual time, to clients that are simulated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ist_fed.arrays import Arrays, arrays_of, build_on_meta
from ist_fed.cohort import Assignment, Outcome, is_direct
from ist_fed.lending.contract import Lending
from ist_fed.lending.courier import ByMessages
from ist_fed.lending.lender import Lender, lender_of
from ist_fed.lending.schedule import Event, Schedule
from ist_fed.network import Asked, Network, Virtual
from ist_fed.optimizer_state import no_state, trainable
from ist_fed.round import Client, RoundReport


class _Carrying(Protocol):
    """A grid that carries out assignments, or whatever makes one of a grid that takes messages."""

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]: ...


def in_virtual_time(
    lending: Lending, arrays: Arrays, first_round: int, loans: Mapping[str, Tensor]
) -> Iterator[RoundReport]:
    """See `lend`."""
    clients = lending.roster.connected(lending.grid, lending.timeout)
    schedule, lender = _schedule(lending, clients), lender_of(lending, arrays, clients)
    since = dict[int, int]()  # lease → the round in which it was lent
    for round in range(1, first_round):  # what had happened before
        since |= {event.grant.number: round for event in schedule.round() if event.fate == "granted"}
    by_node = {client.node: client for client in clients}
    for grant in schedule.held.values():
        lender.lend(grant, by_node[grant.node], since[grant.number], _of(loans, grant.number))
    grid = lending.grid
    carrying: _Carrying = grid if is_direct(grid) else ByMessages(grid, lending.config, lending.timeout)
    round = first_round
    while True:
        began = schedule.now
        with lender.timed("assign"):
            events = schedule.round()
        _play(events, lender, carrying, round)
        yield lender.report(round, schedule.now - began if lending.network else None)
        round += 1


def _play(events: Sequence[Event], lender: Lender, carrying: _Carrying, round: int) -> None:
    """Let a round's events happen.

    Nothing is trained before it is needed, and then everything that is out and comes back in this round is trained at
    once: it started from what was lent, whatever has happened since. What comes back later waits for its own round, so
    that a run which is taken up again trains the same together.
    """
    back = {event.grant.number for event in events if event.fate == "returned"}
    trained = dict[int, Outcome]()
    for event in events:
        number = event.grant.number
        if event.fate == "granted":
            lender.lend(event.grant, event.client, round)
        elif event.fate == "returned":
            if number not in trained:
                out = [loan.asked for other, loan in lender.out.items() if other in back and other not in trained]
                trained |= _train(out, lender, carrying)
            lender.take_back(trained.pop(number))
        elif event.fate == "expired":
            lender.give_up(number, "its lease expired before it returned")
        else:
            lender.give_up(number, "it dropped out of the simulated network")


def _train(out: Sequence[Assignment], lender: Lender, carrying: _Carrying) -> dict[int, Outcome]:
    """Lease → what came of it. Those lent at one learning rate can be trained at once."""
    found = dict[int, Outcome]()
    with lender.timed("wait"):
        for lr in sorted({asked.lr for asked in out}):
            for outcome in carrying.carry_out([asked for asked in out if asked.lr == lr]):
                found[outcome.assignment.round] = outcome
    return found


def _schedule(lending: Lending, clients: Sequence[Client]) -> Schedule:
    conditions, known = lending.conditions, dict[tuple[tuple[str, int], ...], int]()
    ideal = Virtual(Network(), conditions.seed, len(clients), lambda sizes, training: 0.0)

    def asked(client: Client, sizes: Mapping[str, int]) -> Asked:
        if (key := tuple(sizes.items())) not in known:
            model = build_on_meta(lending.build, sizes)
            state = no_state(trainable(model), conditions.training.carried)
            known[key] = sum(array.nbytes for array in (*arrays_of(model).values(), *state.values()))
        return Asked(
            client=client.number,
            sizes=sizes,
            bytes=known[key],
            steps=conditions.local_steps,
            training=conditions.training,
        )

    return Schedule(lending.rule, lending.sizes, clients, lending.network or ideal, conditions.seed, asked)


def _of(loans: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): array for name, array in loans.items() if name.startswith(prefix)}
