"""Jobs, refusals and progress: what a server writes down and reads."""

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from ist_fed.engines import flower, jobs
from ist_fed.engines.flower import check_free, free_port
from ist_fed.engines.nodes import Admission
from ist_fed.engines.programs import Programs
from ist_fed.engines.refusals import Refusals
from ist_fed.engines.server import Server
from ist_fed.engines.site import Site, about, about_file, ask_to_stop
from ist_fed.engines.work import Work
from ist_fed.errors import EngineError, Interrupted
from ist_fed.files import is_gone
from ist_fed.pki import Federation, make_request
from ist_fed.progress import Progress, _born, forget, progress, reported
from ist_fed.roster import WAITING
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario

SCENARIO = parse_scenario('name="t"\ntask="digits"\nrule={name="full"}\n[sizes]\nhidden1=32\n')


def test_jobs_are_kept_in_their_order(tmp_path: Path) -> None:
    first, second = jobs.add(tmp_path, Path("a")), jobs.add(tmp_path, Path("b"))
    jobs.mark(tmp_path, first, "failed", "no power")
    assert [(job.number, job.run.name, job.state, job.reason) for job in jobs.jobs(tmp_path)] == [
        (1, "a", "failed", "no power"),
        (2, "b", "waiting", ""),
    ]
    assert second.run.is_absolute()


def test_a_run_is_asked_for_once_at_a_time(tmp_path: Path) -> None:
    job = jobs.add(tmp_path, Path("a"))
    with pytest.raises(EngineError, match="is waiting already, as job 1"):
        jobs.add(tmp_path, Path("a"))
    jobs.mark(tmp_path, job, "done")
    assert jobs.add(tmp_path, Path("a")).number == 2


