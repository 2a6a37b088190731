"""The certificate authority of a federation: its key signs the server's certificate, and every kit."""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, files, keys


class Authority:
    """The folder `ca/` of a federation.

    Args:
        root: the federation's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def path(self) -> Path:
        """Of the certificate."""
        return files.inside(self._root, "ca", "ca.pem")

    @property
    def _key(self) -> Path:
        return files.inside(self._root, "ca", "ca.key")

    def create(self, name: str, passphrase: bytes, today: datetime) -> None:
        """Make the key, encrypted, and the certificate of a new federation.

        Raises:
            PkiError: they are there already, or cannot be written.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        files.make_folder(self.path.parent)
        files.create(self._key, keys.authority_key_text(key, passphrase))
        files.create(self.path, certificates.pem(certificates.issue_authority(key, name, today)).encode())

    def certificate(self) -> x509.Certificate:
        """What clients trust.

        Raises:
            PkiError: it cannot be read.
        """
        return certificates.read(self.path, "restore it from a backup")

    def unlock(self, passphrase: bytes, today: datetime) -> tuple[x509.Certificate, keys.PrivateKey]:
        """The certificate, and the key that goes with it.

        Raises:
            PkiError: the passphrase is wrong, or the certificate is not valid today.
        """
        certificate = self.certificate()
        public = certificates.check_authority(certificate, today)
        key = keys.load_authority_key(files.read(self._key, private=True), passphrase)
        if key.public_key() != public:
            raise PkiError(f"'{self._key}' is not the key of '{self.path}'; restore both from one backup")
        return certificate, key

    def verify(self, today: datetime) -> str:
        """Check what can be checked without the passphrase; what holds.

        Raises:
            PkiError: something does not.
        """
        certificate = self.certificate()
        certificates.check_authority(certificate, today)
        if b"BEGIN ENCRYPTED PRIVATE KEY" not in files.read(self._key, private=True):
            raise PkiError(f"the CA's key is encrypted, but '{self._key}' is not; restore it from a backup")
        return f"the CA is valid until {certificate.not_valid_after_utc:%Y-%m-%d}, and its key is encrypted"
