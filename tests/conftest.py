"""What every test shares: one torch thread, the same hypothesis examples on every machine, and goldens."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ist_fed", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("ist_fed")

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-goldens", action="store_true", help="write tests/goldens/*.json anew instead of comparing"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Not ours: the typer that flwr 1.39 asks for uses names that click 8.5 deprecates.
    config.addinivalue_line("filterwarnings", "ignore:'click.utils:DeprecationWarning")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """`golden("name", value)`: a JSON value must be the one pinned in `tests/goldens/name.json`."""

    def check(name: str, value: Any) -> None:
        path = GOLDENS / f"{name}.json"
        if request.config.getoption("--rewrite-goldens"):
            path.write_text(json.dumps(value, indent=1) + "\n")
        assert value == json.loads(path.read_text()), f"{path} differs; if that is meant, run pytest --rewrite-goldens"

    return check