@pytest.mark.parametrize("address", ["0.0.0.0:9092", "example.org:1", "[::]:9092", "10.0.0.1:5"])
def test_without_tls_a_server_listens_on_loopback_only(tmp_path: Path, address: str) -> None:
    with pytest.raises(EngineError, match="without TLS a server listens on loopback only"):
        Site(tmp_path, address)
    Site(tmp_path, "127.0.0.1:9092")


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1", "in use"), ("192.0.2.1", "assign requested address")])
def test_why_nobody_can_listen_at_an_address_is_said(host: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "_ANSWERS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"{host}:{other.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"'{address}', but it cannot be listened on: .*{why}"):
            check_free(address, "clients are awaited on", "--listen")


def test_a_port_for_subnets_that_is_taken_is_found_when_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "_ANSWERS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        why = rf"travel on '127.0.0.1:{port}', but it cannot be listened on: .*in use; .*with --streams"
        with pytest.raises(EngineError, match=why), Server(Site(tmp_path, f"127.0.0.1:{free_port()}", streams=port)):
            pass
    assert not (tmp_path / "superlink.log").exists()


def test_a_server_that_starts_is_not_taken_for_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or who asks it to stop ends whatever process has that id by now."""
    about_file(tmp_path).write_text('{"process": 99999999}')
    seen: list[object] = []
    monkeypatch.setattr(Programs, "start", lambda programs: seen.append(about(tmp_path)))
    with Server(Site(tmp_path, "127.0.0.1:9092")):
        assert seen == [None]


def test_a_server_whose_process_is_gone_cannot_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Programs, "start", lambda programs: about_file(tmp_path).write_text('{"process": 99999999}'))
    with Server(Site(tmp_path, "127.0.0.1:9092")), pytest.raises(EngineError, match=r"process 99999999 of .* is gone"):
        ask_to_stop(tmp_path)


@pytest.mark.parametrize("text", ["{", "\xff", "[]", "{}", '{"run": 3, "state": "done", "reason": ""}'])
def test_a_job_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    jobs.add(tmp_path, Path("a"))
    (tmp_path / "jobs" / "0001.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineError, match=r"0001.json' is not.*; remove it, and ask for its run again"):
        jobs.jobs(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "x"}'])
def test_a_record_of_who_is_registered_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    (tmp_path / "nodes.json").write_text(text)
    with pytest.raises(EngineError, match=r"nodes.json', but that cannot be read.*state.db'"):
        Admission(tmp_path, None)


@pytest.mark.parametrize("broken", ["ca/ca.pem", "server/server.pem", "server/server.key"])
def test_a_certificate_or_key_that_cannot_be_used_is_said_before_anything_is_started(
    broken: str, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    made = Federation.create(
        tmp_path / "f", name="f", address=address, hosts=["127.0.0.1"], passphrase=b"only for a test"
    )
    (tmp_path / "f" / broken).write_text("junk")
    with pytest.raises(EngineError, match=r"cannot be used: .*provision verify"), Server(Site(tmp_path, address, made)):
        pass
    assert not (tmp_path / "superlink.log").exists()


def test_a_server_stops_though_the_folder_of_its_run_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(server: Server, on_line: object, until_idle: bool) -> bool:
        server._current = Work(jobs.add(tmp_path, Run.create(tmp_path / "run", SCENARIO).folder))
        shutil.rmtree(tmp_path / "run")
        raise KeyboardInterrupt

    monkeypatch.setattr(Programs, "start", lambda programs: None)
    monkeypatch.setattr(Server, "_step", interrupt)
    with Server(Site(tmp_path, "127.0.0.1:9092")) as server, pytest.raises(Interrupted):
        server.serve()


def test_a_run_whose_folder_goes_has_failed_and_those_behind_it_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed `running`; and of several runs a server that was to end when all are done did the first."""
    for name in ("gone", "next"):
        jobs.add(tmp_path, Run.create(tmp_path / name, SCENARIO).folder)

    def submit(server: Server, work: Work) -> None:
        work.submitted = 0.0
        if work.run.folder.name == "gone":
            shutil.rmtree(work.run.folder)
        else:
            with reported(work.run):
                pass

    for name in ("start", "admit", "read_logs"):
        monkeypatch.setattr(Programs, name, lambda programs: None)
    monkeypatch.setattr(Programs, "started", True)
    monkeypatch.setattr(Server, "_submit", submit)
    monkeypatch.setattr(Server, "_why_not_begun", lambda server, work: "it ended")
    why = r"the run in '.*gone' failed: its folder is gone"
    with Server(Site(tmp_path, "127.0.0.1:9092")) as server, pytest.raises(EngineError, match=why):
        server.serve(until_idle=True)
    assert [job.state for job in jobs.jobs(tmp_path)] == ["failed", "done"]


def test_a_folder_whose_disk_does_not_answer_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a share that is away for a moment would end a run of days."""
    assert is_gone(tmp_path / "run")
    assert not is_gone(tmp_path)

    def stale(path: Path, **options: object) -> NoReturn:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    assert not is_gone(tmp_path / "run")


def test_a_run_that_is_given_up_is_a_failure_for_whoever_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`deploy local` printed the result of what there was, and ended with 0."""
    jobs.add(tmp_path, Run.create(tmp_path / "run", SCENARIO).folder)
    for name in ("start", "admit", "read_logs"):
        monkeypatch.setattr(Programs, name, lambda programs: None)
    monkeypatch.setattr(Programs, "started", True)
    monkeypatch.setattr(Server, "_submit", lambda server, work: None)
    monkeypatch.setattr(Server, "_why_not_begun", lambda server, work: "it ended before it began")
    monkeypatch.setattr("ist_fed.engines.server._LOOK_S", 0.0)
    why = r"failed: it ended before it began, 5 times without progress"
    with Server(Site(tmp_path, "127.0.0.1:9092")) as server, pytest.raises(EngineError, match=why):
        server.serve(until_idle=True)


def test_a_port_that_is_let_go_is_waited_for_and_one_where_somebody_answers_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flower, "_ANSWERS_S", 0.0)
    monkeypatch.setattr(flower, "_RELEASE_S", 1e9)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(EngineError, match="in use"):
        check_free(f"127.0.0.1:{other.getsockname()[1]}", "clients are awaited on", "--listen")
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    monkeypatch.setattr(time, "sleep", lambda seconds: held.close())
    check_free(f"127.0.0.1:{held.getsockname()[1]}", "clients are awaited on", "--listen")


