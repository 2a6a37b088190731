"""A kit: what an admitted client is given. It says whom to call and whom to trust, and holds no secret."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, document, files, keys

KIT = document.Kind(
    noun="the kit",
    fields=("version", "name", "number", "address", "federation", "ca", "public_key", "issued_at", "signature"),
    remedy="have the server send it again, as 'ist-fed provision approve' wrote it",
)


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What a client needs to join."""

    name: str
    """Of the client."""
    number: int
    """Of the client in its federation, from 0."""
    address: str
    """Of the server, `host:port`."""
    federation: str
    """Its name."""
    ca: bytes
    """The certificate that the server's is checked against, in PEM."""
    public_key: str
    """Of the client, in OpenSSH's one line."""
    key: Path
    """The client's private key, beside the kit."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, for people to compare with what the server's says."""
        return certificates.fingerprint(certificates.load(self.ca.decode()))


def check_free(path: Path, name: str) -> None:
    """Check that writing a client's kit to a path destroys nothing but an earlier kit of that client.

    Raises:
        PkiError: something else is there.
    """
    if not os.path.lexists(path):
        return
    try:
        free = document.read(path, KIT)["name"] == name
    except PkiError:
        free = False
    if not free:
        raise PkiError(
            f"only an earlier kit of '{name}' is replaced, but '{path}' is something else; choose with --out"
        )


def open_kit(path: Path, fingerprint: str | None = None, clock: Callable[[], datetime] = certificates.now) -> Kit:
    """Read a kit, and check that it can be used: by whom it is signed, and that the key beside it is its own.

    Whoever made the kit also chose the CA in it: only the fingerprint tells whether that is the CA one meant.

    Args:
        path: of the kit, in the folder of the client's private key.
        fingerprint: of the CA that is expected; upper or lower case, with or without colons.
        clock: tells the time.

    Raises:
        PkiError: something does not hold; the message says what.
    """
    kit = document.read(path, KIT)
    ca = certificates.load(kit["ca"])
    if fingerprint is not None:
        _compare(certificates.fingerprint(ca), fingerprint)
    try:
        authority = certificates.check_authority(ca, clock())
    except PkiError as error:
        raise PkiError(f"the kit '{path}' cannot be used: {error}") from error
    if not document.is_signed(kit, authority):
        raise PkiError(f"a kit is signed by the CA in it, but '{path}' is not: it was changed on its way; {KIT.remedy}")
    key = path.parent / f"{kit['name']}.key"
    if keys.public_text(_own_key(key).public_key()) != kit["public_key"]:
        raise PkiError(
            f"a kit is for the private key beside it, but '{path}' is for another than '{key}'; after "
            f"'request --renew' the server has to approve the new request, and the new kit replaces this one"
        )
    used = {field: kit[field] for field in ("name", "number", "address", "federation", "public_key")}
    return Kit(**used, ca=kit["ca"].encode(), key=key)


def _own_key(path: Path) -> keys.PrivateKey:
    if not os.path.lexists(path):
        raise PkiError(f"a kit lies beside its private key, but there is no '{path}'; copy the kit to where the key is")
    data = files.read(path, private=True)
    try:
        return keys.load_client_key(data)
    except PkiError as error:
        raise PkiError(f"the private key '{path}' cannot be used: {error}; make a new one with --renew") from error


def _compare(found: str, expected: str) -> None:
    plain = expected.replace(":", "").replace(" ", "").upper()
    if plain != found.replace(":", ""):
        raise PkiError(
            f"the kit's CA must be the one you expect, but its fingerprint is {found}, not {expected[:100]!r}; "
            f"ask the server's people for both anew"
        )
