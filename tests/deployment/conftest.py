from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import Local


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    made = Local(tmp_path)
    yield made
    made.close()
