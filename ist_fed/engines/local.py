"""Clients in this process that are given their subnets, not messages: one by one, or many as one computation."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from ist_fed import wire
from ist_fed.arrays import Arrays, arrays_of
from ist_fed.batched import Choice, Job, NotTogether, Pool, Way, Ways, Workspace, train_together
from ist_fed.batched.widened import narrowed, shapes_of, widened
from ist_fed.cohort import Assignment, Outcome
from ist_fed.device import pick_device, tf32_products
from ist_fed.engines.ahead import Ahead
from ist_fed.engines.chunks import Part, chunk, cut, filled
from ist_fed.engines.groups import Groups
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.errors import asking
from ist_fed.federation import Line, federate
from ist_fed.flat import joined
from ist_fed.pki.signing import signers_of_one_run
from ist_fed.privacy.secure import Member
from ist_fed.run import Run
from ist_fed.tasks import Task, load_task
from ist_fed.train import Amp, amp_of
from ist_fed.worker import Worker, opened, reason_of

logger = logging.getLogger("ist_fed.engine")

MEMORY, GPU_MEMORY = 1 << 27, 1 << 32
"""Bytes that clients trained at once may take, unless told otherwise: more is not faster on a processor, and it takes
many to keep a GPU busy. It does not follow what is free, for which clients are together shows in the last bits of their
mean."""


class LocalGrid(InProcessGrid):
    """A Grid whose clients live in this process and take assignments; it answers messages, too.

    Args:
        clients: how many there are; their node ids are `0 … clients - 1`, and their numbers.
        worker: makes a client; called once for each, when it is first needed.
        task: what they train.
        device: where.
        only: the one way to train that is allowed; by default the cheapest.
        memory: bytes that clients trained at once may take; by default what suits the device.
        amp: mixed precision of clients trained at once; `worker` gives it to those that train alone.
    """

    def __init__(
        self,
        clients: int,
        worker: Callable[[int], Worker],
        task: Task,
        device: torch.device,
        *,
        only: Way | None = None,
        memory: int | None = None,
        amp: Amp | None = None,
    ) -> None:
        super().__init__(clients, worker)
        self.device, self._task, self._only, self._amp = device, task, only, amp
        fits = memory or (GPU_MEMORY if device.type == "cuda" else MEMORY)
        self._ways = Ways(task, device, fits, only)
        self._pool, self._workspace = Pool(device), Workspace()
        self._groups = Groups(task, self._pool, lambda node: self._client(node).data)
        self._told: set[Job] = set()
        self._failures: set[str] = set()

    def profiles(self, nodes: Sequence[int], question: wire.Question) -> Iterator[tuple[int, wire.Profile | str]]:
        """Ask each client, without a message."""
        for node in nodes:
            try:
                yield node, self._client(node).profile(question)
            except Exception as error:
                yield node, reason_of(error, node, self._failures)

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        """Let every node of every assignment train."""
        if self._only == "one by one":
            yield from self._one_by_one([(asked, asked.nodes) for asked in assignments])
            return
        for job, parts in self._groups.jobs(assignments).items():
            (first, *_) = parts[0][1]
            choice = self._ways.of(job, partial(self._pool.one, first, job.batch))
            if choice.in_data:
                self._pool.multiply([node for _, nodes in parts for node in nodes])
            left = cut(parts, choice.at_once) if choice.at_once else parts
            while left:
                some = chunk(left, choice.at_once)
                try:
                    outcomes = self._together(job, some, choice) if choice.at_once else self._one_by_one(some)
                    yield from outcomes
                    left = left[len(some) :]
                except NotTogether as error:
                    choice = self._fall_back(job, str(error))

    def train_ahead(self, assignments: Sequence[Assignment]) -> None:
        """Let each assignment's one node train, with the others; done when the first of a batch is asked for it."""
        ahead = Ahead(self.carry_out(assignments))
        for asked in assignments:
            (node,) = asked.nodes
            self._client(node).ahead = partial(ahead.take, node)

    def _client(self, node: int) -> Worker:
        worker = self._handler(node)
        assert isinstance(worker, Worker)
        return worker

    # --- One way or the other -----------------------------------------------------------------------------------------

    def _fall_back(self, job: Job, why: str) -> Choice:
        """One by one to the end of the round; the next begins as if nothing had been, as a resumed run would."""
        if job not in self._told:
            self._told.add(job)
            logger.info("subnets of %s train one by one: %s", dict(job.sizes), why)
        return Choice(way="one by one")

    def _together(self, job: Job, chunk: Sequence[Part], choice: Choice) -> list[Outcome]:
        began = time.perf_counter()
        asked, (nodes, weights) = chunk[0][0], filled(chunk)
        rounds = [each.round for each, _ in chunk for _ in weights[0]]
        orders = self._pool.orders(nodes, job.batch, job.steps, asked.seed, rounds)
        fetch = self._pool.batch_in_data if choice.in_data else self._pool.batch
        model = self._ways.network(job)
        shapes = shapes_of(arrays_of(model))
        trained = train_together(
            model,
            self._task,
            widened([each.arrays for each, _ in chunk], shapes),
            lambda step: fetch(orders[step]),
            torch.tensor(weights, dtype=torch.float64, device=self.device),
            job.training,
            lr=asked.lr,
            steps=job.steps,
            factored=choice.factored,
            in_data=(choice.in_data, self._pool.in_data(nodes, orders)) if choice.in_data else None,
            scales=asked.scales,
            amp=self._amp,
            workspace=self._workspace,
        )
        losses = trained.losses.double().mean(0).cpu().numpy().reshape(len(chunk), -1)
        seconds = (time.perf_counter() - began) / len(chunk)
        broken = {nodes[at]: _refusal(reason) for at, reason in trained.broken.items()}
        made = []
        for (each, part), loss, own, mean in zip(chunk, losses, weights, trained.means, strict=True):
            weight = sum(share for node, share in zip(part, own, strict=False) if node not in broken)
            refused = {node: broken[node] for node in part if node in broken}
            arrays = joined(narrowed(mean, shapes_of(each.arrays))) if weight else None
            made.append(_outcome(each, part, loss[: len(part)], seconds, refused=refused, arrays=arrays, weight=weight))
        return made

    def _one_by_one(self, chunk: Sequence[Part]) -> Iterator[Outcome]:
        for asked, nodes in chunk:
            for node, weight in zip(asked.nodes, asked.weights, strict=True):
                if node in nodes:
                    yield self._alone(asked, node, weight)

    def _alone(self, asked: Assignment, node: int, weight: float) -> Outcome:
        arrays: Arrays | None = None
        loss, seconds, refused = float("nan"), 0.0, dict[int, str]()
        try:
            model, state = opened(self._task, asked.sizes, asked.arrays, asked.training, self.device)
            asked.let_go()
            loss, seconds = self._client(node).local_steps(
                model,
                asked.training,
                seed=asked.seed,
                round=asked.round,
                lr=asked.lr,
                steps=asked.local_steps,
                scales=asked.scales,
                state=state,
            )
            arrays = joined({**arrays_of(model), **state})
        except Exception as error:
            refused = {node: _refusal(reason_of(error, node, self._failures))}
        return _outcome(asked, (node,), [loss], seconds, refused=refused, arrays=arrays, weight=weight)


