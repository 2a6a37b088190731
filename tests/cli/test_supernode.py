"""`ist-fed client start --supernode`: Flower's SuperNode, started again while its server may not know it yet."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ist_fed.engines.streams import Service
from ist_fed.pki import Federation, make_request

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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("more", [[], ["--supernode"]], ids=["resident", "stock"])
def test_a_server_of_another_federation_is_named_in_one_sentence_and_nothing_else_is_said(
    more: list[str], tmp_path: Path
) -> None:
    word, hosts = b"only for this test", ["127.0.0.1"]
    there = Federation.create(tmp_path / "f", name="f", address="127.0.0.1:1", hosts=hosts, passphrase=word)
    service = Service("127.0.0.1:0", (there.server_certificate, there.server_key))
    address = f"127.0.0.1:{service.port}"
    own = Federation.create(tmp_path / "own", name="own", address=address, hosts=hosts, passphrase=word)
    kit = own.approve(make_request(tmp_path / "a", "a"), passphrase=word)
    command = [sys.executable, "-m", "ist_fed", "client", "start", "--kit", str(kit), "--partition", "0/1", *more]
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    finally:
        service.close()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: the server at {address} cannot be used: it shows a certificate that this kit's authority did not "
        f"sign, so it is not the server of this federation\n"
    )
