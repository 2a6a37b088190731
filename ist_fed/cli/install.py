"""`ist-fed client install`: a client on a host that is reached by ssh, kept running there by systemd.

Everything goes through the user's own `ssh` and `scp`. The client's private key is made on the host and stays there.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from ist_fed import __version__
from ist_fed.engines.flower import app_folder
from ist_fed.errors import EngineError
from ist_fed.pki import document
from ist_fed.pki.files import check_name
from ist_fed.pki.kit import KIT

BASE = ".local/share/ist-fed"
"""Below the home of the user on the host: `venv`, `client` with key and kit, `inbox`."""

UNIT = "ist-fed-client"

_FOR_ROOT = re.compile(
    r"(User|Group|WorkingDirectory|StateDirectory\w*|Environment|CapabilityBoundingSet|AmbientCapabilities"
    r"|Protect\w+|PrivateTmp|RemoveIPC|After|Wants)="
)
"""What only the system's service manager can do, and what a user's does not know."""


def install(
    host: Annotated[str, typer.Option("--host", metavar="[USER@]HOST", help="As one would give it to ssh.")],
    request: Annotated[
        str | None, typer.Option(metavar="NAME", help="First: make a key there, and fetch the request.")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="Then: the kit with which the request was approved.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Of the federation's certificate, to compare.")] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Where the data are, on the host.")] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTION…]", help="More options of `client start`.")
    ] = None,
    python: Annotated[str, typer.Option(help="Python 3.11 or newer, on the host.")] = "python3.11",
    wheel: Annotated[Path | None, typer.Option(help="Of ist_fed; by default this version from pip's index.")] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Index that pip takes torch from, as PyTorch's install page names it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Install a client on a host over ssh: first with --request, and once that is approved, with --kit."""
    if (request is None) == (kit is None):
        raise EngineError("say which half is to be done: --request NAME, or --kit KIT once the request is approved")
    there = Host(host, dry_run)
    setup = setup_script(python, wheel, torch_index)
    if request is not None:
        _request(there, check_name(request), setup, wheel)
    else:
        assert kit is not None
        _start(there, kit, setup, wheel, fingerprint, start_options(data, more or []))


def _request(there: "Host", name: str, setup: str, wheel: Path | None) -> None:
    path = Path(f"{name}.request.json")
    if os.path.lexists(path):
        raise EngineError(f"nothing is overwritten, but '{path}' exists; approve it, or remove it")
    _deliver(there, *([wheel] if wheel else []))
    there.run(setup + request_script(name))
    there.fetch(f"client/{path}", path)
    if there.dry_run:
        return
    print(f"request      {path}; the private key stays on {there.name}")
    print(f"next         ist-fed provision approve {path}, where the federation's folder is")
    print(f"             ist-fed client install --host {there.name} --kit {name}.kit.json --data PATH")


def _start(
    there: "Host", kit: Path, setup: str, wheel: Path | None, fingerprint: str | None, options: list[str]
) -> None:
    name = check_name(str(document.read(kit, KIT)["name"]))
    _deliver(there, kit, *([wheel] if wheel else []))
    there.run(setup + start_script(kit.name, name, fingerprint, options))
    if there.dry_run:
        return
    print(f"started      '{name}' on {there.name}, as the user's service {UNIT}")
    print(f"next         ssh {there.name} journalctl --user --unit {UNIT} --follow")


def _deliver(there: "Host", *files: Path) -> None:
    for file in files:
        _plain(file.name)
        if not file.is_file():
            raise EngineError(f"'{file}' is to be copied to the host, but it is no file")
    there.run(f'umask 077\nmkdir -p "$HOME/{BASE}/inbox" "$HOME/{BASE}/client"\n')
    for file in files:
        there.send(file, f"inbox/{file.name}")


class Host:
    """A host that is reached by ssh.

    Args:
        name: as ssh knows it, from its configuration or the DNS; ports and jumps belong into that configuration.
        dry_run: print the commands instead.
    """

    def __init__(self, name: str, dry_run: bool = False) -> None:
        if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise EngineError(
                f"a host is a name, as edge1 or user@edge1, but is {name[:80]!r}; what else ssh must know of it, write "
                f"into ~/.ssh/config"
            )
        self.name, self.dry_run = name, dry_run

    def run(self, script: str) -> None:
        """Let the host's shell run a script: all of it or, if it does not arrive whole, nothing."""
        whole = f"set -eu\nmain() {{\n{script}}}\nmain </dev/null\n"  # whatever it starts must not read the script
        self._call(["ssh", "--", self.name, "sh -s"], whole)

    def send(self, file: Path, to: str) -> None:
        """Copy a file to the host, to below `BASE`."""
        self._call(["scp", "-q", "--", str(file.absolute()), f"{self.name}:{BASE}/{to}"])

    def fetch(self, what: str, to: Path) -> None:
        """Copy a file from below `BASE` on the host."""
        self._call(["scp", "-q", "--", f"{self.name}:{BASE}/{what}", str(to.absolute())])

    def _call(self, command: list[str], script: str | None = None) -> None:
        if self.dry_run:
            print(shlex.join(command) + (f" <<'END'\n{script}END" if script else ""))
            return
        try:
            done = subprocess.run(command, input=script, text=True, check=False)
        except FileNotFoundError as error:
            raise EngineError(f"hosts are reached by `{command[0]}`, but there is no such program here") from error
        if done.returncode:
            raise EngineError(f"`{command[0]}` to {self.name} ended with {done.returncode}; what it said stands above")


