"""A run's folder: what is written, and what is left of it after a crash."""

import errno
import json
import logging
import os
import threading
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, load_model
from torch import nn

from ist_fed import infer
from ist_fed.arrays import arrays_of
from ist_fed.checkpoints import Checkpoint
from ist_fed.coverage import Coverage
from ist_fed.errors import RunError, out_of_room
from ist_fed.run import Run
from ist_fed.scenario import Scenario, load_scenario, parse_scenario

SCENARIO = Scenario(name="x", task="digits", sizes={"hidden1": 32}, rule={"name": "disjoint", "groups": 2})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "x", SCENARIO)


def state(round: int) -> Checkpoint:
    """A checkpoint whose every number is that of its round."""
    arrays = {name: torch.full_like(array, round) for name, array in tiny.initial(tiny.Tiny()).items()}
    arrays |= {"half": torch.full((3,), round, dtype=torch.bfloat16), "scalar": torch.tensor(round)}
    return Checkpoint(round, arrays, {"hidden1": torch.arange(4) < round, "hidden1/hidden2": torch.ones(4, 4) > 0})


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.round == other.round
        and tiny.same(dict(sorted(one.arrays.items())), dict(sorted(other.arrays.items())))
        and tiny.same(dict(sorted(one.coverage.items())), dict(sorted(other.coverage.items())))
    )


def files(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


# --- The folder -------------------------------------------------------------------------------------------------------


class TestCreate:
    def test_the_folder_holds_the_whole_scenario(self, run: Run) -> None:
        assert load_scenario(run.folder / "scenario.toml") == SCENARIO
        assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "scenario.toml"]

    def test_another_run_is_never_overwritten(self, run: Run) -> None:
        (run.folder / "metrics.jsonl").write_text("precious\n")
        with pytest.raises(RunError, match=r"never overwrites.*exists; resume it with --resume .*/x, choose another"):
            Run.create(run.folder, SCENARIO)
        assert (run.folder / "metrics.jsonl").read_text() == "precious\n"

    def test_the_options_of_whoever_asks_are_named(self, run: Run) -> None:
        with pytest.raises(RunError, match=r"resume it with simulate --resume .*/x, choose another folder with --fold"):
            Run.create(run.folder, SCENARIO, option="--folder", resume="simulate --resume")

    @pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
    def test_nor_anything_else(self, tmp_path: Path, make: Any) -> None:
        make(tmp_path / "mine")
        with pytest.raises(RunError, match=r"'.*mine' exists; choose another folder with --run, or remove it"):
            Run.create(tmp_path / "mine", SCENARIO)

    def test_a_file_where_a_parent_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "runs").touch()
        for folder in (tmp_path / "runs" / "x", tmp_path / "runs" / "deep" / "x"):
            with pytest.raises(RunError, match=r"cannot be made: (File exists|Not a directory); choose another"):
                Run.create(folder, SCENARIO)


class TestOpen:
    def test_with_its_own_scenario(self, run: Run) -> None:
        assert Run.open(run.folder).scenario == SCENARIO
        assert Run.open(run.folder, SCENARIO).scenario == SCENARIO

    def test_rounds_record_and_device_may_change_and_are_kept(self, run: Run) -> None:
        changed = replace(SCENARIO, rounds=99, device="cpu", record=replace(SCENARIO.record, keep=1))
        assert Run.open(run.folder, changed).scenario == changed
        assert Run.open(run.folder).scenario == changed

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("seed=4", "seed: 0 → 4"),
            ("training.lr=0.5", "training.lr: 0.1 → 0.5"),
            ("rule.groups=1", "rule.groups: 2 → 1"),
            ("sizes.hidden2=32", "sizes.hidden2: not set → 32"),
            ("clients=3", "clients: 8 → 3"),
            ("round.deadline=3", "round.deadline: 3600.0 → 3.0"),
            ("name=y", "name: x → y"),
        ],
    )
    def test_another_scenario_is_refused_and_the_key_named(self, run: Run, override: str, said: str) -> None:
        with pytest.raises(RunError) as caught:
            Run.open(run.folder, parse_scenario(SCENARIO.to_toml(), [override]))
        free = "only rounds, record, device may change. Resume without naming a scenario, or start a new run"
        assert f"differs in {said}, and {free}" in str(caught.value)
        assert Run.open(run.folder).scenario == SCENARIO

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "odd" / "scenario.toml").mkdir(parents=True)
        for name in ("none", "file", "empty", "odd"):
            with pytest.raises(RunError, match=rf"holds its scenario.toml, but '.*{name}' does not: .*such as runs/"):
                Run.open(tmp_path / name)

    @pytest.mark.parametrize("text", [b"name = ", b"name = 3", b'cleints = "x"', b"", b"\xff\xfe"])
    def test_a_scenario_that_cannot_be_read(self, run: Run, text: bytes) -> None:
        (run.folder / "scenario.toml").write_bytes(text)
        with pytest.raises(RunError, match=r"the scenario of run '.*/x' cannot be read: .*mend its scenario.toml"):
            Run.open(run.folder)


