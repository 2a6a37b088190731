"""The logs of programs that write without end."""

import sys
import time
from pathlib import Path

from ist_fed.engines import flower
from ist_fed.engines.logs import rotate

LARGEST = 10_000


def test_a_small_log_is_let_be(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    rotate(log, LARGEST)
    assert not log.exists()
    log.write_bytes(b"x" * LARGEST)
    rotate(log, LARGEST)
    assert log.stat().st_size == LARGEST
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_one_older_copy_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for content in (b"old", b"new"):
        log.write_bytes(content * LARGEST)
        rotate(log, LARGEST)
    assert log.read_bytes() == b""
    assert (tmp_path / "a.log.1").read_bytes() == b"new" * LARGEST


def test_where_no_copy_can_be_made_the_log_is_emptied_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * (LARGEST + 1))
    (tmp_path / "a.log.1").mkdir()
    rotate(log, LARGEST)
    assert log.read_bytes() == b""


def test_a_program_goes_on_at_the_start_of_its_log_when_it_is_cut(tmp_path: Path) -> None:
    talk = "import itertools, time\nfor n in itertools.count(): print('line', n, flush=True); time.sleep(0.001)"
    process = flower.start([sys.executable, "-c", talk], tmp_path, "a.log")
    log, deadline = tmp_path / "a.log", time.monotonic() + 120
    try:
        for _ in range(2):
            while log.stat().st_size <= LARGEST:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            rotate(log, LARGEST)
            assert log.stat().st_size < LARGEST
        while log.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        flower.stop(process)
    assert b"\0" not in log.read_bytes()  # no hole where the cut lines were
    assert b"\0" not in (tmp_path / "a.log.1").read_bytes()
