"""The server's own key and certificate: what it shows to those who call it."""

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, files, keys


class Server:
    """The folder `server/` of a federation.

    Args:
        root: the federation's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def path(self) -> Path:
        """Of the certificate."""
        return files.inside(self._root, "server", "server.pem")

    @property
    def key(self) -> Path:
        """Of the private key."""
        return files.inside(self._root, "server", "server.key")

    def certificate(self) -> x509.Certificate:
        """What the server shows.

        Raises:
            PkiError: it cannot be read.
        """
        return certificates.read(self.path, "make a new one with: ist-fed provision rotate --host NAME")

    def issue(
        self, authority: x509.Certificate, authority_key: keys.PrivateKey, hosts: Sequence[str], today: datetime
    ) -> None:
        """Make a new key and certificate, and put them in the place of the old ones.

        Both at once, as a folder, so that a key never lies beside the certificate of another.

        Args:
            authority: that signs it.
            authority_key: its key.
            hosts: DNS names and IP addresses that the server answers to.
            today: when the certificate starts to be valid.

        Raises:
            PkiError: they cannot be written.
        """
        folder = self.key.parent
        new, old = (folder.with_name(f"server.{state}") for state in ("new", "old"))
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificates.issue_server(authority, authority_key, key.public_key(), hosts, today)
        try:
            _remove(new, old)  # left behind by a crash
            files.make_folder(new)
            files.create(new / "server.key", keys.server_key_text(key))
            files.create(new / "server.pem", certificates.pem(certificate).encode())
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            _remove(old)
        except OSError as error:
            raise files.unwritable(folder, error) from error

    def verify(self, authority: x509.Certificate, host: str, today: datetime) -> str:
        """Check that clients which trust the authority would accept the server; what holds.

        Raises:
            PkiError: they would not.
        """
        certificate = self.certificate()
        if keys.load_server_key(files.read(self.key, private=True)).public_key() != certificate.public_key():
            raise PkiError(
                f"'{self.key}' is not the key of '{self.path}'; make both anew with: ist-fed provision rotate"
            )
        certificates.check_server(authority, certificate, host, today)
        days = (certificate.not_valid_after_utc - today).days
        return f"the server's certificate is what those want who call '{host}', for {days} days more"


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