def setup_script(python: str, wheel: Path | None, torch_index: str | None) -> str:
    """Make the environment, and install ist_fed in it."""
    program = shlex.quote(_plain(python))
    pip = '"$base/venv/bin/python" -m pip install --quiet --disable-pip-version-check'
    if wheel is None:
        what = shlex.quote(f"ist-fed[tasks]=={__version__}")
    else:
        what = f'"$base"/inbox/{shlex.quote(_plain(wheel.name) + "[tasks]")}'
    torch = f"{pip} --index-url {shlex.quote(_plain(torch_index))} torch\n" if torch_index else ""
    return (
        "umask 077\n"
        f'base="$HOME/{BASE}"\n'
        f'[ -x "$base/venv/bin/python" ] || {program} -m venv "$base/venv"\n'
        f"{torch}{pip} --upgrade {what}\n"
    )


def request_script(name: str) -> str:
    """Make a key and a request; those that were made before are kept."""
    make = f'"$base/venv/bin/ist-fed" provision request {name} --folder "$base/client"'
    return f'[ -e "$base/client/{name}.request.json" ] || {make}\n'


def start_script(kit: str, name: str, fingerprint: str | None, options: list[str]) -> str:
    """Check the kit, write the unit, and start it, now and whenever the host starts."""
    trust = f" --fingerprint {shlex.quote(_plain(fingerprint))}" if fingerprint else ""
    unit = user_unit((app_folder() / "client" / f"{UNIT}.service").read_text(encoding="utf-8"), name, options)
    return (
        f'mv "$base"/inbox/{shlex.quote(kit)} "$base/client/{name}.kit.json"\n'
        f'"$base/venv/bin/ist-fed" provision verify "$base/client/{name}.kit.json"{trust}\n'
        f"{_data_check(options)}"
        'units="$HOME/.config/systemd/user"\n'
        'mkdir -p "$units"\n'
        f'printf %s {shlex.quote(unit)} > "$units/{UNIT}.service"\n'
        'export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"\n'
        "systemctl --user daemon-reload\n"
        f"systemctl --user enable --quiet {UNIT}\n"
        f"systemctl --user restart {UNIT}\n"
        "loginctl enable-linger || echo 'it stops when you log out; ask an administrator: loginctl enable-linger' >&2\n"
    )


def start_options(data: str | None, more: list[str]) -> list[str]:
    """The options of `client start` on the host.

    Raises:
        EngineError: there are no data, their path is not absolute, or a word cannot stand in a unit.
    """
    if data is None and "--partition" not in more:
        raise EngineError("say where the data are on the host: --data PATH, or for a trial `-- --partition 0/2`")
    if data is not None and not PurePosixPath(data).is_absolute():
        raise EngineError(f"the data lie on the host, so their path must be absolute, but is '{data}'")
    return [_plain(word) for word in (*(["--data", data] if data else []), *more)]


def user_unit(system: str, name: str, options: list[str]) -> str:
    """The unit of a user's own service manager, made from the system's."""
    start = f"ExecStart=%h/{BASE}/venv/bin/ist-fed client start --kit %h/{BASE}/client/{name}.kit.json"
    lines = [f"# Written by `ist-fed client install`, from {UNIT}.service of ist_fed {__version__}."]
    for line in system.splitlines():
        if line.startswith("ExecStart="):
            line = " ".join([start, *map(_in_unit, options)])
        elif line.startswith("WantedBy="):
            line = "WantedBy=default.target"
        if not line.startswith("#") and not _FOR_ROOT.match(line) and (line or lines[-1]):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _in_unit(word: str) -> str:
    """A word as systemd reads it: whole, and with nothing in it replaced."""
    for sign, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(sign, written)
    return f'"{word}"'


def _data_check(options: list[str]) -> str:
    if options[:1] != ["--data"]:
        return ""
    sorry = shlex.quote(f"there are no data in {options[1]} on this host")
    return f"[ -e {shlex.quote(options[1])} ] || {{ echo {sorry} >&2; exit 1; }}\n"


def _plain(word: str) -> str:
    """A word of one line."""
    if not word.isprintable():
        raise EngineError(f"what goes to the host is of printable characters, but {word[:80]!r} is not")
    return word
