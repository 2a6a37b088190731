"""Members of secure rounds: their authority, their certificates, and what is not accepted for one."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from ist_fed.cli import app
from ist_fed.errors import PkiError
from ist_fed.pki import Federation
from ist_fed.pki.certificates import builder, fingerprint, issue_authority, issued_by, now, subject, usage
from ist_fed.pki.signing import certify, check_member, create_authority, issue_member, open_signer, request_member

PASSPHRASE = b"only for this test"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    create_authority(tmp_path / "authority", "hospitals", PASSPHRASE)
    return tmp_path / "authority", tmp_path / "member"


def test_a_member_is_certified_and_can_sign(folders: tuple[Path, Path]) -> None:
    authority, member = folders
    request = request_member(member, "clinic")
    path = certify(authority, request, PASSPHRASE, member)
    signer = open_signer(path)
    name, key = check_member(signer.certificate, signer.authority, now())
    assert name == signer.name == "clinic"
    key.verify(signer.key.sign(b"x"), b"x")
    assert stat.S_IMODE((member / "clinic.sign.key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in path.read_bytes() + request.read_bytes()
    assert open_signer(path, fingerprint(signer.authority)).name == "clinic"
    with pytest.raises(PkiError, match="the one you expect"):
        open_signer(path, "AB" * 32)


def test_nothing_is_overwritten(folders: tuple[Path, Path]) -> None:
    authority, member = folders
    request_member(member, "clinic")
    with pytest.raises(PkiError, match="nothing is overwritten"):
        request_member(member, "clinic")
    with pytest.raises(PkiError, match="nothing is overwritten"):
        create_authority(authority, "hospitals", PASSPHRASE)


def test_a_key_and_a_certificate_belong_together(folders: tuple[Path, Path], tmp_path: Path) -> None:
    authority, member = folders
    path = certify(authority, request_member(member, "clinic"), PASSPHRASE, member)
    (member / "clinic.sign.key").unlink()
    with pytest.raises(PkiError, match="there is no"):
        open_signer(path)
    request_member(tmp_path / "other", "clinic")
    (tmp_path / "other" / "clinic.sign.key").rename(member / "clinic.sign.key")
    with pytest.raises(PkiError, match="is not the certificate of"):
        open_signer(path)
    (member / "clinic.sign.key").chmod(0o644)
    with pytest.raises(PkiError, match="for its owner alone"):
        open_signer(path)


def test_the_authority_opens_with_its_passphrase_only(folders: tuple[Path, Path]) -> None:
    authority, member = folders
    request = request_member(member, "clinic")
    with pytest.raises(PkiError, match="passphrase does not open"):
        certify(authority, request, b"another passphrase", member)


def test_a_request_is_of_ed25519_and_untouched(folders: tuple[Path, Path]) -> None:
    authority, member = folders
    member.mkdir()
    bad = member / "bad.sign.csr"
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject("ist_fed member", "clinic"))
    for content in (csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), b"no", b""):
        bad.write_bytes(content)
        with pytest.raises(PkiError, match="cannot be used"):
            certify(authority, bad, PASSPHRASE, member)
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject("ist_fed member", "../up"))
    bad.write_bytes(csr.sign(Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM))
    with pytest.raises(PkiError, match="a name is"):
        certify(authority, bad, PASSPHRASE, member)


def test_the_servers_own_certificates_are_no_members(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither what the federation's CA signed, nor a certificate of the members' authority for anything else."""
    authority, member = folders
    signer = open_signer(certify(authority, request_member(member, "clinic"), PASSPHRASE, member))
    federation = Federation.create(
        tmp_path / "federation", name="f", address="127.0.0.1:9", hosts=["127.0.0.1"], passphrase=PASSPHRASE
    )
    server = x509.load_pem_x509_certificate(federation.server_certificate.read_bytes())
    with pytest.raises(PkiError, match="signed by the members' authority"):
        check_member(server.public_bytes(Encoding.DER), signer.authority, now())


@pytest.mark.parametrize("wrong", ["ca", "usage", "more", "key"])
def test_a_certificate_for_anything_else_is_refused(wrong: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    authority = issue_authority(key, "members", now())
    own = Ed25519PrivateKey.generate().public_key()
    public = ec.generate_private_key(ec.SECP256R1()).public_key() if wrong == "key" else own
    made = builder(subject("ist_fed member", "m"), authority.subject, public, now(), now() + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=wrong == "ca", path_length=None), critical=True)
    made = made.add_extension(usage(authority=wrong == "usage"), critical=True)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    made = made.add_extension(purpose, critical=True).add_extension(issued_by(authority), critical=False)
    if wrong == "more":
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("x")]), critical=False)
    certificate = made.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)
    with pytest.raises(PkiError, match="for signing with Ed25519 only"):
        check_member(certificate, authority, now())


def test_a_certificate_holds_for_ninety_days() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    authority = issue_authority(key, "members", now())
    own = Ed25519PrivateKey.generate().public_key()
    certificate = issue_member(authority, key, own, "m", now()).public_bytes(Encoding.DER)
    check_member(certificate, authority, now() + timedelta(days=89))
    for days in (-1, 91):
        with pytest.raises(PkiError, match="have its authority certify it anew"):
            check_member(certificate, authority, now() + timedelta(days=days))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IST_FED_CA_PASSPHRASE", PASSPHRASE.decode())
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, ["provision", "signer", *words])
        assert result.exit_code == 0, result.output
        return str(result.output)

    printed = call("init", "authority", "--name", "hospitals").split("fingerprint  ")[1].split()[0]
    call("request", "clinic", "--folder", "member")
    said = call("approve", "member/clinic.sign.csr", "--authority", "authority")
    assert f"--fingerprint {printed}" in said
    assert "clinic.sign.pem" in said
    assert "ok" in call("verify", "member/clinic.sign.pem", "--fingerprint", printed)
    assert printed in call("verify", "member/clinic.sign.pem")
