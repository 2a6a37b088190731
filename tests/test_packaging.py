"""What people install: one package, with the Flower app riding inside."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.supercore.object_ref import validate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_the_app(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ist_fed"}
    for part in ("server/app.py", "client/app.py", "scenarios/digits.toml", "pyproject.toml", "LICENSE"):
        assert f"ist_fed/app/{part}" in names
    assert "ist_fed/py.typed" in names
    assert not any("__pycache__" in name or name.startswith("ist_fed/app/ist_fed") for name in names)


@pytest.mark.slow
def test_from_a_bare_wheel_the_app_is_found_and_bundled(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    find = "from ist_fed.engines.flower import app_folder; print(app_folder())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {find}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "ist_fed" / "app"), found.stderr
    flwr = Path(sys.executable).parent / "flwr"
    command = [str(flwr), "build", "--app", found.stdout.strip()]
    built = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"FLWR_HOME": str(tmp_path / "home")}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    bundled = {name for name in zipfile.ZipFile(next(tmp_path.rglob("*.fab"))).namelist() if name.endswith(".py")}
    assert bundled == {
        "server/__init__.py",
        "server/app.py",
        "client/__init__.py",
        "client/app.py",
        "client/data.py",
        "client/device.py",
        "client/discretion.py",
        "client/secrecy.py",
    }


@pytest.mark.parametrize("side", ["ServerApp", "ClientApp"])
def test_flower_finds_the_apps_of_the_readme_which_it_does_not_run(side: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if f"import {side}\n" in block)
    (tmp_path / f"readme_{side}.py").write_text(example)
    assert validate(f"readme_{side}:app", project_dir=tmp_path) == (True, None)


TYPED = """
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed import Task, Worker
from ist_fed.models import mlp
from ist_fed.tasks import Batch


class MyTask(Task):
    def build(self, **sizes: int) -> nn.Module:
        return mlp(20, 2)(**sizes)

    def client_data(self, client: int, clients: int) -> TensorDataset:
        return TensorDataset(torch.randn(100, 20), torch.randint(2, (100,)))

    def test_data(self) -> TensorDataset:
        return self.client_data(0, 1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        return -self.loss(model, batch)


worker = Worker(MyTask(), TensorDataset(torch.randn(9, 20), torch.zeros(9)), client=0)
"""


@pytest.mark.slow
def test_a_typed_task_of_ones_own_passes_a_strict_check(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"MYPYPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
