"""Which of a server's apps a client was allowed to run, and that this is kept."""

import json
from pathlib import Path

import pytest

from ist_fed.engines.apps import Apps
from ist_fed.errors import EngineError

HASH = "0" * 64


def test_what_was_allowed_is_remembered(tmp_path: Path) -> None:
    Apps(tmp_path, [HASH])
    Apps(tmp_path, ["1" * 64])
    assert json.loads((tmp_path / "allowed-apps.json").read_text()) == [HASH, "1" * 64]


@pytest.mark.parametrize("text", ["{", "7", "[[]]", "[1]", '{"a": 1}', '"abc"'])
def test_what_was_allowed_and_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "allowed-apps.json").write_text(text)
    with pytest.raises(EngineError, match=r"allowed-apps.json', but that cannot be read: .*--allow-app"):
        Apps(tmp_path)


def test_an_app_is_allowed_by_its_hash(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="64 hexadecimal digits, but 'x' was given"):
        Apps(tmp_path, ["x"])
