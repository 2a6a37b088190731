"""What a member gives away is counted on its own disk, and bounded by its operator."""

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort import MODEL, ORDER, Cohort, replace, signer, terms, zeros
from typer.testing import CliRunner

from client.secrecy import member_of
from ist_fed.cli import app
from ist_fed.errors import DoubleRequest, OtherModel, RunError, SecureError
from ist_fed.pki.signing import certify, create_authority, request_member
from ist_fed.privacy.secure import Budget, Member
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.accounting import epsilon, release
from ist_fed.privacy.secure.grid import fit_grid
from ist_fed.privacy.tally import Entries, Tally

GRID = fit_grid(clip=1.0, noise=4.0, length=7, members=4)
TERMS = terms(4, grid=GRID.step, clip=GRID.clip, variance=GRID.variance, bound=GRID.bound)


def spent(rounds: int) -> float:
    return epsilon({release(GRID, TERMS.threshold): rounds}, 1e-5)


def counted(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in path.read_text().splitlines()]


def cohort(round: int, budget: Budget) -> Cohort:
    """Whose first member has a budget; of a run of its own, as after a restart."""
    made = Cohort(replace(terms(4), **{**vars(TERMS), "round": round, "run": bytes([round] * 16)}))
    made.members["m0"] = Member(signer("m0"), min_cohort=3, budget=budget)
    return made


def test_a_budget_lasts_as_many_rounds_as_it_pays_for_whatever_the_run(tmp_path: Path) -> None:
    path = tmp_path / "kit" / "secure.jsonl"
    for round in (1, 2, 3):
        made = cohort(round, Budget(path, allowed=1.001 * spent(3)))
        made.run(zeros(made), {})
    assert counted(path) == [1, 2, 3]
    assert Budget(path).epsilon() == pytest.approx(spent(3))
    with pytest.raises(SecureError, match=r"no more away than its operator allows, .* with this round"):
        cohort(4, Budget(path, allowed=1.001 * spent(3))).advertise()
    assert counted(path) == [1, 2, 3]


def test_what_is_counted_is_on_the_disk_before_the_update_leaves(tmp_path: Path) -> None:
    path = tmp_path / "secure.jsonl"
    made = cohort(1, Budget(path))
    boxes = made.share(made.advertise())
    member = made.members["m0"]
    assert not path.exists()
    path.mkdir()  # so that it cannot be written
    with pytest.raises(RunError):
        member.receive(boxes["m0"], model=MODEL, order=ORDER)
    with pytest.raises(SecureError):  # the round is over here, and its secrets are gone
        member.mask(np.zeros(7, np.int64))


def test_a_round_counts_before_the_data_are_looked_at_and_is_not_asked_for_twice(tmp_path: Path) -> None:
    """Else a client that dies of its data would tell so every time, for nothing."""
    path = tmp_path / "secure.jsonl"
    made = cohort(1, Budget(path))
    boxes = made.share(made.advertise())
    member = made.members["m0"]
    member.receive(boxes["m0"], model=MODEL, order=ORDER)
    assert counted(path) == [1]
    member.forget()
    with pytest.raises(DoubleRequest, match="round 1 is over here"):
        member.advertise(say.Call(terms=made.terms))


def test_what_came_otherwise_than_announced_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secure.jsonl"
    made = cohort(1, Budget(path))
    boxes = made.share(made.advertise())
    with pytest.raises(OtherModel):
        made.members["m0"].receive(boxes["m0"], model=MODEL, order=say.digest("another"))
    assert not path.exists()


def test_two_processes_do_not_both_get_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one counts its round at the worst moment, after this one has asked and before it has written."""
    path = tmp_path / "secure.jsonl"
    one, other = (Budget(path, allowed=1.001 * spent(1)) for _ in range(2))
    add = Tally.add

    def late(tally: Tally, *args: Any) -> None:
        with monkeypatch.context() as undone:
            undone.setattr(Tally, "add", add)
            other.spend(replace(TERMS, round=2))
        add(tally, *args)

    one.check(TERMS)
    monkeypatch.setattr(Tally, "add", late)
    with pytest.raises(SecureError, match="no more away than its operator allows"):
        one.spend(TERMS)
    assert counted(path) == [2]


def test_what_is_left_is_looked_at_while_nobody_else_can_write(tmp_path: Path) -> None:
    path = tmp_path / "tally.jsonl"

    def check(before: Entries) -> None:
        assert [entry["round"] for entry in before] == [1]
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    Tally(path, "this test's").add({"round": 1})
    Tally(path, "this test's").add({"round": 2}, check)
    assert counted(path) == [1, 2]


def test_a_round_without_noise_is_beyond_any_budget_and_counts_for_nothing_without_one(tmp_path: Path) -> None:
    path = tmp_path / "secure.jsonl"
    made = Cohort(terms(4))
    made.members["m0"] = Member(signer("m0"), min_cohort=3, budget=Budget(path, allowed=1e9))
    with pytest.raises(SecureError, match="it would come to inf"):
        made.advertise()
    made = Cohort(terms(4))
    made.members["m0"] = Member(signer("m0"), min_cohort=3, budget=Budget(path))
    made.run(zeros(made), {})
    assert not path.exists()


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"variance": "much", "l2": 1, "length": 2}'])
def test_a_count_that_cannot_be_read_stops_everything(tmp_path: Path, line: str) -> None:
    path = tmp_path / "secure.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="no more is spent"):
        cohort(1, Budget(path, allowed=1.0)).advertise()


def test_a_line_that_is_not_whole_was_never_acted_upon(tmp_path: Path) -> None:
    path = tmp_path / "secure.jsonl"
    made = cohort(1, Budget(path))
    made.run(zeros(made), {})
    path.write_text(path.read_text() + '{"run": "00')
    assert Budget(path).epsilon() == pytest.approx(spent(1))
    made = cohort(2, Budget(path))
    made.run(zeros(made), {})
    assert counted(path) == [1, 2]


@pytest.mark.parametrize(
    ("allowed", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_a_budget_is_one(tmp_path: Path, allowed: float, delta: float) -> None:
    with pytest.raises(ValueError, match="epsilon is positive and delta between 0 and 1"):
        Budget(tmp_path / "x", allowed=allowed, delta=delta)


def test_a_node_with_a_folder_counts_there(tmp_path: Path) -> None:
    assert member_of({"secure-epsilon": 1.0}) is None  # it is in no secure round
    create_authority(tmp_path / "members", "members", b"only for this test")
    path = certify(tmp_path / "members", request_member(tmp_path, "mine"), b"only for this test", tmp_path)
    node = {"signer": str(path), "min-cohort": 3, "folder": str(tmp_path), "secure-epsilon": 1.001 * spent(1)}
    member = member_of(node)
    assert member is not None
    member.advertise(say.Call(terms=TERMS))
    Budget(tmp_path / "secure-privacy-mine.jsonl").spend(TERMS)
    with pytest.raises(SecureError, match="no more away than its operator allows"):
        member.advertise(say.Call(terms=TERMS))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--secure-epsilon", "1"], "say with --signer who this client is"),
        (["--signer", "mine.sign.pem", "--secure-epsilon", "0"], "--secure-epsilon is positive"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    create_authority(tmp_path / "members", "members", b"only for this test")
    certify(tmp_path / "members", request_member(tmp_path, "mine"), b"only for this test", tmp_path)
    result = CliRunner().invoke(app, ["client", "start", "--server", "127.0.0.1:1", "--partition", "0/1", *words])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split()) + str(result.exception)
