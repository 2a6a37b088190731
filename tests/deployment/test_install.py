"""`ist-fed client install`: over ssh and scp that are stand-ins, with scripts that a real shell runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ist_fed import cli
from ist_fed.cli import install
from ist_fed.pki import Federation, make_request

Command = Callable[..., tuple[int, str, str]]
PASSPHRASE = b"only for this test"

SSH = """#!/bin/sh
printf '%s\\n' ssh "$@" >> "$CALLS"
HOME="$FAR" exec sh -c "$3" # "$3" is what a host's shell is given
"""
SCP = """#!/bin/sh
printf '%s\\n' scp "$@" >> "$CALLS"
far() { case "$1" in edge1:*) echo "$FAR/${1#edge1:}" ;; *) echo "$1" ;; esac; }
cp "$(far "$3")" "$(far "$4")"
"""
PYTHON = """#!/bin/sh
# Stands for Python on the host: its environments have this `ist-fed`, and a pip that only says what it was asked.
mkdir -p "$3/bin"
printf '#!/bin/sh\\nprintf "pip %%s\\\\n" "$*" >> "$CALLS"\\ncat\\n' > "$3/bin/python"
printf '#!/bin/sh\\nexec "$REAL" -m ist_fed "$@"\\n' > "$3/bin/ist-fed"
chmod +x "$3/bin/python" "$3/bin/ist-fed"
"""
RECORD = """#!/bin/sh
printf '%s ' "${0##*/}" "$@" >> "$CALLS"; echo >> "$CALLS"
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user on `edge1`; `ssh`, `scp` and the host's programs are stand-ins."""
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_ins = {"ssh": SSH, "scp": SCP, "python3.11": PYTHON, "systemctl": RECORD, "loginctl": RECORD}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    home = tmp_path / "far away"
    home.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[2]))
    for name, value in {"CALLS": tmp_path / "calls", "FAR": home, "REAL": sys.executable}.items():
        monkeypatch.setenv(name, str(value))
    return home


@pytest.fixture
def ist_fed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ist-fed", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def calls(far: Path) -> str:
    path = far.parent / "calls"
    return path.read_text() if path.exists() else ""


def approve(request: Path) -> Path:
    federation = Federation.create(
        Path("federation"), name="f", address="server:9092", hosts=["server"], passphrase=PASSPHRASE
    )
    return federation.approve(request, passphrase=PASSPHRASE)


def test_from_a_bare_host_to_a_service(far: Path, ist_fed: Command) -> None:
    code, out, err = ist_fed("client", "install", "--host", "edge1", "--request", "clinic-0")
    assert code == 0, out + err
    request = Path("clinic-0.request.json")
    assert request.exists()
    assert "ist-fed provision approve clinic-0.request.json" in out
    client = far / install.BASE / "client"
    assert (client / "clinic-0.key").stat().st_mode & 0o777 == 0o600
    assert "ist-fed[tasks]==" in calls(far)

    kit, data = approve(request), far / "it's 100% $HOME data"
    data.mkdir()
    code, out, err = ist_fed(
        "client", "install", "--host", "edge1", "--kit", str(kit), "--data", str(data), "--", "--memory", "2GiB"
    )
    assert code == 0, out + err
    assert "the kit is signed by its CA, and for the key" in out
    assert sorted(path.name for path in client.iterdir()) == [
        f"clinic-0.{ending}" for ending in ("key", "kit.json", "pub", "request.json")
    ]
    assert "systemctl --user restart ist-fed-client" in calls(far)
    unit = far / ".config/systemd/user/ist-fed-client.service"
    assert f'"--data" "{str(data).replace("%", "%%").replace("$", "$$")}" "--memory" "2GiB"' in unit.read_text()
    assert "Restart=always" in unit.read_text()
    assert_verified(unit)
    again, out, _ = ist_fed("client", "install", "--host", "edge1", "--kit", str(kit), "--data", str(data))
    assert again == 0, out


def assert_verified(unit: Path) -> None:
    """By systemd itself, if it is here; the program that the unit starts is not."""
    if shutil.which("systemd-analyze"):
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(unit.parent)}
        command = ["systemd-analyze", "--user", "verify", str(unit)]
        said = subprocess.run(command, capture_output=True, text=True, env=environment).stderr
        wrong = [line for line in said.splitlines() if unit.name in line and "is not executable" not in line]
        assert not wrong, said


