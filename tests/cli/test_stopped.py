"""What is left of a run, a comparison or a search that was stopped, killed or failed, and how it goes on."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from test_cli import Command, ist_fed  # noqa: F401 - a fixture


def start(*arguments: str) -> "subprocess.Popen[str]":
    """`ist-fed …` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "ist_fed", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_folder_that_was_there_before_is_never_removed(ist_fed: Command) -> None:  # noqa: F811
    ist_fed("simulate", "tiny.toml", "--run", "done")
    mine = Path("mine")
    mine.mkdir()
    for name in ("scenario.toml", "model.safetensors"):
        (mine / name).write_bytes(Path("done", name).read_bytes())
    (mine / "notes.txt").write_text("precious")
    code, _, err = ist_fed("simulate", "--resume", "mine")
    assert code == 1
    assert "resumed from a checkpoint" in err
    assert sorted(path.name for path in mine.iterdir()) == ["model.safetensors", "notes.txt", "scenario.toml"]


def test_a_new_run_that_fails_before_its_first_round_leaves_no_folder(ist_fed: Command) -> None:  # noqa: F811
    assert ist_fed("simulate", "tiny.toml", "--set", "rule.groups=3")[0] == 1
    assert not Path("runs/tiny").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_over(ist_fed: Command) -> None:  # noqa: F811
    settings = ["--set", "rounds=400", "--set", "record.checkpoint_every=100"]
    ist_fed("simulate", "tiny.toml", "--run", "whole", *settings)
    process = start("simulate", "tiny.toml", "--run", "cut", "--format", "json", *settings)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    assert Path("cut/metrics.jsonl").read_text().count("\n") >= 1
    assert not list(Path("cut/checkpoints").glob("*.json"))
    code, out, err = ist_fed("simulate", "--resume", "cut")
    assert code == 0, err
    assert "after 400 rounds" in out
    assert Path("cut/metrics.jsonl").read_text().count("\n") == 400
    whole, cut = load_file("whole/model.safetensors"), load_file("cut/model.safetensors")
    assert all(whole[name].equal(cut[name]) for name in whole)
