"""`ist-fed provision` as people use it: what it prints, where it leaves things, how it fails."""

import getpass
import io
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ist_fed import cli
from ist_fed.pki import Federation, open_kit

SECRET = "correct horse battery staple"
HOST = "fed.example.org"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def provision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `ist-fed provision …` in an empty folder, the passphrase in the environment; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("IST_FED_CA_PASSPHRASE", SECRET)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ist-fed", "provision", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def ready(provision: Command) -> None:
    """A federation with one client, alice, in the folder edge."""
    for arguments in (
        ("init", "federation", "--host", HOST),
        ("request", "alice", "--folder", "edge"),
        ("approve", "edge/alice.request.json"),
    ):
        code, _, err = provision(*arguments)
        assert (code, err) == (0, "")


def test_each_command_names_the_next(provision: Command) -> None:
    """A session of two machines, typed from what is printed."""
    code, out, err = provision("init", "federation", "--host", HOST, "--host", "10.0.0.5", "--port", "7000")
    assert (code, err) == (0, "")
    assert f"at {HOST}:7000" in out
    assert f"{HOST}, 10.0.0.5, localhost, 127.0.0.1, ::1" in out
    fingerprint = Federation.open(Path("federation")).fingerprint()
    assert fingerprint in out
    assert "ist-fed provision request NAME" in out

    code, out, err = provision("request", "alice", "--folder", "edge")
    assert (code, err) == (0, "")
    assert "ist-fed provision approve alice.request.json\n" in out
    key = re.findall(r"SHA256:\S+", out)
    Path("edge/alice.request.json").rename("alice.request.json")  # as if sent

    code, out, err = provision("approve", "alice.request.json")
    assert (code, err) == (0, "")
    assert "alice, client number 0 of 'federation'" in out
    assert re.findall(r"SHA256:\S+", out) == key
    assert "ist-fed client start --kit alice.kit.json" in out
    (next_command,) = re.findall(r"ist-fed provision (verify .*)", out)
    assert next_command == f"verify alice.kit.json --fingerprint {fingerprint}"
    Path("alice.kit.json").rename("edge/alice.kit.json")

    code, out, err = provision("verify", "edge/alice.kit.json", "--fingerprint", fingerprint)
    assert (code, err) == (0, "")
    assert f"alice is client number 0 of 'federation', at {HOST}:7000" in out
    assert "the CA has the fingerprint you gave" in out
    assert open_kit(Path("edge/alice.kit.json")).address == f"{HOST}:7000"


def test_a_federation_elsewhere_is_named_in_the_next_command(provision: Command) -> None:
    _, out, _ = provision("init", "my folder", "--host", HOST, "--name", "trial")
    assert "approve NAME.request.json --federation 'my folder'" in out
    provision("request", "alice")
    _, out, _ = provision("approve", "alice.request.json", "--federation", "my folder", "--out", "kits.json")
    assert "provision revoke alice --federation 'my folder'" in out
    assert Path("kits.json").exists()


def test_an_ipv6_host_gets_its_brackets(provision: Command) -> None:
    assert "at [2001:db8::1]:9092" in provision("init", "federation", "--host", "2001:db8::1")[1]


def test_list_is_a_table_or_json(provision: Command) -> None:
    provision("init", "federation", "--host", HOST)
    assert "no client has been approved yet" in provision("list")[1]
    ready_client(provision)
    code, out, err = provision("list")
    assert (code, err) == (0, "")
    assert re.search(r"0\W+alice\W+approved\W+20", out)
    provision("revoke", "alice")
    (client,) = json.loads(provision("list", "--format", "json")[1])["clients"]
    assert (client["number"], client["name"], client["status"]) == (0, "alice", "revoked")
    assert client["since"] == client["revoked_at"]
    assert client["public_key"].startswith("ecdsa-sha2-nistp384 ")


def ready_client(provision: Command) -> None:
    provision("request", "alice", "--folder", "edge")
    provision("approve", "edge/alice.request.json")


def test_a_client_is_shut_out_and_comes_back_with_a_new_key(provision: Command) -> None:
    ready(provision)
    code, out, _ = provision("revoke", "alice")
    assert code == 0
    assert "revoked      alice, client number 0" in out
    assert provision("approve", "edge/alice.request.json", "--renew")[0] == 1
    assert provision("request", "alice", "--folder", "edge")[0] == 1
    _, out, _ = provision("request", "alice", "--folder", "edge", "--renew")
    assert "provision approve alice.request.json --renew" in out
    code, _, err = provision("approve", "edge/alice.request.json")
    assert code == 1
    assert "'alice' is revoked, with another key" in err
    assert provision("approve", "edge/alice.request.json", "--renew")[0] == 0
    assert provision("verify", "edge/alice.kit.json")[0] == 0


