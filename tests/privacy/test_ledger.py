"""The ledger: what was spent is on disk first, survives whatever happens, and nothing takes it back."""

from multiprocessing import get_context
from pathlib import Path

import pytest

from ist_fed.errors import RunError
from ist_fed.privacy import BudgetSpent, Ledger
from ist_fed.privacy.accounting import Step, epsilon_of

STEP = Step(noise=2.0, blocks=4, sampling=0.5, shared=0.01)
DELTA = 1e-5


def ledger(*paths: Path, epsilon: float = 100.0) -> Ledger:
    return Ledger(paths, epsilon=epsilon, delta=DELTA)


def test_what_was_spent_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    for round in (1, 2, 3):
        ledger(path).spend(STEP, {"round": round, "next_clip": float(round)})
    again = ledger(path)
    assert again.epsilon() == epsilon_of({STEP: 3}, DELTA).epsilon
    assert again.last(2) == {"round": 2, "next_clip": 2.0, "step": STEP.to_json()}
    assert again.last(4) is None
    assert path.stat().st_mode & 0o077 == 0


def test_a_round_that_is_run_again_counts_again(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    for clip in (1.0, 2.0):
        ledger(path).spend(STEP, {"round": 1, "next_clip": clip})
    assert ledger(path).epsilon() == epsilon_of({STEP: 2}, DELTA).epsilon
    assert (ledger(path).last(1) or {})["next_clip"] == 2.0  # that of the release that the checkpoint is of


def test_no_other_configuration_gets_more(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    limit = epsilon_of({STEP: 2}, DELTA).epsilon
    for _ in range(2):
        ledger(path, epsilon=limit).spend(STEP, {})
    other = Step(noise=50.0, blocks=1)
    with pytest.raises(BudgetSpent):
        ledger(path, epsilon=limit).spend(other, {})
    assert len(path.read_text().splitlines()) == 2


def test_clients_outlive_a_run(tmp_path: Path) -> None:
    """Two runs of one server: each has its own file, and both count in the server's."""
    everything = tmp_path / "privacy.jsonl"
    limit = epsilon_of({STEP: 3}, DELTA).epsilon
    first, second = (ledger(tmp_path / name / "privacy.jsonl", everything, epsilon=limit) for name in "ab")
    first.spend(STEP, {})
    first.spend(STEP, {})
    second.spend(STEP, {})
    with pytest.raises(BudgetSpent, match="after 3"):
        second.spend(STEP, {})
    assert len((tmp_path / "b" / "privacy.jsonl").read_text().splitlines()) == 1


def test_half_a_line_was_never_released(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    ledger(path).spend(STEP, {"round": 1})
    with path.open("a") as file:
        file.write('{"round": 2, "st')
    ledger(path).spend(STEP, {"round": 2})
    assert ledger(path).epsilon() == epsilon_of({STEP: 2}, DELTA).epsilon


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"step": {"noise": 1.0, "more": 2}}', '{"step": 3}', "[]"])
def test_a_file_that_cannot_be_read_releases_nothing(tmp_path: Path, line: str) -> None:
    path = tmp_path / "privacy.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="nothing more is released"):
        ledger(path).spend(STEP, {})


def test_lines_that_are_taken_away_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    open_one = ledger(path)
    open_one.spend(STEP, {})
    open_one.check(STEP)
    path.unlink()
    with pytest.raises(RunError, match="lines of it are gone"):
        open_one.check(STEP)


def _spend(path: Path, limit: float) -> None:
    try:
        while True:
            ledger(path, epsilon=limit).spend(STEP, {})
    except BudgetSpent:
        pass


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    path, context = tmp_path / "privacy.jsonl", get_context("fork")
    limit = epsilon_of({STEP: 20}, DELTA).epsilon
    processes = [context.Process(target=_spend, args=(path, limit)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(path.read_text().splitlines()) == 20
