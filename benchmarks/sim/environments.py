"""Environments of their own for peers, so that what they need does not mix with what we need."""

import subprocess
import sys
import venv
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"
"""Git ignores it; `rm -rf` is always safe."""

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

PACKAGES: dict[str, list[list[str]]] = {
    "pfl": [["pfl==0.6.0"]],
    # Without its dependencies: torchvision, of which we use nothing, would come as a build for another torch.
    "fedlab": [["--no-deps", "fedlab==1.3.0"], ["pynvml", "munch", "tqdm", "pandas", "scikit-learn", "pillow"]],
}
"""Peer → what pip is called with, after torch."""


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment, which is made when it is missing.

    Raises:
        RuntimeError: it cannot be made; the message says why.
    """
    folder = CACHE / "envs" / peer
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"making the environment of {peer} …", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        _install(str(python), ["-c", str(CONSTRAINTS), "torch", "numpy"])  # first: our own build, never one with CUDA
        for arguments in PACKAGES[peer]:  # none of them asks for torch, and some for older versions than ours
            _install(str(python), arguments)
        done.touch()
    return str(python)


def _install(python: str, arguments: list[str]) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        reason = next((line for line in tried.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
        raise RuntimeError(f"{arguments[-1]} cannot be installed: {reason}")


def interpreter(peer: str | None) -> str:
    """Where a contestant runs."""
    return python_of(peer) if peer else sys.executable