class TestProgress:
    def test_each_end_is_said(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "run", SCENARIO)
        assert progress(run) is None
        with reported(run):
            said = progress(run)
            assert said is not None
            assert (said.state, said.process, said.alive) == ("working", os.getpid(), True)
        said = progress(run)
        assert said is not None
        assert (said.state, said.alive) == ("done", False)
        for error, state, reason in (
            (ValueError("bad"), "failed", "ValueError: bad"),
            (Interrupted("x"), "stopped", ""),
            (KeyboardInterrupt(), "stopped", ""),
            (SystemExit(1), "stopped", ""),
            (OSError(errno.ENOSPC, "No space left"), "full", "[Errno 28] No space left"),
        ):
            with pytest.raises(type(error)), reported(run):
                raise error
            said = progress(run)
            assert said is not None
            assert (said.state, said.reason) == (state, reason)
        forget(run)
        assert progress(run) is None

    def test_what_is_waited_for_is_said_until_it_has_come(self, tmp_path: Path) -> None:
        run, waiting = Run.create(tmp_path / "run", SCENARIO), logging.getLogger(WAITING)
        found = list[str]()
        with reported(run):
            for say in (waiting.warning, waiting.info):
                say("waiting for clients: 1 of 2 are connected")
                said = progress(run)
                assert said is not None
                assert said.state == "working"
                found.append(said.waiting)
        assert found == ["waiting for clients: 1 of 2 are connected", ""]
        waiting.warning("after the end")
        said = progress(run)
        assert said is not None
        assert (said.state, said.waiting) == ("done", "")

    def test_what_a_run_waits_for_is_told_when_it_is_new(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        work = Work(jobs.add(tmp_path, Run.create(tmp_path / "run", SCENARIO).folder))
        for waiting in ("waiting: 0", "waiting: 0", "waiting: 1", "", "", "waiting: 1"):
            work.tell(waiting)
        assert [record.getMessage()[-1] for record in caplog.records] == ["0", "1", "1"]

    def test_a_process_that_is_gone_is_not_alive(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "run", SCENARIO)
        (run.folder / "progress.json").write_text('{"state": "working", "process": 99999999, "reason": ""}')
        said = progress(run)
        assert said is not None
        assert not said.alive

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="here no process says when it began")
    def test_a_process_that_has_ended_and_was_not_asked_how_is_not_alive(self) -> None:
        """In a container nobody may ask."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            said = Progress("working", process.pid, born=_born(process.pid))
            assert said.alive
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert not said.alive

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="here no process says when it began")
    def test_it_ends_who_said_so_and_never_another_of_the_same_id(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path / "run", SCENARIO)
        with reported(run):
            mine = progress(run)
        with subprocess.Popen(["sleep", "60"]) as other:
            assert mine is not None
            stale = replace(mine, state="working", process=other.pid)  # what was said by whoever had this id before
            unsure = replace(stale, born="")
            for said in (stale, unsure):
                assert not said.alive
                said.end()
            time.sleep(0.05)
            assert other.poll() is None
            replace(stale, born=_born(other.pid)).end()
            assert other.wait(10) == -signal.SIGKILL

    def test_whom_a_killed_server_left_behind_is_ended_before_anything_is_started(self, tmp_path: Path) -> None:
        """It holds the port for subnets."""
        run = Run.create(tmp_path / "run", SCENARIO)
        holding = (
            "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
        )
        with subprocess.Popen([sys.executable, "-c", f"{holding}; time.sleep(60)"], stdout=subprocess.PIPE) as stray:
            assert stray.stdout is not None
            port = int(stray.stdout.readline())
            said = {"state": "working", "process": stray.pid, "born": _born(stray.pid)}
            (run.folder / "progress.json").write_text(json.dumps(said))
            jobs.mark(tmp_path, jobs.add(tmp_path, run.folder), "running")
            jobs.end_strays(tmp_path)
            check_free(f"127.0.0.1:{port}", "subnets travel on", "--streams")
            assert stray.wait(10) == -signal.SIGKILL

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"state": "working"}'])
    def test_what_cannot_be_read_says_nothing(self, tmp_path: Path, text: str) -> None:
        run = Run.create(tmp_path / "run", SCENARIO)
        (run.folder / "progress.json").write_text(text)
        assert progress(run) is None


def test_refusals_become_sentences_once_a_look(tmp_path: Path) -> None:
    federation = Federation.create(
        tmp_path / "f", name="f", address="localhost:1", hosts=["localhost"], passphrase=b"only for a test"
    )
    federation.approve(make_request(tmp_path / "c", "alice"), passphrase=b"only for a test")
    alice = federation.revoke("alice")
    key = load_ssh_public_key(alice.public_key.encode())
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    log = tmp_path / "log"
    log.write_text("[ApiError:2004] an old line, before the start\n")
    refusals = Refusals(log, federation)
    assert refusals.new() == []
    with log.open("a") as file:
        file.write(f"ERROR [x][ApiError:2004] Attempted to register SuperNode with public key: {pem!r}, exception\n")
        file.write("I1122 ssl_transport_security.cc] Handshake failed with error SSL: WRONG_VERSION_NUMBER: x\n" * 3)
        file.write("\x1b[93mWARNING \x1b[0m:    turned a node away: Invalid timestamp\n")
        file.write("WARNING :    turned a node away: Invalid signature\nWARNI")
    assert refusals.new() == [
        "client 'alice' was turned away: it was revoked",
        "somebody who does not speak TLS was turned away",
        "a client whose clock is more than 5 s ahead or 305 s behind was turned away",
        "a client was turned away: Invalid signature",
    ]
    with log.open("a") as file:
        file.write("NG :    turned a node away: Invalid node ID\n")
    assert refusals.new() == ["a client that was revoked was turned away"]
    other = make_request(tmp_path / "d", "bob").with_name("bob.pub").read_bytes()
    pem = load_ssh_public_key(other).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with log.open("a") as file:
        file.write(f"[ApiError:2004] public key: {pem!r}, exception\n")
    assert refusals.new() == [
        "a client with an unknown key was turned away: approve its request with `ist-fed provision approve`"
    ]


def test_what_a_caller_sends_does_not_become_a_sentence(tmp_path: Path) -> None:
    federation = Federation.create(
        tmp_path / "f", name="f", address="localhost:1", hosts=["localhost"], passphrase=b"only for a test"
    )
    federation.approve(make_request(tmp_path / "c", "alice"), passphrase=b"only for a test")
    (alice,) = federation.clients()
    key = load_ssh_public_key(alice.public_key.encode())
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (log := tmp_path / "log").touch()
    refusals = Refusals(log, federation)
    said = b"WARNING :    turned a node away: it is all clear"
    with log.open("a") as file:
        for sent in (said, said + b" 'twice'", b"-----BEGIN CERTIFICATE-----\n" + pem):
            file.write(f"ERROR :  [ApiError:2004] with public key: {sent!r}, exception: No SuperNode\n")
        file.write(f"ValueError: Invalid isoformat string: {said.decode()!r}\n")
    assert refusals.new() == [
        "a client with an unknown key was turned away: approve its request with `ist-fed provision approve`"
    ]


def test_refusals_survive_that_their_log_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("WARNING :    turned a node away: Invalid timestamp\n" * 9)
    refusals = Refusals(log, None)
    log.write_text("WARNING :    turned a node away: Invalid node ID\n")
    assert refusals.new() == ["a client that was revoked was turned away"]
    assert refusals.new() == []
