"""Identity: what is made passes strict verifiers and real handshakes; what is forged, open or taken is refused."""

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.errors import PkiError
from ist_fed.pki import Federation, Member, certificates, document, files, keys, make_request, open_kit
from ist_fed.pki.kit import KIT
from ist_fed.pki.request import REQUEST

SECRET = b"correct horse battery staple"
HOST = "fed.example.org"
TODAY = datetime(2031, 3, 1, 12, tzinfo=UTC)
BAD_NAMES = ["", ".", "..", ".hidden", "../up", "a/b", "/etc/x", "a b", "a\n", "a\0", "é", "x" * 65, "a\\b"]


class Clock:
    """A clock that tests set by hand."""

    def __init__(self, time: datetime = TODAY) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time

    def pass_by(self, **times: int) -> None:
        self.time += timedelta(**times)


def create(folder: Path, **changes: Any) -> Federation:
    settings = {"name": "trial", "address": f"{HOST}:9092", "hosts": [HOST], "passphrase": SECRET} | changes
    return Federation.create(folder, **settings)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return create(tmp_path / "federation")


def admit(federation: Federation, name: str, renew: bool = False) -> Path:
    """A client of a folder of its own makes a request, and gets its kit beside its key."""
    folder = federation.folder.parent / name
    return federation.approve(make_request(folder, name, renew), passphrase=SECRET, renew=renew)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- What is made -----------------------------------------------------------------------------------------------------


def test_everything_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)  # even where others would be let in by default
    try:
        federation = create(tmp_path / "federation")
        admit(federation, "alice")
        federation.rotate_server(passphrase=SECRET)
    finally:
        os.umask(before)
    for top in ("federation", "alice"):
        for path in (tmp_path / top, *(tmp_path / top).rglob("*")):
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_an_empty_folder_is_taken_over_and_closed(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir(mode=0o755)
    create(tmp_path / "volume").verify()
    assert mode(tmp_path / "volume") == 0o700


def test_the_folder_is_laid_out_as_described(federation: Federation) -> None:
    admit(federation, "alice")
    assert sorted(snapshot(federation.folder)) == [
        "ca/ca.key",
        "ca/ca.pem",
        "clients/alice.json",
        "federation.json",
        "server/server.key",
        "server/server.pem",
    ]
    about = json.loads((federation.folder / "federation.json").read_text())
    assert about == {"version": 1, "name": "trial", "address": f"{HOST}:9092"}
    opened = Federation.open(federation.folder)
    assert (opened.name, opened.address, opened.folder) == ("trial", f"{HOST}:9092", federation.folder)


def test_a_federation_is_never_overwritten(federation: Federation) -> None:
    before = snapshot(federation.folder)
    with pytest.raises(PkiError, match="not empty"):
        create(federation.folder)
    assert snapshot(federation.folder) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"passphrase": b""},
        {"passphrase": b"short"},
        {"passphrase": b"x" * 1024},
        {"name": "../x"},
        {"address": "fed.example.org"},
        {"hosts": ["not a host"]},
    ],
)
def test_a_mistake_leaves_no_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PkiError):
        create(tmp_path / "federation", **changes)
    assert not (tmp_path / "federation").exists()


@pytest.mark.parametrize(
    "address", ["", "a", "a:", ":1", "a:0", "a:65536", "a:b", "::1:9092", "[::1]", "a b:1", "0.0.0.0:1"]
)
def test_an_address_is_a_host_and_a_port(address: str, tmp_path: Path) -> None:
    with pytest.raises(PkiError):
        create(tmp_path / "federation", address=address)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "-a",
        "a-",
        "a..b",
        "a_b",
        "*.org",
        "bücher.de",
        "10.0.0.256",
        "0.0.0.0",
        "::",
        "fe80::1%eth0",
        "x" * 64,
        "a\n",
    ],
)
def test_a_host_is_a_name_or_an_address(host: str, tmp_path: Path) -> None:
    with pytest.raises(PkiError):
        create(tmp_path / "federation", hosts=[host])


def test_the_authority_is_as_the_profile_says(tmp_path: Path) -> None:
    federation = create(tmp_path / "federation", clock=Clock())
    certificate = x509.load_pem_x509_certificate(federation.ca_certificate.read_bytes())
    assert isinstance(certificate.public_key().curve, ec.SECP384R1)
    critical = {type(extension.value): extension.critical for extension in certificate.extensions}
    assert critical == {x509.SubjectKeyIdentifier: False, x509.BasicConstraints: True, x509.KeyUsage: True}
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (basic.ca, basic.path_length) == (True, 0)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert certificate.not_valid_before_utc == TODAY - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == TODAY + timedelta(days=1825)


