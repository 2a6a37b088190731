"""Fixtures of the report's tests."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write_run(tmp_path: Path) -> Any:
    """`written.write` without its first argument."""
    from written import write  # not above: warnings are not filtered yet when this file is read

    return partial(write, tmp_path / "runs")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are left blank, where a test is about the text around them."""
    from ist_fed.report import compare, story
    from ist_fed.report.canvas import Drawn

    for module in (story, compare):
        monkeypatch.setattr(module, "draw", lambda picture: Drawn(picture, b"light", b"dark"))
