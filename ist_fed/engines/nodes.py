"""Which nodes a SuperLink admits: those that the federation approved and has not revoked."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ist_fed.engines import flower
from ist_fed.pki import Federation


def admit(home: Path, identity: Federation) -> None:
    """Register the keys that were approved since the last call, and drop those that were revoked or replaced."""
    path = home / "nodes.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() and (home / "state.db").exists() else {}
    members = {member.public_key: member.name for member in identity.clients() if member.status == "approved"}
    new, gone = members.keys() - known.keys(), known.keys() - members.keys()
    if not new and not gone:
        return
    with ThreadPoolExecutor(4) as pool:  # each starts a program
        registered = pool.map(lambda key: (key, _register(home, key, members[key])), sorted(new))
        left = pool.map(lambda key: _unregister(home, known[key]), sorted(gone))
        known = {key: node for key, node in known.items() if key not in gone} | dict(registered)
        list(left)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(known))
    temporary.replace(path)


def listed(home: Path) -> list[dict[str, object]]:
    """Every node that the SuperLink of a home knows, as Flower describes it."""
    return list(flower.flwr(["supernode", "ls", flower.LINK], home)["nodes"])


def _register(home: Path, key: str, name: str) -> str:
    file = home / f"{name}.pub"
    file.write_text(key + "\n")
    try:
        return str(flower.flwr(["supernode", "register", str(file), flower.LINK, "--name", name], home)["node-id"])
    finally:
        file.unlink()


def _unregister(home: Path, node: str) -> None:
    flower.flwr(["supernode", "unregister", node, flower.LINK], home)
