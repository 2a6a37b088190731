"""The server's side: what a federation's folder holds, and all that is done with it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, document, files, keys
from ist_fed.pki.address import LOCAL, general_name, split_address
from ist_fed.pki.authority import Authority
from ist_fed.pki.kit import check_free
from ist_fed.pki.members import Member, admit, check_members, find, read_members, write_member
from ist_fed.pki.request import read_request
from ist_fed.pki.server import Server

FEDERATION = document.Kind(
    noun="the federation's file", fields=("version", "name", "address"), remedy="restore it from a backup"
)


class Federation:
    """One federation on disk: made by `Federation.create`, opened by `Federation.open`.

    Args:
        folder: of the federation.
        name: of the federation.
        address: that clients call, `host:port`.
        clock: tells the time.
    """

    def __init__(self, folder: Path, name: str, address: str, clock: Callable[[], datetime] = certificates.now) -> None:
        self.folder, self.name, self.address, self._clock = folder, name, address, clock
        self._authority, self._server = Authority(folder), Server(folder)

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        name: str,
        address: str,
        hosts: Sequence[str],
        passphrase: bytes,
        clock: Callable[[], datetime] = certificates.now,
    ) -> "Federation":
        """Make the folder of a new federation, with an authority and a server's certificate.

        Args:
            folder: must not be there, or be empty.
            name: of the federation.
            address: `host:port` of the public gRPC Fleet port.
            hosts: DNS names and IP addresses of the server; those of the address and of this machine are added.
            passphrase: encrypts the authority's key.
            clock: tells the time.

        Raises:
            PkiError: the folder is taken, or a name, host or passphrase cannot be used.
        """
        federation = cls(folder, files.check_name(name), address, clock)
        names = federation._names(hosts)
        keys.check_passphrase(passphrase)
        _make_root(folder)
        files.make_folder(folder / "clients")
        federation._authority.create(name, passphrase, clock())
        federation._issue(passphrase, names)
        about = {"version": document.VERSION, "name": name, "address": address}
        files.create(folder / "federation.json", document.text(about))  # from here on it is one
        return federation

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], datetime] = certificates.now) -> "Federation":
        """Open the folder of a federation.

        Raises:
            PkiError: it is none.
        """
        path = folder / "federation.json"
        if not os.path.lexists(path):
            raise PkiError(
                f"a federation's folder holds its federation.json, but none is seen in '{folder}'; name the folder, "
                f"be its owner, or make one with: ist-fed provision init"
            )
        about = document.read(path, FEDERATION)
        return cls(folder, about["name"], about["address"], clock)

    # --- The server ---------------------------------------------------------------------------------------------------

    @property
    def ca_certificate(self) -> Path:
        """What clients trust."""
        return self._authority.path

    @property
    def server_certificate(self) -> Path:
        """What the server shows."""
        return self._server.path

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self._server.key

    @property
    def hosts(self) -> list[str]:
        """DNS names and IP addresses that the server's certificate is for."""
        return certificates.hosts_of(self._server.certificate())

    @property
    def expires(self) -> datetime:
        """When the server's certificate does."""
        return self._server.certificate().not_valid_after_utc

    def fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, for people to compare."""
        return certificates.fingerprint(self._authority.certificate())

    def rotate_server(self, *, passphrase: bytes, hosts: Sequence[str] | None = None) -> None:
        """Replace the server's key and certificate; a running server shows them once it is started again.

        Args:
            passphrase: of the authority's key.
            hosts: as for `create`; by default those of the certificate until now.

        Raises:
            PkiError: the passphrase is wrong, or a host cannot be used; nothing is changed.
        """
        self._issue(passphrase, self._names(self.hosts if hosts is None else hosts))

    def _issue(self, passphrase: bytes, hosts: Sequence[str]) -> None:
        today = self._clock()
        authority, key = self._authority.unlock(passphrase, today)
        with files.locked(self.folder):
            self._server.issue(authority, key, hosts, today)

    def _names(self, hosts: Sequence[str]) -> list[str]:
        """Every name and address that the server must answer to, once each."""
        wanted = (split_address(self.address)[0], *hosts, *LOCAL)
        return list(dict.fromkeys(str(general_name(host).value) for host in wanted))

    # --- Its clients --------------------------------------------------------------------------------------------------

    def clients(self) -> list[Member]:
        """Every client that was ever approved, by number.

        Raises:
            PkiError: a record cannot be read.
        """
        return read_members(self.folder)

    def approve(self, request: Path, *, passphrase: bytes, out: Path | None = None, renew: bool = False) -> Path:
        """Admit a client, and write its kit.

        Approving the same request again writes the kit again, and changes nothing else.

        Args:
            request: the client's.
            passphrase: of the authority's key.
            out: path of the kit, or a folder for it; by default beside the request.
            renew: the name is known, and gets a new key; a revoked client is let in again.

        Returns:
            The path of the kit.

        Raises:
            PkiError: the request is not as it should be, its name or key is taken, or the passphrase is wrong.
        """
        wanted = read_request(request)
        path = request.parent if out is None else out
        path = path / f"{wanted['name']}.kit.json" if os.path.isdir(path) else path
        check_free(path, wanted["name"])
        today = self._clock()
        authority, key = self._authority.unlock(passphrase, today)
        time = document.time_text(today)
        with files.locked(self.folder):
            member = admit(self.clients(), wanted["name"], wanted["public_key"], renew, time)
            write_member(self.folder, member)
        kit = {
            "version": document.VERSION,
            "name": member.name,
            "number": member.number,
            "address": self.address,
            "federation": self.name,
            "ca": certificates.pem(authority),
            "public_key": member.public_key,
            "issued_at": time,
        }
        files.replace(path, document.text(document.signed(kit, key)))
        return path

    def revoke(self, name: str) -> Member:
        """Shut a client out; it keeps its number. One that is revoked already stays as it is.

        Raises:
            PkiError: there is no such client.
        """
        with files.locked(self.folder):
            member = find(self.clients(), name)
            if member.status != "revoked":
                member = replace(member, status="revoked", revoked_at=document.time_text(self._clock()))
                write_member(self.folder, member)
        return member

    # --- All of it ----------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """Check everything that can be checked without the passphrase.

        Returns:
            What holds, one line each.

        Raises:
            PkiError: the first thing that does not hold.
        """
        root = self.folder.resolve()
        for folder in (root, root / "ca", root / "server", root / "clients"):
            files.check_folder(folder)
        lines = [f"the folders of '{self.folder}' are for their owner alone"]
        lines.append(self._authority.verify(self._clock()))
        host, _ = split_address(self.address)
        lines.append(self._server.verify(self._authority.certificate(), host, self._clock()))
        check_members(members := self.clients())
        revoked = sum(member.status == "revoked" for member in members)
        lines.append(f"the records of clients are whole: {len(members) - revoked} approved, {revoked} revoked")
        return lines


def _make_root(folder: Path) -> None:
    """Make the folder of a federation; an empty one, such as a fresh volume, is taken over."""
    files.make_folder(folder)
    try:
        if os.listdir(folder):
            raise PkiError(
                f"a federation never overwrites anything, but '{folder}' is not empty; choose another folder, "
                f"or remove it"
            )
        folder.chmod(0o700)
    except OSError as error:
        raise files.unwritable(folder, error) from error
