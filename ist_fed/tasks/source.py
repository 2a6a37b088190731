"""Where data lie that do not come with ist_fed: the user's own copy of a public data set."""

import os
from dataclasses import dataclass
from pathlib import Path

from ist_fed.errors import TaskError

ROOT = "IST_FED_DATA"
"""Environment variable: a folder with a folder for each data set."""

PATHS = "IST_FED_PATHS"
"""Environment variable of a client: more folders in which a server may name paths, separated as in PATH."""


def may_name(path: str) -> bool:
    """Whether a server may name a path on this machine: if it lies in a folder that the operator named."""
    folders = [os.environ.get(ROOT, ""), *os.environ.get(PATHS, "").split(os.pathsep)]
    there = Path(path).expanduser().resolve()
    return any(there.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders if folder)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set.

    Args:
        title: what it is called.
        folder: its folder's name within `IST_FED_DATA`, as unpacked.
        get: where to get what.
    """

    title: str
    folder: str
    get: str

    def find(self, path: str) -> Path:
        """The folder that the data lie in.

        Args:
            path: the option of that name; empty where it is not given.

        Raises:
            TaskError: there is none; the message says how to come by the data.
        """
        root = os.environ.get(ROOT, "")
        folder = Path(path).expanduser() if path else Path(root).expanduser() / self.folder
        if (path or root) and folder.is_dir():
            return folder
        found = f"there is no folder '{folder}'" if path or root else "neither options.path nor IST_FED_DATA is set"
        raise TaskError(
            f"{self.title} must be brought along, but {found}; get {self.get}, unpack it, and name its folder in "
            f"options.path (--set 'options.path=\"…\"'), or put it as '{self.folder}' into a folder that {ROOT} names"
        )
