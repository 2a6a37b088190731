"""Which nodes a SuperLink admits: those that the federation approved and has not revoked."""

import json
from pathlib import Path

from ist_fed.engines.control import Control, pem
from ist_fed.errors import EngineError
from ist_fed.pki import Federation


class Admission:
    """Keeps a SuperLink's nodes in step with a federation's members.

    Args:
        home: of the server; who is registered is written down in it.
        identity: the federation; None admits whoever comes, and there is nothing to do.
    """

    def __init__(self, home: Path, identity: Federation | None) -> None:
        self._path, self._identity = home / "nodes.json", identity
        lost = not (home / "state.db").exists()  # the SuperLink has forgotten everyone
        self._known: dict[str, int] = {}
        if lost or not self._path.exists():
            return
        try:
            self._known = {str(key): int(node) for key, node in json.loads(self._path.read_text()).items()}
        except (ValueError, AttributeError, TypeError) as error:  # without it nobody would shut out who was revoked
            raise EngineError(
                f"who is registered stands as JSON in '{self._path}', but that cannot be read: {error}; remove it and "
                f"'{home / 'state.db'}', and everyone who is approved is registered anew"
            ) from error

    def differs(self) -> bool:
        """Whether someone was approved, revoked, or given a new key since the last `update`."""
        return self._members().keys() != self._known.keys()

    def update(self, control: Control) -> None:
        """Register the keys that are new, and drop those that are no longer to be admitted."""
        members = self._members()
        # What a server did, but could not write down any more, was done all the same.
        there = {node.public_key: node.node_id for node in control.nodes() if node.status != "unregistered"}
        for key in self._known.keys() - members.keys():
            if self._known[key] in there.values():
                control.unregister(self._known[key])
            del self._known[key]
            self._write()
        for key in members.keys() - self._known.keys():
            self._known[key] = there.get(pem(key)) or control.register(key, members[key])
            self._write()

    def _members(self) -> dict[str, str]:
        """Public key → name."""
        members = self._identity.clients() if self._identity else []
        return {member.public_key: member.name for member in members if member.status == "approved"}

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._known))
        temporary.replace(self._path)
