"""What both ends of a stream agree on: a service of two calls, whose messages are plain bytes."""

SERVICE = "ist_fed.Streams"

DOWN = "Down"
"""Server to client. The request says, in decimal, which piece is to be the first; one past the last confirms that all
are there, and lets the server forget them."""

UP = "Up"
"""Client to server; `AT` says which piece is the first. The answer says, in decimal, how many the server has: to ask
just that, none is sent."""

TICKET, AT = "ticket", "at"
"""Metadata of a call."""

KEEPALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 20_000)]
"""An end that has gone without a word is missed within forty seconds."""


def path(call: str) -> str:
    """A call's name on the wire."""
    return f"/{SERVICE}/{call}"
