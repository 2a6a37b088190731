"""The passphrase of an authority's key."""

import getpass
import os
import sys

from ist_fed.errors import PkiError

PASSPHRASE = "IST_FED_CA_PASSPHRASE"
"""The environment variable that holds the passphrase of the CA's key, where nobody can type it."""


def ask_passphrase(new: bool = False) -> bytes:
    """The passphrase of the CA's key: from the environment, or typed; a new one twice.

    Raises:
        PkiError: there is neither.
    """
    if (given := os.environ.get(PASSPHRASE)) is not None:
        return os.fsencode(given)
    if sys.stdin is None or not sys.stdin.isatty():
        raise PkiError(f"the CA's key has a passphrase, but nobody is here to type it; set {PASSPHRASE}")
    try:
        typed = getpass.getpass("passphrase of the CA's key: ")
        if new and getpass.getpass("the same once more: ") != typed:
            raise PkiError("a new passphrase is typed twice, but the two differ; try again")
    except EOFError as error:
        raise PkiError(f"the CA's key has a passphrase, but none was typed; type it, or set {PASSPHRASE}") from error
    return typed.encode()
