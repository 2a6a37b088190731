"""`ist-fed client start --supernode`: Flower's SuperNode, started again while its server may not know it yet."""

import subprocess
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

client = import_module("ist_fed.cli.client")  # the package holds an app of that name


def codes(monkeypatch: pytest.MonkeyPatch, given: Sequence[int]) -> list[list[str]]:
    """Let SuperNodes end with these codes; the commands they were started with."""
    started: list[list[str]] = []

    def run(command: list[str], **more: Any) -> "subprocess.CompletedProcess[bytes]":
        started.append(command)
        return subprocess.CompletedProcess(command, given[len(started) - 1])

    monkeypatch.setattr(client.subprocess, "run", run)
    monkeypatch.setattr(client, "_AGAIN_S", 0.001)
    return started


def test_one_that_is_not_admitted_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = codes(monkeypatch, [1, 1, 0])
    assert client._supernode(None, "127.0.0.1:9092", {"partition-id": 3, "kit": "a.json"}) == 0
    assert len(started) == 3
    assert started[0][:3] == ["flower-supernode", "--superlink", "127.0.0.1:9092"]
    assert 'partition-id=3 kit="a.json"' in started[0]


def test_one_that_is_never_admitted_ends_as_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ADMISSION_S", 0.0)
    assert len(codes(monkeypatch, [1])) == 0
    assert client._supernode(None, "127.0.0.1:9092", {}) == 1


def test_one_that_is_told_to_stop_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = codes(monkeypatch, [0])
    assert client._supernode(None, "127.0.0.1:9092", {}) == 0
    assert len(started) == 1