def _outcome(
    asked: Assignment,
    nodes: tuple[int, ...],
    losses: Sequence[float] | np.ndarray,
    seconds: float,
    *,
    refused: dict[int, str],
    arrays: Arrays | None,
    weight: float,
) -> Outcome:
    found = np.asarray(losses, dtype=np.float64)
    return Outcome(
        assignment=asked, nodes=nodes, losses=found, seconds=seconds, refused=refused, arrays=arrays, weight=weight
    )


def _refusal(reason: str) -> str:
    return f"the client did not train: {reason}"


def simulate(
    run: Run,
    *,
    resume: bool = False,
    on_line: Callable[[Line], None] = lambda line: None,
    only: Way | None = None,
    memory: int | None = None,
) -> None:
    """Run a scenario with every client in this process; see `federation.federate`."""
    scenario = run.scenario
    task, device = load_task(scenario.task, scenario.options), pick_device(scenario.device)

    amp = amp_of(scenario.precision)
    signer = signers_of_one_run() if scenario.is_secure else None

    def worker(client: int) -> Worker:
        member = signer and Member(signer(f"client{client}"), min_cohort=scenario.secure.min_cohort)
        guard = scenario.guard(client, run.folder / "example-privacy" / f"client-{client}.jsonl")
        with asking(f"client_data() for client {client}"):
            data = task.client_data(client, scenario.clients)
        return Worker(task, data, client=client, device=device, amp=amp, member=member, guard=guard)

    if scenario.example_privacy.on:
        logger.info("clients train one by one, for each clips the gradients of its own examples")
        only = "one by one"
    first = worker(0)  # here, so that data which cannot be had are one error, and not every client's
    grid = LocalGrid(
        scenario.clients,
        lambda client: worker(client) if client else first,
        task,
        device,
        only=only,
        memory=memory,
        amp=amp,
    )
    with tf32_products(device) if scenario.precision == "tf32" else nullcontext():
        federate(grid, run, resume=resume, on_line=on_line, command=_command(only, memory))


def _command(only: Way | None, memory: int | None) -> str:
    """What trains in the same way, to the bit, when a run goes on."""
    engine = f" --engine {'inprocess' if only == 'one by one' else only}" if only else ""
    return f"ist-fed simulate{engine}{f' --memory {memory}' if memory else ''}"


one_by_one = partial(simulate, only="one by one")
"""The same as plain as can be."""
