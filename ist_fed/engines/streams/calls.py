"""What both ends of a stream agree on: a service of two calls, whose messages are plain bytes."""

SERVICE = "ist_fed.Streams"

DOWN = "Down"
"""Server to client. The request says, in decimal, which byte is to be the first; one past the last confirms that all
are there, and lets the server forget them."""

UP = "Up"
"""Client to server; `AT` says which byte is the first, `SIZE` how many there are altogether. The answer says, in
decimal, how many the server has: to ask just that, none is sent."""

TICKET, AT, SIZE = "ticket", "at", "size"
"""Metadata of a call."""

MESSAGE = 1 << 19
"""Most bytes in one message of a stream: gRPC holds several at once, and larger ones are hardly faster."""

OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_receive_message_length", 2 * MESSAGE),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * MESSAGE),
]
"""Of both ends. One that has gone without a word is missed within forty seconds, and no more than four messages are
taken in before they are asked for: by itself gRPC takes what it thinks the network carries, maybe everything."""


def path(call: str) -> str:
    """A call's name on the wire."""
    return f"/{SERVICE}/{call}"
