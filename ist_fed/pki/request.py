"""A request: what a client sends to be admitted. Its private key stays where it was made."""

import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, document, files, keys

REQUEST = document.Kind(
    noun="the request",
    fields=("version", "name", "public_key", "created_at", "signature"),
    remedy="have the client send it again, as 'ist-fed provision request' wrote it",
)


def make_request(folder: Path, name: str, renew: bool = False) -> Path:
    """Make a client's key, and a request that proves who holds it.

    Args:
        folder: of the client; made if it is not there.
        name: of the client.
        renew: make a new key; the old one is set aside under another name.

    Returns:
        The path of the request.

    Raises:
        PkiError: the name cannot be one, there is a key already, or a file cannot be written.
    """
    files.check_name(name)
    files.make_folder(folder)
    key_path, public, request = (folder / f"{name}{ending}" for ending in (".key", ".pub", ".request.json"))
    if renew:
        _set_aside(key_path)
    elif taken := next(filter(os.path.lexists, (key_path, public, request)), None):
        raise PkiError(
            f"nothing is overwritten, but '{taken}' exists; send the request that was made before, choose another name "
            f"or folder, or change the key with --renew"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    body = {
        "version": document.VERSION,
        "name": name,
        "public_key": keys.public_text(key.public_key()),
        "created_at": document.time_text(certificates.now()),
    }
    files.create(key_path, keys.client_key_text(key))
    files.replace(public, f"{body['public_key']}\n".encode())
    files.replace(request, document.text(document.signed(body, key)))
    return request


def read_request(path: Path) -> dict[str, Any]:
    """A request's fields, once its sender has proved to hold the key.

    Raises:
        PkiError: it is no request, or was changed after it was signed.
    """
    request = document.read(path, REQUEST)
    if not document.is_signed(request, keys.load_public(request["public_key"])):
        raise PkiError(
            f"a request is signed with the key it asks for, but '{path}' is not: it was changed on its way; "
            f"{REQUEST.remedy}"
        )
    return request


def _set_aside(path: Path) -> None:
    """Give a file the time as part of its name."""
    if not os.path.lexists(path):
        return
    aside = path.with_name(f"{path.name}.{certificates.now():%Y%m%dT%H%M%SZ}")
    if os.path.lexists(aside):
        raise PkiError(f"nothing is overwritten, but '{aside}' exists; try again in a second")
    try:
        path.rename(aside)
    except OSError as error:
        raise files.unwritable(path, error) from error