def test_no_private_key_travels(far: Path, ist_fed: Command) -> None:
    ist_fed("client", "install", "--host", "edge1", "--request", "clinic-0")
    ist_fed("client", "install", "--host", "edge1", "--kit", str(approve(Path("clinic-0.request.json"))), "--data", "/")
    said = calls(far)
    assert "scp" in said
    assert ".key" not in said


@pytest.mark.parametrize("name", ["-oProxyCommand=touch x", "user@-x", "edge1:/etc", "edge1 x", "$(touch x)", ""])
def test_a_host_is_a_name_and_nothing_else(far: Path, ist_fed: Command, name: str) -> None:
    code, _, err = ist_fed("client", "install", f"--host={name}", "--request", "clinic-0")
    assert code == 1
    assert "a host is a name" in err
    assert not calls(far)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--request NAME, or --kit KIT"),
        (("--request", "a", "--kit", "b"), "--request NAME, or --kit KIT"),
        (("--request", "../a"), "a name is"),
        (("--kit", "clinic-0.kit.json"), "say where the data are"),
        (("--kit", "clinic-0.kit.json", "--data", "data"), "must be absolute"),
        (("--kit", "clinic-0.kit.json", "--data", "/a\nRestart=no"), "printable"),
        (("--kit", "missing.kit.json", "--data", "/a"), "cannot be read"),
        (("--kit", "clinic-0.kit.json", "--data", "/a", "--wheel", "no.whl"), "it is no file"),
    ],
)
def test_what_cannot_be_is_refused_before_the_host_is_asked(
    far: Path, ist_fed: Command, arguments: tuple[str, ...], says: str
) -> None:
    approve(make_request(Path("."), "clinic-0"))
    code, _, err = ist_fed("client", "install", "--host", "edge1", *arguments)
    assert code == 1
    assert says in err
    assert not calls(far)


def test_dry_run_prints_what_a_shell_can_run_and_does_nothing(far: Path, ist_fed: Command) -> None:
    kit = approve(make_request(Path("."), "clinic-0"))
    code, out, _ = ist_fed("client", "install", "--host", "op@edge1", "--kit", str(kit), "--data", "/d", "--dry-run")
    assert code == 0
    assert "ssh -- op@edge1 'sh -s' <<'END'" in out
    assert f"op@edge1:{install.BASE}/inbox/clinic-0.kit.json" in out
    assert "started" not in out
    assert not calls(far)
    assert subprocess.run(["sh", "-n"], input=out, text=True).returncode == 0


def test_a_failure_there_is_a_failure_here(far: Path, ist_fed: Command) -> None:
    kit = approve(make_request(Path("."), "clinic-0"))  # the key is here, and not on the host
    code, _, err = ist_fed("client", "install", "--host", "edge1", "--kit", str(kit), "--data", "/")
    assert code == 1
    assert "`ssh` to edge1 ended with 1" in err
    assert "systemctl" not in calls(far)


def test_missing_data_are_said_before_anything_is_started(far: Path, ist_fed: Command) -> None:
    ist_fed("client", "install", "--host", "edge1", "--request", "clinic-0")
    kit = approve(Path("clinic-0.request.json"))
    code, _, err = ist_fed("client", "install", "--host", "edge1", "--kit", str(kit), "--data", "/no/such data")
    assert code == 1
    assert "there are no data in /no/such data on this host" in err
    assert "systemctl" not in calls(far)


def test_a_wheel_and_an_index_for_torch(far: Path, ist_fed: Command) -> None:
    wheel = Path("ist_fed-0.1.0-py3-none-any.whl")
    wheel.write_text("")
    url = "https://index.example/cpu"
    code, out, err = ist_fed(
        *("client", "install", "--host", "edge1", "--request", "c", "--wheel", str(wheel), "--torch-index", url)
    )
    assert code == 0, out + err
    pip = [line for line in calls(far).splitlines() if line.startswith("pip ")]
    assert f"--index-url {url} torch" in pip[0]
    assert pip[1].endswith(f"inbox/{wheel.name}[tasks]")


def test_help_shows_defaults_plainly(ist_fed: Command) -> None:
    code, out, _ = ist_fed("client", "start", "-h")
    assert code == 0
    assert "[default: auto]" in out
    assert "\\[" not in out
