"""The list of members that are trusted no more: who signs it, what is on it, and what is no such list."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from client.secrecy import member_of
from ist_fed.cli import app
from ist_fed.errors import PkiError
from ist_fed.pki.authority import Authority
from ist_fed.pki.certificates import now
from ist_fed.pki.revocation import LIST, read_revoked, revoke
from ist_fed.pki.signing import Signer, certify, create_authority, open_signer, request_member

PASSPHRASE = b"only for this test"


def certified(root: Path, name: str, folder: str = "member") -> Signer:
    return open_signer(certify(root / "authority", request_member(root / folder, name), PASSPHRASE, root / folder))


def serial(signer: Signer) -> int:
    return x509.load_der_x509_certificate(signer.certificate).serial_number


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", "hospitals", PASSPHRASE)
    return tmp_path


def test_all_certificates_of_a_member_are_on_the_list_and_later_ones_are_not(root: Path) -> None:
    first, second, other = certified(root, "clinic"), certified(root, "clinic", "again"), certified(root, "praxis")
    path = revoke(root / "authority", "clinic", PASSPHRASE, now())
    assert read_revoked(path, first.authority) == {serial(first), serial(second)}
    revoke(root / "authority", "praxis", PASSPHRASE, now() + timedelta(days=1))
    later = certified(root, "clinic", "once more")
    assert read_revoked(path, first.authority) == {serial(first), serial(second), serial(other)}
    assert serial(later) not in read_revoked(path, first.authority)


def test_a_member_stays_on_the_list_from_the_day_it_came_there(root: Path) -> None:
    certified(root, "clinic")
    revoke(root / "authority", "clinic", PASSPHRASE, now())
    path = revoke(root / "authority", "clinic", PASSPHRASE, now() + timedelta(days=9))
    (entry,) = x509.load_pem_x509_crl(path.read_bytes())
    assert entry.revocation_date_utc < now() + timedelta(days=1)


def test_only_the_authority_can_write_it(root: Path, tmp_path: Path) -> None:
    signer = certified(root, "clinic")
    with pytest.raises(PkiError, match="passphrase does not open"):
        revoke(root / "authority", "clinic", b"another passphrase", now())
    create_authority(tmp_path / "other" / "authority", "hospitals", PASSPHRASE)
    certified(tmp_path / "other", "clinic")
    forged = revoke(tmp_path / "other" / "authority", "clinic", PASSPHRASE, now())
    with pytest.raises(PkiError, match="signed by the members' authority"):
        read_revoked(forged, signer.authority)
    path = revoke(root / "authority", "clinic", PASSPHRASE, now())
    data = bytearray(x509.load_pem_x509_crl(path.read_bytes()).public_bytes(Encoding.DER))
    data[data.index(serial(signer).to_bytes(20).lstrip(b"\0")) + 9] ^= 1
    touched = x509.load_der_x509_crl(bytes(data)).public_bytes(Encoding.PEM)
    path.write_bytes(touched)
    with pytest.raises(PkiError, match="signed by the members' authority"):
        read_revoked(path, signer.authority)


@pytest.mark.parametrize("content", [b"", b"no", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_what_is_no_list_is_refused(root: Path, content: bytes) -> None:
    signer = certified(root, "clinic")
    (root / LIST).write_bytes(content)
    with pytest.raises(PkiError, match="cannot be read"):
        read_revoked(root / LIST, signer.authority)
    with pytest.raises(PkiError, match="cannot be read"):
        read_revoked(root / "none.pem", signer.authority)


def test_who_was_never_certified_cannot_be_revoked(root: Path) -> None:
    certified(root, "clinic")
    with pytest.raises(PkiError, match=r"no member 'clinik'.*did you mean 'clinic'"):
        revoke(root / "authority", "clinik", PASSPHRASE, now())
    with pytest.raises(PkiError, match="a name is"):
        revoke(root / "authority", "../clinic", PASSPHRASE, now())
    assert not (root / "authority" / LIST).exists()


def test_a_client_reads_the_list_anew_every_round(root: Path) -> None:
    certified(root, "clinic")
    node = {"signer": str(root / "member" / "clinic.sign.pem"), "revoked": str(root / LIST)}
    with pytest.raises(PkiError, match="cannot be read"):
        member_of(node)
    other = certified(root, "praxis")
    (root / LIST).write_bytes(revoke(root / "authority", "praxis", PASSPHRASE, now()).read_bytes())
    member = member_of(node)
    assert member is not None
    assert member._revoked() == {serial(other)}
    more = certified(root, "ward")
    (root / LIST).write_bytes(revoke(root / "authority", "ward", PASSPHRASE, now()).read_bytes())
    assert member._revoked() == {serial(other), serial(more)}


def test_the_commands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IST_FED_CA_PASSPHRASE", PASSPHRASE.decode())
    signer = certified(root, "clinic")
    words = ["provision", "signer", "revoke", "clinic", "--authority", str(root / "authority")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "--revoked revoked.pem" in result.output
    path = root / "authority" / LIST
    assert read_revoked(path, Authority(root / "authority").certificate()) == {serial(signer)}
    lonely = CliRunner().invoke(app, ["client", "start", "--partition", "0/1", "--revoked", str(path)])
    assert lonely.exit_code != 0
    assert "--revoked is for secure rounds" in str(lonely.exception or lonely.output)
