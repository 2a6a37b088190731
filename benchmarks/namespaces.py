"""Hosts on one machine: network namespaces, joined by a switch, each on a link of its own with a rate. Needs root.

Every link is limited in both directions with `tc tbf`. The names hold the number of the process that made them, so
that what a killed one has left is found and taken away by the next.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MARK = "istfed"
_HUB = "hub"


@dataclass(frozen=True)
class Counted:
    """Bytes that passed a host's link.

    Args:
        interface: received and sent by the counters of the interface.
        wire: the same with the headers of every packet, as `tc` counts them: the interface counts a burst of packets
            that TCP hands it in one piece (GSO) with one header.
    """

    interface: int
    wire: int

    def __sub__(self, before: "Counted") -> "Counted":
        return Counted(self.interface - before.interface, self.wire - before.wire)


class Network:
    """Namespaces, as a context: made on entry, taken away on exit.

    Args:
        hosts: their names, short.
        mbit: rate of every link, each way, in Mbit/s.
    """

    def __init__(self, hosts: Sequence[str], mbit: float) -> None:
        self._hosts, self.mbit = list(hosts), mbit

    def __enter__(self) -> "Network":
        sweep()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away; what still runs in it is killed."""
        for host in (*self._hosts, _HUB):
            _remove(self._name(host))

    def address(self, host: str) -> str:
        return f"10.77.0.{1 + self._hosts.index(host)}"

    def prefix(self, host: str) -> list[str]:
        """What stands before a command that is to run on a host."""
        return ["ip", "netns", "exec", self._name(host)]

    def counted(self, host: str) -> Counted:
        """Bytes on a host's link so far, both ways."""
        name, hub = self._name(host), self._name(_HUB)
        stats = json.loads(_run("ip", "-n", name, "-s", "-j", "link", "show", "dev", "eth0"))[0]["stats64"]
        up, down = (
            json.loads(_run("tc", "-n", where, "-s", "-j", "qdisc", "show", "dev", device))[0]["bytes"]
            for where, device in ((name, "eth0"), (hub, self._port(host)))
        )
        return Counted(stats["rx"]["bytes"] + stats["tx"]["bytes"], up + down)

    def _make(self) -> None:
        hub = self._name(_HUB)
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "switch", "up")
        for host in self._hosts:
            name, port = self._name(host), self._port(host)
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", hub)
            _run("ip", "-n", hub, "link", "set", port, "master", "switch", "up")
            _run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            for where, device in ((name, "eth0"), (hub, port)):
                limit = ["tbf", "rate", f"{self.mbit}mbit", "burst", "128kb", "latency", "100ms"]
                _run("tc", "-n", where, "qdisc", "add", "dev", device, "root", *limit)

    def _name(self, host: str) -> str:
        return f"{_MARK}.{os.getpid()}.{host}"

    def _port(self, host: str) -> str:
        return f"port{self._hosts.index(host)}"


def why_not() -> str:
    """Why there can be no namespaces here, in words; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"network namespaces need {' and '.join(missing)} (package iproute2)"
    try:
        with Network(["probe"], 100):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {error.stderr.strip()}"


def sweep() -> None:
    """Take away what killed processes have left."""
    for entry in Path("/run/netns").glob(f"{_MARK}.*"):
        owner = entry.name.split(".")[1]
        if not Path(f"/proc/{owner}").exists():
            _remove(entry.name)


def _remove(name: str) -> None:
    with suppress(subprocess.CalledProcessError):
        for pid in _run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "delete", name)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
