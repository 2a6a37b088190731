"""Secure rounds in a whole run: the same network as without, whoever drops out, and nothing in the clear."""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tiny
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed import rules, wire
from ist_fed.cli.privacy import disclosure_of
from ist_fed.engines.inprocess import Handler, InProcessGrid
from ist_fed.engines.local import simulate
from ist_fed.engines.simulation import simulate as simulate_with_ray
from ist_fed.errors import EngineError, RoundError, ScenarioError
from ist_fed.pki.certificates import issue_authority, now
from ist_fed.pki.signing import Signer, issue_member, signers_of_one_run
from ist_fed.privacy.secure import Member, Secure
from ist_fed.run import Run
from ist_fed.scenario import load_scenario
from ist_fed.wire.records import REPLY
from ist_fed.worker import Worker

SECURE = Secure(clip=5.0)
ROUNDS = 2
CLIENTS = 12
COHORTS = rules.Disjoint(groups=2, min_units=2)
SCENARIO = Path(__file__).parents[1] / "scenarios" / "digits-secure.toml"

Meddler = Callable[[Worker, Message], Message]


def grid(
    instead: dict[int, Meddler] | None = None,
    signer: Callable[[str], Signer] | None = None,
    revoked: Callable[[], Collection[int]] = tuple,
    **options: Any,
) -> InProcessGrid:
    task, of = tiny.Tiny(**options), signer or signers_of_one_run()

    def make(client: int) -> Handler:
        member = Member(of(f"client{client}"), revoked=revoked)
        worker = Worker(task, task.client_data(client, CLIENTS), client=client, member=member)
        return tiny.Client(worker, (instead or {}).get(client, Worker.train))

    return InProcessGrid(CLIENTS, make)


def run(made: InProcessGrid, *, secure: Secure | None = SECURE, rounds: int = ROUNDS, **options: Any) -> tiny.Run:
    task, spy, reports = tiny.Tiny(), tiny.Spy(COHORTS), []
    strategy = tiny.strategy(task, spy, weighting="uniform", secure=secure, on_round=reports.append, **options)
    before = tiny.initial(task)
    strategy.start(made, wire.to_record(before), rounds, 60)
    return tiny.Run(strategy, spy.plans, reports, before)


def plain(instead: Mapping[int, Meddler] = MappingProxyType({}), rounds: int = ROUNDS) -> tiny.Run:
    """The same without secrecy."""
    return tiny.federate(tiny.Tiny(), COHORTS, CLIENTS, rounds=rounds, weighting="uniform", instead=dict(instead))


def raising(worker: Worker, message: Message) -> Message:
    raise RuntimeError("gone")


def gone_at(name: str, round: int = 1) -> Meddler:
    """Dies when it is asked for this step, and is silent for the rest of the round."""

    def train(worker: Worker, message: Message) -> Message:
        step = wire.open_step(message)
        at = ("advertise", "share", "upload", "agree", "unmask")
        if message.metadata.group_id == str(round) and at.index(step.name) >= at.index(name):
            raise RuntimeError("gone")
        return worker.train(message)

    return train