def test_rotate_and_verify(provision: Command) -> None:
    ready(provision)
    before = Path("federation/server/server.pem").read_bytes()
    code, out, _ = provision("rotate", "--host", "10.0.0.7")
    assert code == 0
    assert f"for {HOST}, 10.0.0.7, localhost" in out
    assert Path("federation/server/server.pem").read_bytes() != before
    code, out, _ = provision("verify")
    assert code == 0
    assert out.count("ok  ") == 4
    assert Federation.open(Path("federation")).fingerprint() in out
    Path("federation/ca/ca.key").chmod(0o644)
    code, _, err = provision("verify", "federation")
    assert code == 1
    assert "chmod 600 federation/ca/ca.key" in err


@pytest.mark.parametrize(
    "arguments", [["init", "other", "--host", HOST], ["approve", "edge/alice.request.json"], ["rotate"]]
)
def test_where_nobody_can_type_the_passphrase_nothing_hangs(
    arguments: list[str], provision: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(provision)
    monkeypatch.delenv("IST_FED_CA_PASSPHRASE")
    for stdin in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = provision(*arguments)
        assert code == 1
        assert "set IST_FED_CA_PASSPHRASE" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Sit at a terminal, and type these where no echo is shown."""
    waiting = iter(lines)

    def typed(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.delenv("IST_FED_CA_PASSPHRASE", raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", typed)


def test_the_passphrase_is_typed_twice_when_new_and_once_after(
    provision: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing(monkeypatch, SECRET, SECRET + "!")
    code, _, err = provision("init", "federation", "--host", HOST)
    assert code == 1
    assert "the two differ" in err
    assert not Path("federation").exists()
    typing(monkeypatch, SECRET, SECRET)
    assert provision("init", "federation", "--host", HOST)[0] == 0
    typing(monkeypatch, SECRET)
    assert provision("rotate")[0] == 0
    typing(monkeypatch)
    code, _, err = provision("rotate")
    assert code == 1
    assert "none was typed" in err


def test_the_passphrase_is_shown_nowhere(provision: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(provision)
    monkeypatch.setenv("IST_FED_CA_PASSPHRASE", "another secret that is wrong")
    code, out, err = provision("rotate")
    assert code == 1
    assert "does not open the CA key" in err
    assert "another secret" not in out + err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init", "federation", "--host", HOST], "not empty"),
        (["init", "other", "--host", "no host"], "a host is a DNS name"),
        (["init", "other", "--host", HOST, "--port", "70000"], "a port from 1 to 65535"),
        (["init", "other one", "--host", HOST], "a name is"),
        (["request", "../alice"], "a name is"),
        (["request", "alice", "--folder", "edge"], "--renew"),
        (["request", "alice", "--folder", "federation/federation.json"], "cannot be written"),
        (["approve", "none.json"], "No such file"),
        (["approve", "edge/alice.kit.json"], "the request 'edge/alice.kit.json' cannot be used"),
        (["approve", "edge/alice.request.json", "--federation", "edge"], "ist-fed provision init"),
        (["approve", "edge/alice.request.json", "--out", "federation/ca/ca.key"], "choose with --out"),
        (["list", "--federation", "none"], "ist-fed provision init"),
        (["revoke", "bob"], "there is no client 'bob'; known: alice"),
        (["rotate", "--host", "10.0.0.999"], "a host is a DNS name"),
        (["verify", "none"], "ist-fed provision init"),
        (["verify", "edge/alice.request.json"], "the kit 'edge/alice.request.json' cannot be used"),
        (["verify", "edge/alice.kit.json", "--fingerprint", "AB:CD"], "fingerprint"),
        (["verify", "federation", "--fingerprint", "AB:CD"], "--fingerprint is for a kit"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], says: str, provision: Command) -> None:
    ready(provision)
    code, out, err = provision(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert "Traceback" not in err
    assert out == ""


def test_every_command_explains_itself(provision: Command) -> None:
    for command in ("init", "request", "approve", "list", "revoke", "rotate", "verify"):
        assert command in provision("-h")[1]
        code, out, _ = provision(command, "-h")
        assert code == 0
        assert "Usage:" in out
