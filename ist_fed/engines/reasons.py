"""What a server, or whoever answers in its place, means by an error: a sentence, and whether trying again can help."""

import grpc
from flwr.supercore.error import ApiErrorCode, FlowerError

from ist_fed.errors import FleetError, FleetOver, FleetRefused, FleetUnknown, FleetUnreachable
from ist_fed.wire.excerpt import excerpt

_APPROVE = "ask its operator to approve this client's request"
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED: certificate has expired": "its certificate has expired; its operator must `rotate` it",
    "CERTIFICATE_VERIFY_FAILED": "it shows a certificate that this kit's authority did not sign, so it is not the "
    "server of this federation",
    "Hostname Verification": "its certificate is not for this name, so it is not the server, or the kit has an old "
    "address",
    "Peer name": "its certificate is not for this name, so it is not the server, or the kit has an old address",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, and this client does not speak without",
    "Invalid timestamp": "the clocks differ: this client's may be 5 s ahead and 305 s behind; set it by NTP",
    "Invalid node ID": f"this client was revoked, or its key replaced; {_APPROVE}",
    "Invalid signature": "the key that this client shows is not its own; start it with its own kit",
}
_CODES = {
    ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: "it does not know this client's key, has revoked it, or "
    f"hears of another process with the same key; {_APPROVE}, or stop the other",
    ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED: "it admits approved clients only; start this one with its kit",
    ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED: "the run is over",
}

_KINDS = {
    ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED: FleetUnknown,
    ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED: FleetOver,
}


def explain(error: grpc.RpcError, address: str, *, plain: bool = False) -> FleetError:
    """What went wrong, in a sentence; `FleetUnreachable` where trying again can help.

    Args:
        error: of a call.
        address: that was called.
        plain: it was the first call of a connection without TLS.
    """
    code, said = error.code(), error.details() or ""
    flower = FlowerError.from_json(said)
    if flower and flower.code in _CODES:
        kind = _KINDS.get(ApiErrorCode(flower.code), FleetRefused)
        return kind(f"the server at {address} refused: {_CODES[ApiErrorCode(flower.code)]}")
    for sign, reason in _REASONS.items():
        if sign in said:
            return FleetRefused(f"the server at {address} cannot be used: {reason}")
    if code is grpc.StatusCode.UNAVAILABLE:
        if plain and "Socket closed" in said:
            return FleetRefused(
                f"the server at {address} cannot be used: it speaks TLS; start this client with its kit"
            )
        why = excerpt(said.rpartition(": ")[2])
        return FleetUnreachable(f"the server at {address} cannot be reached ({why})")
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return FleetUnreachable(f"the server at {address} did not answer in time")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Concurrent RPC limit" in said:
        return FleetUnreachable(f"the server at {address} has too much to do")
    if code is grpc.StatusCode.INTERNAL:  # its database was busy for too long, say
        return FleetUnreachable(f"the server at {address} failed over a call; its log says why")
    return FleetRefused(f"the server at {address} refused: {excerpt(flower.message if flower else said)}")