def parameters(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    names = dict(tiny.Tiny().build(**tiny.SIZES).named_parameters())
    return {name: array for name, array in arrays.items() if name in names}


def furthest(one: tiny.Run, other: tiny.Run) -> float:
    a, b = parameters(one.after), parameters(other.after)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_a_secure_run_is_the_plain_run_up_to_the_grid() -> None:
    secret = run(grid())
    assert 0 < furthest(secret, plain()) < 1e-6
    assert [report.merged for report in secret.reports] == [CLIENTS] * ROUNDS


def test_buffers_stay_where_they_are() -> None:
    secret = run(grid())
    names = secret.after.keys() - parameters(secret.after).keys()
    assert len(names) == 6
    assert all(torch.equal(secret.after[name], secret.before[name]) for name in names)


@pytest.mark.parametrize("step", ["advertise", "share", "upload"])
def test_a_client_that_dies_before_its_update_came_is_left_out(step: str) -> None:
    secret = run(grid({3: gone_at(step)}), rounds=1)
    assert furthest(secret, plain({3: raising}, rounds=1)) < 1e-6
    (refused,) = secret.reports[0].refused
    assert refused.client == 3
    assert "gone" in refused.reason
    assert secret.reports[0].merged == CLIENTS - 1


@pytest.mark.parametrize("step", ["agree", "unmask"])
def test_a_client_that_dies_after_its_update_came_is_in_the_sum(step: str) -> None:
    secret = run(grid({3: gone_at(step)}), rounds=1)
    assert furthest(secret, plain(rounds=1)) < 1e-6
    assert secret.reports[0].merged == CLIENTS


def test_it_takes_part_again_in_the_next_round() -> None:
    secret = run(grid({3: gone_at("upload")}), rounds=2)
    assert [report.merged for report in secret.reports] == [CLIENTS - 1, CLIENTS]


def test_a_cohort_that_became_too_small_gives_nothing_and_the_other_goes_on() -> None:
    nodes = [rules.Node(client) for client in range(CLIENTS)]
    cohort, other = rules.plan_round(COHORTS, 1, nodes, tiny.SIZES, 1).cohorts
    lost = {cohort[0]: gone_at("share"), cohort[1]: gone_at("upload")}
    secret = run(grid(lost), rounds=1)
    assert secret.plans[0].cohorts == (cohort, other)
    report = secret.reports[0]
    assert report.merged == 6
    reasons = {refused.client: refused.reason for refused in report.refused}
    assert reasons.keys() == set(cohort)
    assert all("gone" in reasons[client] for client in lost)
    (of_others,) = {reasons[client] for client in cohort[2:]}
    assert "at least 5 must have sent an update, but 4 have" in of_others
    before, after = secret.before["1.weight"], secret.after["1.weight"]
    held, others = (secret.plans[0][members[0]]["hidden1"] for members in (cohort, other))
    assert torch.equal(after[held], before[held])
    assert not torch.equal(after[others], before[others])


def test_a_run_in_which_every_cohort_fails_stops_and_says_why() -> None:
    lost = {client: gone_at("upload") for client in range(CLIENTS)}
    with pytest.raises(RoundError, match="needs usable replies, at least 1"):
        run(grid(lost))


# --- Nothing in the clear ---------------------------------------------------------------------------------------------


class Listening(InProcessGrid):
    """Keeps all that passes."""

    def __init__(self, made: InProcessGrid) -> None:
        super().__init__(CLIENTS, made._make)
        self.answers: list[Message] = []
        self.down = self.up = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.down += sum(payload(message) for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        answers = super().pull_messages(message_ids)
        self.answers += answers
        self.up += sum(payload(answer) for answer in answers)
        return answers


def payload(message: Message) -> int:
    """Bytes of the secure protocol and of subnets in a message; not those by which clients say who they are."""
    if "node" in message.content:
        return 0
    fields = [value for record in message.content.values() for value in record.values()]
    return sum(len(value) for value in fields if isinstance(value, bytes))


def test_no_loss_no_time_and_no_update_is_said() -> None:
    listening = Listening(grid())
    made = run(listening, rounds=1)
    assert all(report.loss != report.loss for report in made.reports)  # NaN: nobody knows
    said = {key for answer in listening.answers for key in answer.content.get(REPLY, {})}
    assert said == {"bytes", "layout"}
    assert made.reports[0].seconds["train"] == 0


def test_bytes_are_counted_as_they_pass() -> None:
    listening = Listening(grid())
    made = run(listening, rounds=2)
    assert sum(report.bytes_down for report in made.reports) == listening.down
    assert sum(report.bytes_up for report in made.reports) == listening.up


def test_a_client_with_a_signing_key_answers_no_order_in_the_clear() -> None:
    with pytest.raises(RoundError, match="takes part in secure rounds only"):
        run(grid(), secure=None)


def test_a_client_without_one_says_what_it_lacks() -> None:
    with pytest.raises(RoundError, match="needs usable replies, at least 1"):
        run(InProcessGrid(CLIENTS, tiny.handlers(tiny.Tiny(), CLIENTS)))


def poisoned(worker: Worker, *_: object, **__: object) -> None:
    worker.data.tensors[0][:, 0] = torch.nan


def without_data(worker: Worker, *_: object, **__: object) -> None:
    worker.data = TensorDataset(*(tensor[:0] for tensor in worker.data.tensors))


def broken(worker: Worker, *_: object, **__: object) -> None:
    raise RuntimeError("of the device")


def endless(worker: Worker, model: nn.Module, *_: object, **__: object) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)


@pytest.mark.parametrize("harm", [poisoned, without_data, broken, endless])
def test_that_a_client_cannot_train_is_told_to_nobody(
    harm: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For it tells of the data: what it sends is what others send, and an update of zero."""
    steps = Worker.local_steps

    def harmed(worker: Worker, message: Message) -> Message:
        def local_steps(model: nn.Module, *args: Any, **how: Any) -> tuple[float, float]:
            harm(worker, model)
            return (0.0, 0.0) if harm is endless else steps(worker, model, *args, **how)

        monkeypatch.setattr(worker, "local_steps", local_steps)
        return worker.train(message)

    def idle(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        return wire.reply_message(order, order.arrays, loss=0.0, seconds=0.0, reply_to=message)

    listening = Listening(grid({3: harmed}))
    secret = run(listening, rounds=1)
    (report,) = secret.reports
    assert (report.merged, report.refused) == (CLIENTS, ())
    assert furthest(secret, plain({3: idle}, rounds=1)) < 1e-6
    said: dict[int, list[tuple[int, list[str]]]] = {}
    for answer in listening.answers:
        said.setdefault(answer.metadata.src_node_id, []).append((payload(answer), sorted(answer.content)))
    cohort = next(nodes for nodes in secret.plans[0].cohorts if 3 in nodes)
    assert all(said[node][-3:] == said[3][-3:] for node in cohort)  # before, certificates differ in length
    assert "could not train, and adds zero" in caplog.text


def test_how_long_steps_took_is_told_to_nobody() -> None:
    workers = list[Worker]()

    def train(worker: Worker, message: Message) -> Message:
        workers.append(worker)
        return worker.train(message)

    run(grid(dict.fromkeys(range(CLIENTS), train)), rounds=1)
    assert {worker.profile(None).step_seconds for worker in workers} == {0.0}


def test_a_client_of_another_task_says_so() -> None:
    """Whatever its data are; nobody else could be trained there either."""
    other = tiny.Tiny(norm="layer")

    def train(worker: Worker, message: Message) -> Message:
        worker._task = other
        return worker.train(message)

    secret = run(grid({3: train}), rounds=1)
    (refused,) = secret.reports[0].refused
    assert refused.client == 3
    assert "the network that this client builds" in refused.reason


def test_members_of_another_authority_are_found_out() -> None:
    """One member is the server's own invention: nobody gives a share to a cohort with it in it."""
    true, own = signers_of_one_run(), signers_of_one_run()
    secret = run(grid(signer=lambda name: (own if name == "client3" else true)(name)), rounds=1)
    cohort = next(nodes for nodes in secret.plans[0].cohorts if 3 in nodes)
    assert {refused.client for refused in secret.reports[0].refused} == set(cohort)
    assert any("members' authority" in refused.reason for refused in secret.reports[0].refused)


@pytest.mark.parametrize("why", ["valid from", "was revoked"])
def test_a_cohort_with_an_expired_or_revoked_member_shares_nothing_and_the_other_goes_on(why: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    authority = issue_authority(key, "members", now() - timedelta(days=200))
    serials: dict[str, int] = {}

    def signer(name: str) -> Signer:
        own = Ed25519PrivateKey.generate()
        old = why == "valid from" and name == "client3"
        issued = issue_member(authority, key, own.public_key(), name, now() - timedelta(days=100 if old else 0))
        serials[name] = issued.serial_number
        return Signer(name=name, key=own, certificate=issued.public_bytes(Encoding.DER), authority=authority)

    def revoked() -> set[int]:
        return {serials["client3"]} if why == "was revoked" else set()

    secret = run(grid(signer=signer, revoked=revoked), rounds=1)
    cohort = next(nodes for nodes in secret.plans[0].cohorts if 3 in nodes)
    assert {refused.client for refused in secret.reports[0].refused} == set(cohort)
    assert all("'client3'" in refused.reason and why in refused.reason for refused in secret.reports[0].refused)
    assert secret.reports[0].merged == CLIENTS - len(cohort)


# --- Processes that forget --------------------------------------------------------------------------------------------


def test_a_client_that_forgets_between_messages_says_so() -> None:
    """As a process for each message would, in Flower's own SuperNode."""
    task, signer = tiny.Tiny(), signers_of_one_run()
    signers = [signer(f"client{client}") for client in range(CLIENTS)]

    def forgetful(worker: Worker, message: Message) -> Message:
        client = message.metadata.dst_node_id
        data = task.client_data(client, CLIENTS)
        return Worker(task, data, client=client, member=Member(signers[client])).train(message)

    with pytest.raises(RoundError, match=r"12 × .*knows of no such round.*without --supernode"):
        run(grid(dict.fromkeys(range(CLIENTS), forgetful)), rounds=1)


def test_flowers_simulation_is_refused(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", load_scenario(SCENARIO))
    with pytest.raises(EngineError, match="keep their secrets between messages"):
        simulate_with_ray(made)


def test_flowers_hooks_are_refused() -> None:
    strategy = tiny.strategy(tiny.Tiny(), COHORTS, weighting="uniform", secure=SECURE)
    with pytest.raises(RoundError, match="five steps"):
        strategy.configure_train(1, wire.to_record(tiny.initial(tiny.Tiny())), ConfigRecord(), grid())


# --- Scenarios --------------------------------------------------------------------------------------------------------


def test_the_scenario_that_ships_runs_and_reports(tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIO, ["rounds=1", "local_steps=2", "sizes.hidden1=32", "sizes.hidden2=32"])
    made = Run.create(tmp_path / "run", scenario)
    simulate(made)
    (line,) = made.metrics()
    assert line["merged"] == 12
    assert line["train_loss"] is None
    assert line["refused"] == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["round.weighting=examples"], "weighting = 'uniform'"),
        (["round.adapt=true"], "no round.adapt"),
        (["secure.min_cohort=2"], "at least 3"),
        (["secure.noise=1e-9"], "noise is 0 for none"),
        (["secure.clip=0"], "clip must be positive"),
        (["secure.delta=1"], "between 0 and 1"),
        (["privacy.mode=off"], "set privacy.mode = 'secure', or drop it"),
        (["privacy.clip=2.0"], "all other settings stand in"),
        (["secure.thresold=3"], "did you mean 'threshold'"),
    ],
)
def test_a_scenario_that_cannot_be_secure_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        load_scenario(SCENARIO, settings)


def test_cohorts_that_are_too_small_are_refused_before_anything_starts(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", load_scenario(SCENARIO, ["rule.groups=4", "rule.keep=4"]))
    with pytest.raises(ScenarioError, match="makes one of 3; use fewer groups"):
        simulate(made)


def test_a_threshold_that_no_cohort_reaches_is_refused_before_anything_is_promised() -> None:
    asked = load_scenario(SCENARIO, ["secure.threshold=20", "secure.noise=1.0"])
    with pytest.raises(ScenarioError, match=r"at least 20 clients \(secure.threshold\), but the rule makes one of 6"):
        disclosure_of(asked)


# --- Noise ------------------------------------------------------------------------------------------------------------


def test_noise_in_the_network_is_as_large_as_said() -> None:
    """Of each parameter of a cohort of six: k noises of variance (zC)²/t, divided by k; 6.5 σ, once in 10¹⁰ runs."""
    noisy = run(grid(), secure=Secure(clip=5.0, noise=2.0), rounds=1)
    silent = run(grid(), rounds=1)
    a, b = parameters(noisy.after), parameters(silent.after)
    units = [noisy.plans[0][cohort[0]]["hidden1"] for cohort in noisy.plans[0].cohorts]
    apart = torch.cat([(a["1.weight"] - b["1.weight"])[rows].flatten() for rows in units]).double()
    expected = (2.0 * 5.0) ** 2 / 5 * 6 / 6**2
    assert abs(float(apart.square().mean()) / expected - 1) < 6.5 * (2 / apart.numel()) ** 0.5