def test_the_server_is_as_the_profile_says(tmp_path: Path) -> None:
    federation = create(tmp_path / "federation", hosts=[HOST, "10.0.0.5", "FED2.example.org"], clock=Clock())
    authority = x509.load_pem_x509_certificate(federation.ca_certificate.read_bytes())
    certificate = x509.load_pem_x509_certificate(federation.server_certificate.read_bytes())
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)
    assert certificate.serial_number != authority.serial_number
    critical = {type(extension.value): extension.critical for extension in certificate.extensions}
    assert critical == {
        x509.SubjectKeyIdentifier: False,
        x509.AuthorityKeyIdentifier: False,
        x509.BasicConstraints: True,
        x509.KeyUsage: True,
        x509.ExtendedKeyUsage: False,
        x509.SubjectAlternativeName: False,
    }
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.key_agreement) == (True, False, False)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST, "fed2.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "127.0.0.1", "::1"]
    assert certificate.not_valid_before_utc == TODAY - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == TODAY + timedelta(days=90) == federation.expires


def test_the_fingerprint_is_that_of_other_programs(federation: Federation) -> None:
    der = ssl.PEM_cert_to_DER_cert(federation.ca_certificate.read_text())
    assert federation.fingerprint().replace(":", "").lower() == hashlib.sha256(der).hexdigest()
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", federation.fingerprint())


