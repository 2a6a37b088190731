"""Whether a disk has room, and what a server does when it has none."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ist_fed.engines import jobs, room
from ist_fed.engines.programs import Programs
from ist_fed.engines.room import Room
from ist_fed.engines.server import Server
from ist_fed.engines.site import Site
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario

SCENARIO = parse_scenario('name="t"\ntask="digits"\nrule={name="full"}\n[sizes]\nhidden1=32\n')
MIB = 1 << 20


class Disk:
    """Stands for every disk."""

    free = 100 * MIB

    def __call__(self, path: Path) -> SimpleNamespace:
        assert path.exists()
        return SimpleNamespace(free=self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(room.shutil, "disk_usage", made)
    return made


def test_what_the_pause_itself_frees_is_not_enough_to_go_on(disk: Disk, tmp_path: Path) -> None:
    known = Room()
    for free, lacks in ((100, False), (16, False), (15, True), (16, True), (31, True), (32, False), (16, False)):
        disk.free = free * MIB
        assert bool(known.lacking(tmp_path, tmp_path / "not" / "yet")) is lacks, free
    disk.free = 3 * MIB // 2
    assert known.lacking(tmp_path) == (
        f"there is no room: the disk of '{tmp_path}' must have 32 MiB free, but has 1.5; make room, and the server "
        f"goes on by itself; what was saved is safe"
    )


def test_what_failed_although_there_was_room_is_tried_again_after_a_while(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, now = Room(), [1000.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    known.failed("'x' cannot be written")
    assert "'x' cannot be written; the server tries again in a minute" in known.lacking(tmp_path)
    now[0] += 61
    assert known.lacking(tmp_path) == ""


class Stub(Programs):
    """Programs that are not started, and say what was asked of them."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.said: list[str] = []

    started = property(lambda self: self.said[-1:] == ["start"])

    def start(self) -> None:
        self.said.append("start")

    def end(self) -> None:
        self.said.append("end")

    def admit(self) -> None: ...

    def read_logs(self) -> None: ...


@pytest.fixture
def server(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("ist_fed.engines.server.Programs", Stub)
    with Server(Site(tmp_path / "home", "127.0.0.1:1")) as made:
        monkeypatch.setattr(made, "_submit", lambda work: setattr(work, "submitted", 1e9))
        yield made


def step(server: Server) -> list[str]:
    assert server._try(lambda run, line: None, until_idle=True)
    assert isinstance(server._programs, Stub)
    return server._programs.said


def test_a_server_rests_while_there_is_no_room_and_goes_on_with_its_run(
    server: Server, disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.add(server.site.home, Run.create(tmp_path / "run", SCENARIO).folder)
    step(server)
    work = server._current
    assert work is not None
    assert work.submitted
    disk.free = 0
    for _ in range(3):
        assert step(server) == ["start", "end"]
    assert work.submitted is None
    assert caplog.text.count("there is no room") == 1
    disk.free = 100 * MIB
    assert step(server) == ["start", "end", "start"]
    assert work.submitted
    assert work.attempts == 0  # that was not the run's fault
    assert "there is room again" in caplog.text


@pytest.mark.parametrize("state", ["full", "failed"])
def test_a_run_that_failed_for_want_of_room_has_not_failed(
    server: Server, disk: Disk, tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", SCENARIO)
    jobs.add(server.site.home, run.folder)
    step(server)
    (run.folder / "progress.json").write_text(json.dumps({"state": state, "process": 1, "reason": "no room"}))
    if state == "failed":  # by the SuperLink's fault, say: the disk was found to be full only then
        answers = iter([True])
        monkeypatch.setattr(server, "_has_room", lambda: next(answers, False))
    step(server)
    assert [job.state for job in jobs.jobs(server.site.home)] == ["running"]
    if state == "full":
        assert step(server)[-1] == "end"


def test_what_a_server_cannot_write_makes_it_rest(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server, "_next", full)
    step(server)
    assert step(server)[-1] == "end"
    assert "there is no room: [Errno 28] No space left on device" in caplog.text


def test_any_other_error_is_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(server, "_next", broken)
    with pytest.raises(PermissionError):
        step(server)
