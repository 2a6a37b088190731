"""Who is turned away by a real server, and that both sides are told why in a sentence."""

import datetime
import json
import signal

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from federation import PASSPHRASE, Local
from flwr.client.grpc_rere_client import node_auth_client_interceptor as clock
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from ist_fed.engines.fleet import Fleet
from ist_fed.engines.programs import Programs
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


def test_only_a_client_that_is_not_admitted_ends_for_good(local: Local) -> None:
    """A client that is dropped may only have met a server without its database, so it is to ask once more."""
    server = local.server()  # its run waits for the other client
    client = local.client(0)
    local.wait(lambda: "connected to" in local.log("client0.log"))
    server.send_signal(signal.SIGTERM)
    server.wait(120)
    for path in (local.home / "superlink").glob("state.db*"):
        path.unlink()
    local.server(run=False)
    assert client.wait(240) == 1
    client = local.client(0)
    local.wait(lambda: local.log("client0.log").count("connected to") == 2)
    local.federation.revoke("client0")
    assert client.wait(120) == 1
    assert "was revoked, or its key replaced" in local.log("client0.log")
    assert local.client(0).wait(240) == 77
    assert "does not know this client's key, has revoked it" in local.log("client0.log")


def test_a_log_that_grew_is_cut_and_refusals_are_told_all_the_same(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    kit, log = open_kit(local.kits[0]), local.folder / "home" / "superlink.log"
    with Server(Site(log.parent, local.address, local.federation)) as server:
        with log.open("ab") as file:
            file.write(b"x\n" * (6 << 20))
        server._step(lambda run, line: None, until_idle=True)
        assert log.stat().st_size < 1 << 20
        assert log.with_name("superlink.log.1").stat().st_size > 12 << 20
        refused(local.address, ec.generate_private_key(ec.SECP384R1()), kit.ca)
        server._step(lambda run, line: None, until_idle=True)
    assert "a client with an unknown key was turned away" in caplog.text


def test_who_was_admitted_or_dropped_may_be_known_to_flower_only(local: Local) -> None:
    """As when a disk is full, or a server is killed, before it is written down."""
    kit, site = open_kit(local.kits[0]), Site(local.folder / "home", local.address, local.federation)
    written = site.home / "nodes.json"
    with Server(site):
        before = written.read_text()
    written.unlink()
    with Server(site), Fleet(local.address, key(kit), kit.ca) as fleet:
        assert sorted(json.loads(written.read_text()).values()) == sorted(json.loads(before).values())
        assert fleet.join() in json.loads(before).values()
    local.federation.revoke("client0")
    with Server(site):
        assert len(json.loads(written.read_text())) == 1
    written.write_text(before)
    with Server(site):
        assert len(json.loads(written.read_text())) == 1
        assert "has revoked it" in refused(local.address, key(kit), kit.ca)


def test_nobody_activates_the_node_of_somebody_else(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    """A public key is no secret: it stands in the request and in the kit."""
    kit = open_kit(local.kits[0])
    with (
        Server(Site(local.folder / "home", local.address, local.federation)) as server,
        Fleet(local.address, key(kit), kit.ca) as fleet,
        Fleet(local.address, ec.generate_private_key(ec.SECP384R1()), kit.ca) as stranger,
    ):
        for named in (public_key_to_bytes(key(kit).public_key()), b"turned a node away: it was told that"):
            with pytest.raises(grpc.RpcError, match="Invalid signature"):
                stranger._stub.ActivateNode(ActivateNodeRequest(public_key=named, heartbeat_interval=1800))
        assert fleet.join() > 0
        server._step(lambda run, line: None, until_idle=True)
    assert "a client was turned away: Invalid signature" in caplog.text
    assert "it was told that" not in caplog.text


def test_who_was_revoked_while_there_was_no_server_is_not_let_in_at_its_start(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, site = open_kit(local.kits[0]), Site(local.folder / "home", local.address, local.federation)
    with Server(site), Fleet(local.address, key(kit), kit.ca) as fleet:
        assert fleet.join() > 0
    local.federation.revoke("client0")
    said, admit = list[str](), Programs.admit

    def tried(self: Programs) -> None:
        said.append(refused(local.address, key(kit), kit.ca))
        admit(self)
        said.append(refused(local.address, key(kit), kit.ca))

    monkeypatch.setattr(Programs, "admit", tried)
    with Server(site):
        said.append(refused(local.address, key(kit), kit.ca))
    assert ["does not know yet who is admitted" in each for each in said] == [True, True, False]
    assert "has revoked it" in said[-1]
