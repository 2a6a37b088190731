"""Dockerfiles, the compose file, the units and docs/deploy.md: what they name exists, and what they start parses."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from ist_fed import __version__, cli

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / "server" / "Dockerfile", ROOT / "client" / "Dockerfile"]
UNITS = [ROOT / "server" / "ist-fed-server.service", ROOT / "client" / "ist-fed-client.service"]
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "VOLUME", "STOPSIGNAL"}
INSTRUCTIONS |= {"HEALTHCHECK", "ENTRYPOINT", "CMD"}


def assert_parses(words: list[str]) -> None:
    """The words after `ist-fed` are a command that exists, with options that exist."""
    command: click.Command = typer.main.get_command(cli.app)
    words = [word.removesuffix("…") for word in words]
    while isinstance(command, click.Group):
        assert words, "a command is missing"
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"there is no command {words[0]}"
        command, words = found, words[1:]
    command.make_context("ist-fed", words)


# --- Dockerfiles ------------------------------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction and its arguments, with lines that go on joined, and ARG defaults put in."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]
    defaults = dict(words.split("=") for name, words in found if name == "ARG")
    return [
        (name, re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], match[0]), words)) for name, words in found
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
class TestDockerfile:
    def test_its_instructions_are_dockers(self, path: Path) -> None:
        names = [name for name, _ in instructions(path)]
        assert set(names) <= INSTRUCTIONS
        assert "ADD" not in names
        assert names[:2] == ["ARG", "FROM"]

    def test_it_builds_on_pinned_images(self, path: Path) -> None:
        for name, words in instructions(path):
            if name == "FROM":
                assert re.match(r"python:3\.\d+\.\d+-slim-\w+( AS \w+)?$", words), words

    def test_what_it_copies_is_in_the_checkout(self, path: Path) -> None:
        stages = {words.split(" AS ")[1] for name, words in instructions(path) if " AS " in words and name == "FROM"}
        for name, words in instructions(path):
            if name == "COPY" and (stage := re.match(r"--from=(\w+) ", words)):
                assert stage[1] in stages
            elif name == "COPY":
                for source in words.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert source not in (".", "./"), "that would copy keys and runs too"

    def test_it_does_not_run_as_root(self, path: Path) -> None:
        assert [words for name, words in instructions(path) if name == "USER"][-1] == "10001:10001"

    def test_it_installs_what_is_tested(self, path: Path) -> None:
        runs = " ".join(words for name, words in instructions(path) if name == "RUN")
        assert len(re.findall(r"-c /opt/constraints\.txt", runs)) == 2
        assert "${TORCH_INDEX:+--index-url" in runs
        assert not re.search(r"PASSPHRASE|TOKEN|SECRET|\.key|\.kit", path.read_text().split("FROM", 1)[1].upper())

    def test_its_command_exists(self, path: Path) -> None:
        given = {name: words for name, words in instructions(path) if name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")}
        assert yaml.safe_load(given["ENTRYPOINT"]) == ["ist-fed"]
        assert_parses(yaml.safe_load(given["CMD"]))
        if health := given.get("HEALTHCHECK"):
            assert_parses(shlex.split(health.split("CMD ist-fed ")[1].split("|")[0]))

    def test_its_build_sees_no_secrets(self, path: Path) -> None:
        ignored = path.with_name("Dockerfile.dockerignore").read_text().splitlines()
        assert ignored[1] == "*"
        assert {"**/*.key", "**/*.pem", "**/*.kit.json"} <= set(ignored)


# --- Compose ----------------------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "server" / "compose.yaml").read_text())["services"])


def test_compose_is_a_server_and_two_clients_on_a_network_of_their_own() -> None:
    whole = yaml.safe_load((ROOT / "server" / "compose.yaml").read_text())
    assert list(whole["services"]) == ["server", "client0", "client1"]
    assert whole["networks"] == {"fleet": {"internal": True}}
    assert all(service["networks"] == ["fleet"] for service in whole["services"].values())
    assert not any("ports" in service for service in whole["services"].values())


@pytest.mark.parametrize("name", ["server", "client0", "client1"])
def test_each_service_starts_a_command_that_exists_and_may_little(name: str) -> None:
    service = services()[name]
    assert_parses(service["command"])
    assert service["restart"] == "always"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "stop_grace_period" in service
    build = service["build"]
    assert (ROOT / "server" / build["context"] / build["dockerfile"]).resolve() in DOCKERFILES
    assert service["image"].endswith(f":{__version__}")


def test_kits_are_read_only_and_lie_where_the_command_looks() -> None:
    for name in ("client0", "client1"):
        service = services()[name]
        ((source, target, mode),) = (volume.rsplit(":", 2) for volume in service["volumes"])
        assert mode == "ro"
        kit = service["command"][service["command"].index("--kit") + 1]
        assert kit == f"{target}/{source.rpartition('/')[2]}.kit.json"


# --- Units ------------------------------------------------------------------------------------------------------------


def unit(path: Path) -> dict[str, list[str]]:
    """Each key of a unit, and its values; systemd allows a key more than once."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
