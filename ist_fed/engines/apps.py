"""Whose code answers a client: that of the installed package, or what the server sent, where that is allowed.

A server names its app by the hash of it. Only hashes that the client's operator allowed, once and for good, are run.
"""

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast

from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.supercore.run import Run as FlowerRun

from ist_fed.engines.fleet import Fleet
from ist_fed.engines.flower import app_folder
from ist_fed.errors import EngineError, FleetRefused
from ist_fed.files import write_atomically

Config = dict[str, bool | float | int | str]
"""A configuration as Flower has it, of a node or of a run."""


def installed_app() -> ClientApp:
    """The ClientApp of the installed package."""
    folder = str(app_folder())
    if folder not in sys.path:
        sys.path.append(folder)
    return cast(ClientApp, import_module("client.app").app)


@cache
def defaults() -> Config:
    """The run configuration of the installed app, where a run does not override it."""
    app = tomllib.loads((app_folder() / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    return cast(Config, app["config"])


class Apps:
    """What a client runs.

    Args:
        folder: the client's own; the hashes that were allowed are remembered in it, and apps are unpacked there.
        allow: more hashes to allow.

    Raises:
        EngineError: what is to be allowed is no hash, or what was allowed cannot be read.
    """

    def __init__(self, folder: Path, allow: Sequence[str] = ()) -> None:
        self._folder, self._list = folder, folder / "allowed-apps.json"
        try:
            self._allowed = _texts(json.loads(self._list.read_bytes())) if self._list.exists() else set()
        except (ValueError, TypeError) as error:
            raise EngineError(
                f"the apps that were allowed stand as a JSON list in '{self._list}', but that cannot be read: {error}; "
                f"remove it, and allow them again with --allow-app"
            ) from error
        for app in allow:
            if not re.fullmatch(r"[0-9a-f]{64}", app):
                raise EngineError(f"an app is allowed by its SHA-256, 64 hexadecimal digits, but '{app}' was given")
        if not self._allowed.issuperset(allow):
            self._allowed |= set(allow)
            write_atomically(self._list, json.dumps(sorted(self._allowed)).encode())

    def of(self, run: FlowerRun, fleet: Fleet) -> ClientApp:
        """What answers the messages of a run."""
        if run.fab_hash not in self._allowed:
            return installed_app()
        content = fleet.app(run).content
        if hashlib.sha256(content).hexdigest() != run.fab_hash:
            raise FleetRefused("the app that the server sent is not the one that was allowed; nothing of it was run")
        path = install_from_fab(content, self._folder / "apps", skip_prompt=True)
        return get_load_client_app_fn("", str(path), True)(run.fab_id, run.fab_version, run.fab_hash)


def _texts(read: object) -> set[str]:
    if not (isinstance(read, list) and all(isinstance(each, str) for each in read)):
        raise ValueError("it is another value")
    return set(read)
