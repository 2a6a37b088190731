"""Who is turned away by a real server, and that both sides are told why in a sentence."""

import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from federation import PASSPHRASE, Local
from flwr.client.grpc_rere_client import node_auth_client_interceptor as clock

from ist_fed.engines.fleet import Fleet
from ist_fed.engines.server import Server
from ist_fed.engines.site import Site
from ist_fed.errors import FleetError
from ist_fed.pki import Federation, Kit, open_kit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # busy machines are slow


def key(kit: Kit) -> ec.EllipticCurvePrivateKey:
    loaded = load_ssh_private_key(kit.key.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded


def refused(address: str, key: ec.EllipticCurvePrivateKey, ca: bytes | None) -> str:
    with Fleet(address, key, ca) as fleet, pytest.raises(FleetError) as caught:
        fleet.join()
    return str(caught.value)


REAL = clock.now


def test_each_stranger_is_turned_away_and_both_sides_are_told(
    local: Local, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known, other = open_kit(local.kits[0]), open_kit(local.kits[1])
    address = local.address
    assert "cannot be reached (Connection refused)" in refused(address, key(known), known.ca)
    elsewhere = Federation.create(
        local.folder / "other", name="other", address=address, hosts=["127.0.0.1"], passphrase=PASSPHRASE
    )
    with Server(Site(local.folder / "home", address, local.federation)) as server:
        fleet = Fleet(address, key(known), known.ca)
        assert fleet.join() > 0
        assert fleet.pull() is None
        stranger = ec.generate_private_key(ec.SECP384R1())
        assert "does not know this client's key" in refused(address, stranger, known.ca)
        ca = elsewhere.ca_certificate.read_bytes()
        assert "this kit's authority did not sign" in refused(address, key(known), ca)
        assert "it speaks TLS; start this" in refused(address, key(known), None)
        assert "hears of another process with the same key" in refused(address, key(known), known.ca)
        local.federation.revoke("client0")
        server._step(lambda run, line: None, until_idle=True)
        with pytest.raises(FleetError, match="was revoked, or its key replaced"):
            fleet.pull()
        assert "has revoked it" in refused(address, key(known), known.ca)
        for minutes in (10, -10):
            monkeypatch.setattr(clock, "now", lambda by=minutes: REAL() + datetime.timedelta(minutes=by))
            assert "the clocks differ" in refused(address, key(other), other.ca)
        monkeypatch.undo()
        server._step(lambda run, line: None, until_idle=True)
        fleet.leave()
    for told in (
        "a client with an unknown key was turned away",
        "somebody who does not speak TLS was turned away",
        "client 'client0' was turned away: it was revoked",
        "a client that was revoked was turned away",
        "a client whose clock is more than 5 s ahead or 305 s behind was turned away",
    ):
        assert told in caplog.text
