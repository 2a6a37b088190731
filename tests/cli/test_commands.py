"""The commands: what is said of each before it is imported is what it says itself, and what they import."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer

from ist_fed import cli
from ist_fed.cli.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_its_own_first_sentence(name: str) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").partition("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_all_commands_are_listed() -> None:
    help = run("--help").stdout
    assert all(f"\n  {name} " in help for name in COMMANDS)
    assert all(text.rstrip(".").split()[-1] in help for text in COMMANDS.values()), "a sentence is cut"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["provision", "--help"], ["simulat"]])
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str]) -> None:
    imported = run("-X", "importtime", *words).stderr
    assert " ist_fed.cli.commands\n" in imported
    assert not {line.rpartition("|")[2].strip() for line in imported.splitlines()} & {"torch", "flwr", "numpy"}


def test_a_report_of_a_bug_can_say_what_it_was_of() -> None:
    said = run("--version")
    known = (version("ist-fed"), version("flwr"), version("torch"), platform.python_version())
    assert (said.returncode, said.stdout) == (0, "ist-fed {} (flwr {}, torch {}, Python {})\n".format(*known))


def test_files_of_a_users_folder_are_not_taken_for_pythons(tmp_path: Path) -> None:
    for name in ("random", "torch", "inspect", "typing", "report"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    assert run("report", "--help", folder=tmp_path).returncode == 0
    assert "a run's folder holds" in run("report", "nowhere", folder=tmp_path).stderr


def run(*words: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """`ist-fed …` as its script runs it; words before the command may be Python's own options."""
    python = [*words[:2]] if words[0] == "-X" else []
    code = "import sys; sys.path = [p for p in sys.path if p]; from ist_fed.__main__ import main; main()"
    command = [sys.executable, *python, "-c", code, *words[len(python) :]]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