class TestUnit:
    def test_it_is_started_again_whatever_happens(self, path: Path) -> None:
        found = unit(path)
        assert found["Restart"] == ["always"]
        assert found["RestartSec"] == ["5"]
        assert found["StartLimitIntervalSec"] == ["0"]
        assert found["KillMode"] == ["mixed"]
        assert found["KillSignal"] == ["SIGTERM"]

    def test_only_a_client_that_is_not_admitted_is_not_started_again(self, path: Path) -> None:
        prevented = [str(cli._REFUSED)] if "client" in path.stem else []
        assert unit(path).get("RestartPreventExitStatus", []) == prevented

    def test_it_may_little(self, path: Path) -> None:
        found = unit(path)
        assert found["User"] == ["ist-fed"]
        assert found["ProtectSystem"] == ["strict"]
        assert found["StateDirectory"] == ["ist-fed"]
        assert found["CapabilityBoundingSet"] == [""]
        assert all(found[key] == ["yes"] for key in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID"))
        assert "AF_PACKET" not in found["RestrictAddressFamilies"][0]

    def test_its_command_exists(self, path: Path) -> None:
        found = unit(path)
        told = dict(value.split("=", 1) for value in found.get("Environment", []))
        words = []
        for word in found["ExecStart"][0].split()[1:]:
            if match := re.fullmatch(r"\$(\w+)", word):
                words += told[match[1]].split()
            else:
                words.append(re.sub(r"\$\{(\w+)\}", lambda match: told[match[1]], word))
        assert_parses(words)

    def test_it_has_time_to_end_a_round(self, path: Path) -> None:
        from ist_fed.engines.server import _LEAVE_S

        assert int(unit(path)["TimeoutStopSec"][0]) >= 4 * _LEAVE_S

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
    def test_systemd_understands_it(self, path: Path) -> None:
        command = ["systemd-analyze", "verify", "--recursive-errors=no", str(path)]
        said = subprocess.run(command, capture_output=True, text=True).stderr
        wrong = [line for line in said.splitlines() if path.name in line and "is not executable" not in line]
        assert not wrong, said


# --- The walk-through -------------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """Every `ist-fed` command in the blocks of docs/deploy.md."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    blocks = "".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    words = "server|client|provision|deploy|report|simulate"
    return re.findall(rf"^\$ .*?\b(ist-fed (?:{words}) [^#|>&\n]*)", blocks, re.MULTILINE)


def test_the_documented_commands_exist() -> None:
    assert len(documented()) > 20
    for command in documented():
        try:
            assert_parses(shlex.split(command)[1:])
        except (click.ClickException, AssertionError) as error:
            raise AssertionError(f"{command}: {error}") from error


def test_the_documented_files_exist() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    for name in re.findall(r"\b(?:server|client)/[\w.-]*(?:Dockerfile|\.yaml|\.service)", text):
        assert (ROOT / name).exists(), name