def test_the_keys_are_what_flower_reads(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    make_request(tmp_path, "alice")
    arguments = argparse.Namespace(
        auth_supernode_private_key=str(tmp_path / "alice.key"), auth_supernode_public_key=None
    )
    loaded = _try_setup_client_authentication(arguments)
    assert loaded is not None
    registered = load_public(try_load_public_key(tmp_path / "alice.pub"))
    assert loaded[1] == registered
    assert isinstance(registered.curve, ec.SECP384R1)


def load_public(data: bytes) -> Any:
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key

    return bytes_to_public_key(data)


def test_a_public_key_has_the_fingerprint_of_ssh_keygen(tmp_path: Path) -> None:
    make_request(tmp_path, "alice")
    try:
        said = subprocess.run(["ssh-keygen", "-lf", tmp_path / "alice.pub"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("there is no ssh-keygen here")
    assert said.stdout.split()[:2] == ["384", keys.public_fingerprint((tmp_path / "alice.pub").read_text())]


# --- Handshakes -------------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(federation: Federation) -> Iterator[int]:
    """A server on loopback that greets whoever completes a handshake; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation.server_certificate, federation.server_key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except (ssl.SSLError, OSError):
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def greet(port: int, authority: Path, host: str) -> bytes:
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return secured.recv(5)


def test_a_strict_client_completes_the_handshake(federation: Federation) -> None:
    with tls_server(federation) as port:
        for host in (HOST, "localhost", "127.0.0.1", "::1"):
            assert greet(port, federation.ca_certificate, host) == b"hello"


def test_a_strict_client_refuses_another_name_authority_or_no_tls(federation: Federation, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    with tls_server(federation) as port:
        for host in ("evil.example.org", "127.0.0.2"):
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                greet(port, federation.ca_certificate, host)
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(port, other.ca_certificate, HOST)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with suppress(ConnectionResetError):
                assert b"hello" not in plain.recv(100)


@contextmanager
def grpc_server(federation: Federation) -> Iterator[int]:
    """A gRPC server that echoes; its port."""
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"echo": echo}),))
    pair = (federation.server_key.read_bytes(), federation.server_certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def call(channel: grpc.Channel) -> bytes:
    with channel:
        return bytes(channel.unary_unary("/test/echo")(b"hello", timeout=5))


def secured(port: int, authority: bytes, host: str) -> grpc.Channel:
    return grpc.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(authority),
        options=[("grpc.ssl_target_name_override", host)],
    )


def test_grpc_speaks_with_who_trusts_the_kit(federation: Federation, tmp_path: Path) -> None:
    kit = open_kit(admit(federation, "alice"))
    other = create(tmp_path / "other").ca_certificate.read_bytes()
    with grpc_server(federation) as port:
        assert call(secured(port, kit.ca, HOST)) == b"hello"
        assert call(grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(kit.ca))) == b"hello"
        wrong = [secured(port, other, HOST), secured(port, kit.ca, "evil.example.org")]
        for channel in (*wrong, grpc.insecure_channel(f"127.0.0.1:{port}")):
            with pytest.raises(grpc.RpcError) as refused:
                call(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


# --- Requests and kits ------------------------------------------------------------------------------------------------


def test_a_client_is_admitted_and_its_kit_says_all(federation: Federation) -> None:
    path = admit(federation, "alice")
    kit = open_kit(path, federation.fingerprint())
    assert path == federation.folder.parent / "alice" / "alice.kit.json"
    assert (kit.name, kit.number, kit.address, kit.federation) == ("alice", 0, f"{HOST}:9092", "trial")
    assert kit.ca == federation.ca_certificate.read_bytes()
    assert kit.fingerprint == federation.fingerprint()
    assert kit.key == path.parent / "alice.key"
    (member,) = federation.clients()
    assert (member.name, member.number, member.status, member.revoked_at) == ("alice", 0, "approved", None)
    assert member.public_key == kit.public_key == (path.parent / "alice.pub").read_text().strip()


def test_the_private_key_stays_where_it_was_made(federation: Federation) -> None:
    path = admit(federation, "alice")
    secret = path.with_name("alice.key").read_bytes()
    key = load_ssh_private_key(secret, None)
    number = f"{key.private_numbers().private_value:096x}"  # type: ignore[union-attr]
    leaked = [
        *federation.folder.rglob("*.json"),
        path,
        path.with_name("alice.request.json"),
        path.with_name("alice.pub"),
    ]
    for file in leaked:
        assert number.encode() not in file.read_bytes()
        assert b"PRIVATE" not in file.read_bytes()


def test_numbers_count_up_and_are_never_given_again(federation: Federation) -> None:
    for name in ("alice", "bob", "carol"):
        admit(federation, name)
    federation.revoke("carol")
    federation.revoke("alice")
    admit(federation, "dave")
    assert [(member.name, member.number) for member in federation.clients()] == [
        ("alice", 0),
        ("bob", 1),
        ("carol", 2),
        ("dave", 3),
    ]
    federation.verify()


def test_approvals_at_the_same_time_get_numbers_of_their_own(federation: Federation) -> None:
    requests = [make_request(federation.folder.parent / "clients", f"client{number}") for number in range(8)]
    with futures.ThreadPoolExecutor(8) as pool:
        kits = list(pool.map(lambda request: federation.approve(request, passphrase=SECRET), requests))
    assert sorted(open_kit(kit).number for kit in kits) == list(range(8))


def test_the_same_request_again_only_writes_the_kit_again(federation: Federation) -> None:
    path = admit(federation, "alice")
    before = snapshot(federation.folder)
    path.unlink()
    again = federation.approve(path.with_name("alice.request.json"), passphrase=SECRET)
    assert snapshot(federation.folder) == before
    assert open_kit(again).number == 0


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make_request(tmp_path, "alice")
    before = snapshot(tmp_path)
    with pytest.raises(PkiError, match="--renew"):
        make_request(tmp_path, "alice")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("taken", ["alice.key", "alice.pub", "alice.request.json"])
@pytest.mark.parametrize("link", [True, False])
def test_nothing_else_is_overwritten_or_written_through(taken: str, link: bool, tmp_path: Path) -> None:
    if link:
        (tmp_path / taken).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / taken).write_text("mine")
    with pytest.raises(PkiError, match="nothing is overwritten"):
        make_request(tmp_path, "alice")
    assert len(list(tmp_path.iterdir())) == 1


def test_writing_a_private_file_follows_no_link_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(PkiError, match="nothing is overwritten"):
            files.create(tmp_path / name, b"secret")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (files.create, files.replace):
        with pytest.raises(PkiError, match="No space left"):
            write(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_never_leads_elsewhere(name: str, federation: Federation) -> None:
    with pytest.raises(PkiError, match="a name is"):
        make_request(federation.folder.parent / "client", name)
    assert not (federation.folder.parent / "client").exists()
    request = make_request(federation.folder.parent / "client", "alice")
    forge(request, name=name)
    with pytest.raises(PkiError, match="'name' is wrong"):
        federation.approve(request, passphrase=SECRET)
    with pytest.raises(PkiError, match="there is no client"):
        federation.revoke(name)
    assert federation.clients() == []


def forge(request: Path, **fields: Any) -> None:
    """Change a request, and sign it again with its own key."""
    body = json.loads(request.read_text()) | fields
    del body["signature"]
    key = keys.load_client_key((request.parent / "alice.key").read_bytes())
    request.write_bytes(document.text(document.signed(body, key)))


def test_a_signed_request_is_accepted_however_it_is_printed(federation: Federation) -> None:
    request = make_request(federation.folder.parent / "client", "alice")
    fields = dict(reversed(json.loads(request.read_text()).items()))
    request.write_text(json.dumps(fields, indent=7))
    assert open_kit(federation.approve(request, passphrase=SECRET)).name == "alice"


WRONG: list[Any] = [None, True, 1.5, -1, 2**40, "", "x" * 2000, [], {}, [["deep"]], "\ud800", "2031-01-01"]


@pytest.mark.parametrize("field", REQUEST.fields)
def test_a_request_with_any_field_changed_is_refused(field: str, federation: Federation) -> None:
    request = make_request(federation.folder.parent / "client", "alice")
    whole = json.loads(request.read_text())
    other = json.loads(make_request(federation.folder.parent / "other", "bob").read_text())
    without = {key: value for key, value in whole.items() if key != field}
    later = {"created_at": "2001-01-01T00:00:00Z", "version": 2}
    swapped = [whole | {field: later.get(field, other[field])}]
    for changed in (without, *swapped, *(whole | {field: wrong} for wrong in WRONG)):
        request.write_text(json.dumps(changed))
        with pytest.raises(PkiError, match="request"):
            federation.approve(request, passphrase=SECRET)
    assert federation.clients() == []


@pytest.mark.parametrize("field", KIT.fields)
def test_a_kit_with_any_field_changed_is_refused(field: str, federation: Federation, tmp_path: Path) -> None:
    path = admit(federation, "alice")
    whole = json.loads(path.read_text())
    other = json.loads(admit(create(tmp_path / "second", name="other", address="10.0.0.9:1"), "bob").read_text())
    without = {key: value for key, value in whole.items() if key != field}
    later = {"number": 1, "issued_at": "2001-01-01T00:00:00Z", "version": 2}
    swapped = whole | {field: later.get(field, other[field])}
    for changed in (without, swapped, *(whole | {field: wrong} for wrong in WRONG)):
        path.write_text(json.dumps(changed))
        with pytest.raises(PkiError, match="kit"):
            open_kit(path)


def test_an_unknown_field_is_refused_even_if_signed(federation: Federation) -> None:
    request = make_request(federation.folder.parent / "client", "alice")
    forge(request, admin="yes")
    with pytest.raises(PkiError, match="nobody knows"):
        federation.approve(request, passphrase=SECRET)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{" * 60000, "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b'{"version": 1, "version": 1}', "occurs twice"),
        (b'{"version": NaN}', "whole number"),
        (b'{"version": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"version": 2}', "version 1 is read here"),
        (b'{"version": 1}', "says nothing of"),
        (b" " * (64 * 1024 + 1), "more than 65536 bytes"),
    ],
)
def test_what_is_no_document_gets_a_sentence(data: bytes, says: str, federation: Federation, tmp_path: Path) -> None:
    path = tmp_path / "alice.json"
    path.write_bytes(data)
    with pytest.raises(PkiError, match=says):
        federation.approve(path, passphrase=SECRET)
    with pytest.raises(PkiError, match=says):
        open_kit(path)


@given(
    st.binary(max_size=300)
    | st.dictionaries(st.sampled_from(KIT.fields), st.none() | st.integers() | st.text()).map(
        lambda fields: json.dumps({**dict.fromkeys(KIT.fields, ""), "version": 1, **fields}).encode()
    )
)
def test_whatever_is_in_a_file_only_one_kind_of_error_comes_out(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(data)
    with pytest.raises(PkiError):
        open_kit(path)


def test_only_a_regular_file_is_read(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make_request(tmp_path / "client", "alice"))
    os.mkfifo(tmp_path / "pipe")  # would wait for ever
    (tmp_path / "folder").mkdir()
    for name, says in (
        ("link", "links are not followed"),
        ("pipe", "regular"),
        ("folder", "Is a directory"),
        ("none", "No such"),
    ):
        with pytest.raises(PkiError, match=says):
            federation.approve(tmp_path / name, passphrase=SECRET)
        with pytest.raises(PkiError, match=says):
            open_kit(tmp_path / name)


def test_a_public_key_of_another_kind_is_refused(federation: Federation, tmp_path: Path) -> None:
    request = make_request(tmp_path / "client", "alice")
    text = json.loads(request.read_text())["public_key"]
    weak = keys.public_text(ec.generate_private_key(ec.SECP256R1()).public_key())
    for wrong in (text + " alice@edge", text + "\n", " " + text, weak, text[:-8], "ssh-ed25519 AAAA", "nonsense"):
        forge(request, public_key=wrong)
        with pytest.raises(PkiError, match="'public_key' is wrong"):
            federation.approve(request, passphrase=SECRET)


def test_a_request_proves_who_holds_the_key(federation: Federation, tmp_path: Path) -> None:
    """Nobody asks for a key that is someone else's: with its text alone one cannot sign."""
    alice = json.loads(make_request(tmp_path / "client", "alice").read_text())
    mallory = make_request(tmp_path / "mallory", "mallory")
    body = json.loads(mallory.read_text()) | {"public_key": alice["public_key"]}
    del body["signature"]
    own = keys.load_client_key((tmp_path / "mallory" / "mallory.key").read_bytes())
    mallory.write_bytes(document.text(document.signed(body, own)))
    with pytest.raises(PkiError, match="signed with the key"):
        federation.approve(mallory, passphrase=SECRET)


def test_a_key_is_approved_once(federation: Federation) -> None:
    path = admit(federation, "alice").with_name("alice.request.json")
    forge(path, name="alias")
    with pytest.raises(PkiError, match="a key is approved once"):
        federation.approve(path, passphrase=SECRET)


def test_the_kit_goes_where_it_is_told_and_destroys_nothing(federation: Federation, tmp_path: Path) -> None:
    request = make_request(tmp_path / "client", "alice")
    (tmp_path / "out").mkdir()
    assert federation.approve(request, passphrase=SECRET, out=tmp_path / "out") == tmp_path / "out/alice.kit.json"
    assert federation.approve(request, passphrase=SECRET, out=tmp_path / "other.json") == tmp_path / "other.json"
    (tmp_path / "link.json").symlink_to(tmp_path / "target")
    bob = make_request(tmp_path / "client", "bob")
    before = snapshot(federation.folder)
    for taken in (federation.folder / "ca/ca.key", tmp_path / "other.json", tmp_path / "link.json"):
        with pytest.raises(PkiError, match="choose with --out"):
            federation.approve(bob, passphrase=SECRET, out=taken)
    assert snapshot(federation.folder) == before  # not even recorded
    with pytest.raises(PkiError, match="cannot be written"):
        federation.approve(bob, passphrase=SECRET, out=tmp_path / "none/kit.json")


# --- What a client checks ---------------------------------------------------------------------------------------------


def test_a_kit_needs_its_own_private_key_beside_it(federation: Federation, tmp_path: Path) -> None:
    path, other = admit(federation, "alice"), admit(federation, "bob")
    key = path.with_name("alice.key")
    key.chmod(0o640)
    with pytest.raises(PkiError, match="chmod 600"):
        open_kit(path)
    key.unlink()
    with pytest.raises(PkiError, match="there is no"):
        open_kit(path)
    key.symlink_to(other.with_name("bob.key"))
    with pytest.raises(PkiError, match="links are not followed"):
        open_kit(path)
    key.unlink()
    files.create(key, other.with_name("bob.key").read_bytes())
    with pytest.raises(PkiError, match="for another than"):
        open_kit(path)
    key.write_text("nonsense")
    with pytest.raises(PkiError, match="OpenSSH"):
        open_kit(path)
    key.write_bytes(keys.client_key_text(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(PkiError, match="P-384"):
        open_kit(path)


def test_the_fingerprint_tells_another_federation(federation: Federation, tmp_path: Path) -> None:
    path = admit(create(tmp_path / "evil" / "federation"), "alice")
    open_kit(path)  # it is whole, but
    with pytest.raises(PkiError, match="fingerprint"):
        open_kit(path, federation.fingerprint())
    for nonsense in ("", "AB", "x" * 5000):
        with pytest.raises(PkiError, match="fingerprint"):
            open_kit(path, nonsense)


def test_a_fingerprint_may_be_typed_as_one_likes(federation: Federation) -> None:
    path, fingerprint = admit(federation, "alice"), federation.fingerprint()
    for typed in (fingerprint, fingerprint.lower(), fingerprint.replace(":", ""), fingerprint.replace(":", " ")):
        assert open_kit(path, typed).number == 0


def test_a_kit_signed_by_another_is_refused(federation: Federation) -> None:
    """Also by the server's own key, which a thief of the running server has: that certificate is no authority."""
    path = admit(federation, "alice")
    body = json.loads(path.read_text())
    del body["signature"]
    thief = keys.load_server_key(federation.server_key.read_bytes())
    path.write_bytes(document.text(document.signed(body, thief)))
    with pytest.raises(PkiError, match="signed by the CA"):
        open_kit(path)
    path.write_bytes(document.text(document.signed(body | {"ca": federation.server_certificate.read_text()}, thief)))
    with pytest.raises(PkiError, match="no such CA"):
        open_kit(path)


@pytest.mark.parametrize(
    ("curve", "extensions"),
    [
        (ec.SECP256R1(), [x509.BasicConstraints(ca=True, path_length=0)]),
        (ec.SECP384R1(), [x509.BasicConstraints(ca=True, path_length=None)]),
        (ec.SECP384R1(), [x509.BasicConstraints(ca=False, path_length=None)]),
        (ec.SECP384R1(), []),
    ],
)
def test_an_authority_of_another_shape_is_refused(curve: ec.EllipticCurve, extensions: list[Any]) -> None:
    key, now = ec.generate_private_key(curve), certificates.now()
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, now, now + timedelta(1))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = builder.add_extension(usage, critical=True).sign(key, certificates.hashes.SHA256())
    with pytest.raises(PkiError):
        certificates.check_authority(certificate, now)


@pytest.mark.filterwarnings("ignore:Parsed a (negative )?serial number")  # of a certificate that is then refused
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_certificate_with_any_byte_changed_is_refused(place: int, change: int) -> None:
    certificate = changed(ssl.PEM_cert_to_DER_cert(AUTHORITY), place, change)
    with pytest.raises(PkiError):
        certificates.check_authority(certificates.load(ssl.DER_cert_to_PEM_cert(certificate)), TODAY)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_public_key_with_any_byte_changed_is_refused_or_another(place: int, change: int) -> None:
    kind, blob = PUBLIC.split()
    text = f"{kind} {base64.b64encode(changed(base64.b64decode(blob), place, change)).decode()}"
    with suppress(PkiError):
        assert keys.public_text(keys.load_public(text)) == text != PUBLIC


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_private_key_with_any_byte_changed_is_no_surprise(place: int, change: int) -> None:
    begin, *lines, end = keys.client_key_text(KEY).decode().splitlines()
    middle = base64.b64encode(changed(base64.b64decode("".join(lines)), place, change)).decode()
    with suppress(PkiError):
        keys.load_client_key(f"{begin}\n{middle}\n{end}\n".encode())


KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = keys.public_text(KEY.public_key())
AUTHORITY = certificates.pem(certificates.issue_authority(KEY, "trial", TODAY))


def changed(data: bytes, place: int, change: int) -> bytes:
    whole = bytearray(data)
    whole[place % len(data)] ^= change
    return bytes(whole)


def test_a_kit_holds_one_certificate(federation: Federation) -> None:
    path = admit(federation, "alice")
    ca = federation.ca_certificate.read_text()
    change(path, ca=ca + ca)
    with pytest.raises(PkiError, match="more in it than one"):
        open_kit(path)


# --- Change of keys, and revocation -----------------------------------------------------------------------------------


def test_a_client_changes_its_key_and_keeps_its_number(federation: Federation) -> None:
    admit(federation, "zoe")
    path = admit(federation, "alice")
    old, key = federation.clients()[1].public_key, path.with_name("alice.key").read_bytes()
    request = make_request(path.parent, "alice", renew=True)
    (aside,) = path.parent.glob("alice.key.*")
    assert aside.read_bytes() == key != path.with_name("alice.key").read_bytes()
    assert mode(aside) == mode(path.with_name("alice.key")) == 0o600
    with pytest.raises(PkiError, match="the new kit replaces this one"):
        open_kit(path)
    with pytest.raises(PkiError, match="--renew"):
        federation.approve(request, passphrase=SECRET)
    assert federation.clients()[1].public_key == old
    federation.approve(request, passphrase=SECRET, renew=True)
    member = federation.clients()[1]
    assert (member.number, member.former, member.status) == (1, (old,), "approved")
    assert open_kit(path).public_key == member.public_key != old
    federation.verify()


def test_a_former_key_never_comes_back(federation: Federation, tmp_path: Path) -> None:
    path = admit(federation, "alice")
    old = tmp_path / "old.request.json"
    old.write_bytes(path.with_name("alice.request.json").read_bytes())
    admit(federation, "alice", renew=True)
    before = snapshot(federation.folder)
    for renew in (True, False):
        with pytest.raises(PkiError, match="a key is approved once"):
            federation.approve(old, passphrase=SECRET, renew=renew)
    assert snapshot(federation.folder) == before


def test_renewing_who_is_not_known_is_a_mistake(federation: Federation) -> None:
    with pytest.raises(PkiError, match="without --renew"):
        admit(federation, "alice", renew=True)


def test_a_lost_key_is_renewed_on_a_new_machine(federation: Federation, tmp_path: Path) -> None:
    admit(federation, "alice")
    for renew in (True, False):
        request = make_request(tmp_path / f"new-{renew}", "alice", renew=renew)
        kit = federation.approve(request, passphrase=SECRET, renew=True)
        assert open_kit(kit).number == 0


def test_a_revoked_client_stays_out_until_it_has_a_new_key(federation: Federation) -> None:
    path = admit(federation, "alice")
    revoked = federation.revoke("alice")
    assert revoked == federation.clients()[0]
    assert revoked.status == "revoked"
    assert revoked.revoked_at is not None
    assert federation.revoke("alice") == revoked
    for renew in (True, False):
        with pytest.raises(PkiError, match="a key is approved once"):
            federation.approve(path.with_name("alice.request.json"), passphrase=SECRET, renew=renew)
    admit(federation, "alice", renew=True)
    (member,) = federation.clients()
    assert (member.status, member.revoked_at, member.number) == ("approved", None, 0)
    assert member.former == (revoked.public_key,)


def test_revoking_who_is_not_there_says_who_may_be_meant(federation: Federation) -> None:
    admit(federation, "alice")
    with pytest.raises(PkiError, match="did you mean 'alice'"):
        federation.revoke("alic")


def test_revoking_needs_no_passphrase_and_no_valid_certificate(tmp_path: Path) -> None:
    """Whoever must shut a client out must not be held up."""
    clock = Clock()
    federation = create(tmp_path / "federation", clock=clock)
    federation.approve(make_request(tmp_path / "client", "alice"), passphrase=SECRET)
    clock.pass_by(days=4000)
    assert federation.revoke("alice").revoked_at == "2042-02-11T12:00:00Z"


def test_the_server_changes_its_key(federation: Federation) -> None:
    key, certificate = federation.server_key.read_bytes(), federation.server_certificate.read_bytes()
    authority = federation.ca_certificate.read_bytes()
    kit = open_kit(admit(federation, "alice"))
    federation.rotate_server(passphrase=SECRET)
    assert federation.server_key.read_bytes() != key
    assert federation.server_certificate.read_bytes() != certificate
    assert federation.ca_certificate.read_bytes() == authority == kit.ca
    assert sorted(path.name for path in federation.folder.iterdir()) == ["ca", "clients", "federation.json", "server"]
    with tls_server(federation) as port:
        assert greet(port, federation.ca_certificate, HOST) == b"hello"


def test_the_server_keeps_its_hosts_or_gets_others(federation: Federation) -> None:
    assert federation.hosts == [HOST, "localhost", "127.0.0.1", "::1"]
    federation.rotate_server(passphrase=SECRET, hosts=["10.1.1.1"])
    assert federation.hosts == [HOST, "10.1.1.1", "localhost", "127.0.0.1", "::1"]  # the address's always
    federation.rotate_server(passphrase=SECRET)
    assert federation.hosts == [HOST, "10.1.1.1", "localhost", "127.0.0.1", "::1"]


def test_a_change_that_crashed_half_way_is_done_again(federation: Federation) -> None:
    server = federation.folder / "server"
    server.rename(federation.folder / "server.old")
    (federation.folder / "server.new").mkdir()
    (federation.folder / "server.new" / "server.key").write_text("half")
    with pytest.raises(PkiError, match="rotate --host"):
        federation.rotate_server(passphrase=SECRET)
    federation.rotate_server(passphrase=SECRET, hosts=[])
    federation.verify()
    assert not list(federation.folder.glob("server.*"))


def test_the_wrong_passphrase_changes_nothing(federation: Federation, tmp_path: Path) -> None:
    request = make_request(tmp_path / "client", "alice")
    before = snapshot(tmp_path)
    for wrong in (b"", b"wrong", b"x" * 5000, SECRET + b" "):
        with pytest.raises(PkiError, match="does not open the CA key"):
            federation.approve(request, passphrase=wrong)
        with pytest.raises(PkiError, match="does not open the CA key"):
            federation.rotate_server(passphrase=wrong)
    assert snapshot(tmp_path) == before


# --- Time -------------------------------------------------------------------------------------------------------------


def test_the_server_expires_and_is_renewed(tmp_path: Path) -> None:
    clock = Clock()
    federation = create(tmp_path / "federation", clock=clock)
    clock.pass_by(days=90)
    federation.verify()
    clock.pass_by(seconds=1)
    with pytest.raises(PkiError, match="expired on 2031-05-30; make a new one with: ist-fed provision rotate"):
        federation.verify()
    federation.rotate_server(passphrase=SECRET)
    assert "for 90 days more" in federation.verify()[2]


def test_the_authority_expires_for_everyone(tmp_path: Path) -> None:
    clock = Clock()
    federation = create(tmp_path / "federation", clock=clock)
    path = federation.approve(make_request(tmp_path / "client", "alice"), passphrase=SECRET)
    clock.pass_by(days=1800)
    federation.rotate_server(passphrase=SECRET)
    assert federation.expires == TODAY + timedelta(days=1825)  # never longer than who signed it
    open_kit(path, clock=clock)
    clock.pass_by(days=26)
    for use in (
        lambda: federation.rotate_server(passphrase=SECRET),
        lambda: federation.approve(path.with_name("alice.request.json"), passphrase=SECRET),
        lambda: federation.verify(),
        lambda: open_kit(path, clock=clock),
    ):
        with pytest.raises(PkiError, match="the CA's certificate expired on 2036-02-28"):
            use()


def test_a_clock_that_is_behind_is_named(tmp_path: Path) -> None:
    clock = Clock()
    federation = create(tmp_path / "federation", clock=clock)
    path = federation.approve(make_request(tmp_path / "client", "alice"), passphrase=SECRET)
    clock.pass_by(minutes=-5)
    open_kit(path, clock=clock)
    clock.pass_by(seconds=-1)
    with pytest.raises(PkiError, match="set the clock"):
        open_kit(path, clock=clock)
    with pytest.raises(PkiError, match="set the clock"):
        federation.verify()


# --- Verify finds what is wrong ---------------------------------------------------------------------------------------


def test_verify_says_what_holds(federation: Federation) -> None:
    admit(federation, "alice")
    admit(federation, "bob")
    federation.revoke("bob")
    folders, authority, server, clients = federation.verify()
    assert "for their owner alone" in folders
    assert "encrypted" in authority
    assert HOST in server
    assert "1 approved, 1 revoked" in clients


def _open_folder(federation: Federation) -> None:
    federation.folder.chmod(0o755)


def _open_key(federation: Federation) -> None:
    (federation.folder / "ca/ca.key").chmod(0o644)


def _no_clients(federation: Federation) -> None:
    (federation.folder / "clients").rename(federation.folder / "elsewhere")


def _linked_clients(federation: Federation) -> None:
    _no_clients(federation)
    (federation.folder / "clients").symlink_to("elsewhere")


def _plain_authority_key(federation: Federation) -> None:
    path = federation.folder / "ca/ca.key"
    key = load_pem_private_key(path.read_bytes(), SECRET)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _other_server_key(federation: Federation) -> None:
    federation.server_key.write_bytes(keys.server_key_text(ec.generate_private_key(ec.SECP256R1())))


def _no_server_key(federation: Federation) -> None:
    federation.server_key.write_text("nonsense")


def _other_server(federation: Federation) -> None:
    other = create(federation.folder.parent / "other")
    federation.server_key.write_bytes(other.server_key.read_bytes())
    federation.server_certificate.write_bytes(other.server_certificate.read_bytes())


def _other_address(federation: Federation) -> None:
    change(federation.folder / "federation.json", address="moved.example.org:9092")


def _no_certificate(federation: Federation) -> None:
    federation.ca_certificate.write_text("nonsense")


def _lost_record(federation: Federation) -> None:
    (federation.folder / "clients/alice.json").unlink()


def _same_number(federation: Federation) -> None:
    change(federation.folder / "clients/bob.json", number=0)


def _same_key(federation: Federation) -> None:
    change(federation.folder / "clients/bob.json", former=[federation.clients()[0].public_key])


def _renamed_record(federation: Federation) -> None:
    (federation.folder / "clients/bob.json").rename(federation.folder / "clients/carol.json")


def _linked_record(federation: Federation) -> None:
    (federation.folder / "clients/bob.json").rename(federation.folder / "bob.json")
    (federation.folder / "clients/bob.json").symlink_to("../bob.json")


def _wrong_status(federation: Federation) -> None:
    change(federation.folder / "clients/bob.json", status="admin")


def _wrong_former(federation: Federation) -> None:
    change(federation.folder / "clients/bob.json", former=["nonsense"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_open_folder, "chmod 700"),
        (_open_key, "chmod 600"),
        (_no_clients, "missing or a link"),
        (_linked_clients, "missing or a link"),
        (_plain_authority_key, "is encrypted, but"),
        (_other_server_key, "is not the key of"),
        (_no_server_key, "PKCS#8 is wanted"),
        (_other_server, "clients would refuse"),
        (_other_address, "clients would refuse the server's certificate for 'moved.example.org'"),
        (_no_certificate, "certificate in PEM is wanted"),
        (_lost_record, "numbered 0, 1, 2"),
        (_same_number, "numbered 0, 1, 2"),
        (_same_key, "occurs twice"),
        (_renamed_record, "is named as the client"),
        (_linked_record, "links are not followed"),
        (_wrong_status, "approved or revoked"),
        (_wrong_former, "'former' is wrong"),
    ],
)
def test_verify_finds(damage: Callable[[Federation], None], says: str, federation: Federation) -> None:
    admit(federation, "alice")
    admit(federation, "bob")
    damage(federation)
    with pytest.raises(PkiError, match=says):
        Federation.open(federation.folder).verify()


def test_a_swapped_authority_signs_nothing(federation: Federation, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    (federation.folder / "ca/ca.key").write_bytes((other.folder / "ca/ca.key").read_bytes())
    with pytest.raises(PkiError, match="is not the key of"):
        federation.rotate_server(passphrase=SECRET)


def test_a_linked_folder_is_not_followed(federation: Federation, tmp_path: Path) -> None:
    for name in ("server", "clients"):
        (federation.folder / name).rename(tmp_path / name)
        (federation.folder / name).symlink_to(tmp_path / name)
    before = snapshot(tmp_path)
    with pytest.raises(PkiError, match="links are not followed"):
        federation.rotate_server(passphrase=SECRET, hosts=[])
    with pytest.raises(PkiError, match="links are not followed"):
        federation.approve(make_request(tmp_path / "client", "alice"), passphrase=SECRET)
    assert {path: data for path, data in snapshot(tmp_path).items() if not path.startswith("client/")} == before


def test_a_link_in_a_circle_gets_a_sentence(federation: Federation) -> None:
    (federation.folder / "ca").rename(federation.folder / "elsewhere")
    (federation.folder / "ca").symlink_to("ca")
    for use in (federation.verify, federation.fingerprint):
        with pytest.raises(PkiError, match="link"):
            use()


def test_a_client_may_change_its_key_as_often_as_it_likes(federation: Federation) -> None:
    admit(federation, "alice")
    spare = [keys.public_text(ec.generate_private_key(ec.SECP384R1()).public_key()) for _ in range(400)]
    change(federation.folder / "clients/alice.json", former=spare)  # a year of days
    admit(federation, "alice", renew=True)
    assert len(federation.clients()[0].former) == 401


def test_a_federation_may_itself_be_reached_through_a_link(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(federation.folder)
    linked = Federation.open(tmp_path / "current")
    assert open_kit(linked.approve(make_request(tmp_path / "client", "alice"), passphrase=SECRET)).number == 0
    linked.rotate_server(passphrase=SECRET)
    linked.verify()


def test_opening_what_is_no_federation(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(PkiError, match="ist-fed provision init"):
            Federation.open(folder)


def test_a_member_is_what_its_record_says(federation: Federation) -> None:
    admit(federation, "alice")
    (member,) = federation.clients()
    record = json.loads((federation.folder / "clients/alice.json").read_text())
    assert Member(**{key: value for key, value in record.items() if key != "version"} | {"former": ()}) == member
    assert replace(member, number=1) != member