# --- Metrics ----------------------------------------------------------------------------------------------------------


class TestMetrics:
    def test_none_yet(self, run: Run) -> None:
        assert run.metrics() == []

    def test_one_line_a_round(self, run: Run) -> None:
        lines = [{"round": 1, "loss": 0.5, "text": "é\n\u2028"}, {"round": 2, "seconds": {"wait": 1.5}, "clients": [1]}]
        for line in lines:
            run.record(line)
        assert run.metrics() == lines
        assert Run.open(run.folder).metrics() == lines
        assert (run.folder / "metrics.jsonl").read_text().count("\n") == 2

    def test_numbers_that_json_does_not_know_become_null(self, run: Run) -> None:
        run.record({"loss": nan, "seconds": {"wait": inf}, "capacities": (1.0, -inf), "merged": 2})
        text = (run.folder / "metrics.jsonl").read_text()
        assert json.loads(text, parse_constant=pytest.fail) == {
            "loss": None,
            "seconds": {"wait": None},
            "capacities": [1.0, None],
            "merged": 2,
        }

    @pytest.mark.parametrize("end", ['{"round": 3, "lo', "{", '{"round": 3}', "3", "\ufffd"])
    def test_a_last_line_cut_short_is_not_counted(self, run: Run, end: str) -> None:
        run.record({"round": 1})
        run.record({"round": 2})
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(end)
        assert run.metrics() == [{"round": 1}, {"round": 2}]

    @pytest.mark.parametrize("bad", ["", "{", "3", "[1]", "null", "nonsense " * 100])
    def test_a_broken_line_before_others_is_named(self, run: Run, bad: str) -> None:
        (run.folder / "metrics.jsonl").write_text(f'{{"round": 1}}\n{bad}\n{{"round": 3}}\n')
        with pytest.raises(RunError, match=r"every line of .* is a JSON object, but line 2 is not") as caught:
            run.metrics()
        assert len(str(caught.value)) < 500

    def test_a_folder_where_the_file_should_be(self, run: Run) -> None:
        (run.folder / "metrics.jsonl").mkdir()
        with pytest.raises(RunError, match=r"metrics.jsonl' cannot be read: Is a directory"):
            run.metrics()
        with pytest.raises(RunError, match=r"metrics.jsonl' cannot be written: Is a directory"):
            run.record({"round": 1})

    def test_a_reader_never_sees_half_a_line(self, run: Run) -> None:
        """Another process reads while the run writes, as the simulation engine does."""
        line = {"round": 1, "text": "x" * 20_000}
        writer = threading.Thread(target=lambda: [run.record(line) for _ in range(100)])
        writer.start()
        while writer.is_alive():
            assert all(read == line for read in run.metrics())
        writer.join()
        assert len(run.metrics()) == 100


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class TestCheckpoints:
    def test_round_trip(self, run: Run) -> None:
        run.checkpoint(state(7))
        assert equal(Run.open(run.folder).restore(), state(7))

    def test_a_coverage_is_restored_to_the_mark(self, run: Run) -> None:
        arrays = tiny.initial(tiny.Tiny())
        axes = infer(tiny.Tiny().build, tiny.SIZES)
        before, after = (Coverage(arrays, axes, tiny.SIZES) for _ in range(2))
        before.mark({"hidden1": torch.tensor([1, 3]), "hidden2": torch.tensor([0, 5, 6])})
        run.checkpoint(Checkpoint(1, arrays, before.state()))
        after.load(run.restore().coverage)
        assert after.fraction() == before.fraction() > 0

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "x", replace(SCENARIO, record=replace(SCENARIO.record, keep=2)))
        for round in (1, 2, 5, 9, 10):
            run.checkpoint(state(round))
        assert files(run) == [f"round-{r:06d}.{kind}" for r in (9, 10) for kind in ("json", "safetensors")]
        assert run.restore().round == 10

    def test_rounds_are_ordered_as_numbers(self, run: Run) -> None:
        for round in (999_999, 1_000_000):
            run.checkpoint(state(round))
        assert run.restore().round == 1_000_000

    def test_writing_a_round_again_replaces_it(self, run: Run) -> None:
        run.checkpoint(Checkpoint(3, state(9).arrays, state(9).coverage))
        run.checkpoint(state(3))
        assert equal(run.restore(), state(3))

    def test_views_and_other_layouts_are_written(self, run: Run) -> None:
        wide = torch.arange(24.0).view(4, 6)
        run.checkpoint(Checkpoint(1, {"t": wide.T, "p": torch.nn.Parameter(wide.clone())}, {}))
        assert torch.equal(run.restore().arrays["t"], wide.T)

    def test_nothing_to_resume_from(self, run: Run) -> None:
        with pytest.raises(
            RunError, match=r"resumed from a checkpoint, but none in .* \(there is none yet\); start a new"
        ):
            run.restore()

    def test_restoring_drops_the_lines_of_rounds_that_are_run_again(self, run: Run) -> None:
        for round in range(1, 8):
            run.record({"round": round})
            if round == 5:
                run.checkpoint(state(5))
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"round": 8, "tr')
        assert run.restore().round == 5
        run.record({"round": 6})
        assert [line["round"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]

    def test_restoring_drops_lines_that_nobody_could_read(self, run: Run) -> None:
        (run.folder / "metrics.jsonl").write_bytes(b'{"round": 1}\nnonsense\n\xff\n[1]\n{"loss": 3}\n{"round": 2}\n')
        run.checkpoint(state(2))
        run.restore()
        assert run.metrics() == [{"round": 1}, {"round": 2}]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def rewrite(**changed: Any) -> Any:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


DAMAGE = {
    "truncated arrays": ("safetensors", truncate),
    "a flipped byte": ("safetensors", flip),
    "empty arrays": ("safetensors", lambda path: path.write_bytes(b"")),
    "no arrays": ("safetensors", Path.unlink),
    "a truncated label": ("json", truncate),
    "an empty label": ("json", lambda path: path.write_bytes(b"")),
    "a label that is no text": ("json", lambda path: path.write_bytes(b"\xff")),
    "a label that is a list": ("json", lambda path: path.write_text("[1]")),
    "a label of nothing": ("json", lambda path: path.write_text("{}")),
    "a label of another round": ("json", rewrite(round=2)),
    "a label with another hash": ("json", rewrite(sha256="0" * 64)),
}


class TestCrashes:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_a_damaged_checkpoint_falls_back_to_the_one_before(
        self, run: Run, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for round in (1, 2, 3):
            run.checkpoint(state(round))
        suffix, harm = DAMAGE[damage]
        harm(run.folder / "checkpoints" / f"round-000003.{suffix}")
        with caplog.at_level(logging.WARNING, "ist_fed"):
            assert equal(run.restore(), state(2))
        assert "the checkpoint of round 3 cannot be used (" in caplog.text
        assert "trying the one before" in caplog.text

    def test_all_damaged(self, run: Run) -> None:
        for round in (1, 2):
            run.checkpoint(state(round))
        flip(run.folder / "checkpoints" / "round-000002.safetensors")
        truncate(run.folder / "checkpoints" / "round-000001.safetensors")
        with pytest.raises(RunError) as caught:
            run.restore()
        assert "none in " in str(caught.value)
        assert "(round 2: its bytes are not those that were written; round 1: it has " in str(caught.value)

    @pytest.mark.parametrize(
        "left", ["round-000003.safetensors", "round-000003.safetensors.tmp", "round-000003.json.tmp"]
    )
    def test_what_a_crash_left_before_the_label_does_not_count_and_is_cleared(self, run: Run, left: str) -> None:
        run.checkpoint(state(2))
        (run.folder / "checkpoints" / left).write_bytes(b"half")
        assert run.restore().round == 2
        run.checkpoint(state(4))
        assert left not in files(run)
        assert run.restore().round == 4

    def test_after_a_fallback_new_checkpoints_count_and_the_damaged_are_dropped(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "x", replace(SCENARIO, record=replace(SCENARIO.record, keep=1)))
        run.checkpoint(state(10))
        for round in (20, 30):  # as if written with a larger `keep`
            (run.folder / "checkpoints" / f"round-{round:06d}.json").write_text("{}")
        assert run.restore().round == 10
        run.checkpoint(state(15))
        assert files(run) == ["round-000015.json", "round-000015.safetensors"]
        assert run.restore().round == 15

    def test_other_files_in_the_folder_are_let_be(self, run: Run) -> None:
        for name in ("round-notes.txt", "round-best.json", "README"):
            (run.folder / "checkpoints" / name).write_text("mine")
        run.checkpoint(state(1))
        assert run.restore().round == 1
        assert {"round-notes.txt", "round-best.json", "README"} <= set(files(run))

    def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(self, run: Run) -> None:
        run.checkpoint(state(1))
        (run.folder / "checkpoints" / "round-000002.safetensors").mkdir()  # the name is taken
        with pytest.raises(
            RunError, match=r"round-000002.safetensors' cannot be written: .*make room, or give the right"
        ):
            run.checkpoint(state(2))
        assert run.restore().round == 1

    def test_on_a_full_disk_nothing_is_half_written(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        run.checkpoint(state(1))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot be written: No space left on device; make room") as caught:
            run.checkpoint(state(2))
        assert out_of_room(caught.value)
        with pytest.raises(RunError, match="No space left"):
            Run.create(run.folder.with_name("y"), SCENARIO)
        monkeypatch.undo()
        assert files(run) == ["round-000001.json", "round-000001.safetensors"]
        assert equal(run.restore(), state(1))
        Run.create(run.folder.with_name("y"), SCENARIO)  # the folder is not in the way

    def test_a_staged_checkpoint_does_not_count_yet(self, run: Run) -> None:
        run.checkpoint(state(1))
        count = run.stage(state(2))
        assert run.restore().round == 1
        count()
        assert equal(run.restore(), state(2))

    def test_a_checkpoint_or_a_network_is_something_to_lose(self, run: Run) -> None:
        run.record({"round": 1})
        assert not run.has_state()
        run.save_model(state(1).arrays, {})
        assert run.has_state()
        (run.folder / "model.safetensors").unlink()
        run.checkpoint(state(1))
        assert run.has_state()

    def test_a_run_that_starts_over_keeps_no_lines(self, run: Run) -> None:
        run.start_over()
        assert not (run.folder / "metrics.jsonl").exists()
        run.record({"round": 1})
        run.start_over()
        assert run.metrics() == []


# --- The final model --------------------------------------------------------------------------------------------------


def test_the_final_model_and_how_to_rebuild_it(run: Run) -> None:
    arrays = state(3).arrays
    run.save_model(arrays, {"task": "digits", "sizes": {"hidden1": 32}, "loss": nan})
    assert tiny.same(load_file(run.folder / "model.safetensors"), dict(sorted(arrays.items())))
    about = json.loads((run.folder / "model.json").read_text())
    assert about == {"task": "digits", "sizes": {"hidden1": 32}, "loss": None}
    assert not list(run.folder.glob("*.tmp"))


def test_the_saved_model_is_read_by_safetensors_with_its_ties(run: Run) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
        net[1].weight = net[0].weight
        return net

    made, read = build(), build()
    run.save_model(arrays_of(made), {})
    assert load_model(read, run.folder / "model.safetensors") == (set(), [])
    assert torch.equal(read[1].weight, made[1].weight)
