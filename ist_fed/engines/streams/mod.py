"""What a ClientApp does about tickets: have the bytes before it works, and send its own after it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from flwr.app import Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable

from ist_fed.device import trim_memory
from ist_fed.engines.resident import LINK
from ist_fed.engines.streams.channel import Channel
from ist_fed.errors import FleetError, FleetRefused
from ist_fed.pki import open_kit
from ist_fed.wire import Ticket, leave, lift, put_back, refusal_message, ticket_of


def streamed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod of Flower's `ClientApp`; it does nothing about a message without a ticket.

    Args:
        message: as it came.
        context: whose `node_config` says by `kit` or `server` who the server is.
        call_next: the app.
    """
    ticket = ticket_of(message.content) if message.has_content() else None
    if ticket is None:
        return call_next(message, context)
    try:
        return _carried(ticket, message, context, call_next)
    except FleetError as error:
        return refusal_message(f"its subnet did not come, or did not get back: {error}", reply_to=message)


def _carried(ticket: Ticket, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    channel, seconds = _channel(*_server(context.node_config), ticket.port), message.metadata.ttl
    put_back(message.content, channel.fetch(ticket.name, ticket.size, seconds))
    trim_memory()
    if channel.link:
        context.state[LINK] = MetricRecord({"bytes_per_second": channel.link})
    reply = call_next(message, context)
    if reply.has_content() and (laid := lift(reply.content)) is not None:
        channel.send(ticket.name, laid, seconds)
        leave(reply.content, replace(ticket, size=laid.size))
    return reply


def _server(node: Mapping[str, object]) -> tuple[str, str]:
    """The kit, and without one the server's `host:port`."""
    kit, server = str(node.get("kit", "")), str(node.get("server", ""))
    if not kit and not server:
        raise FleetRefused(
            "it waits on the server, but this node was not told who that is; start it with ist-fed client, name the "
            "kit in --node-config ('kit=\"NAME.kit.json\"'), or start the server with --streams 0"
        )
    return kit, server


@cache
def _channel(kit: str, server: str, port: int) -> Channel:
    """Kept while the process lives. The server says the port only: neither another host, nor to go without TLS."""
    opened = open_kit(Path(kit)) if kit else None
    host = (opened.address if opened else server).rpartition(":")[0]
    return Channel(f"{host}:{port}", opened.ca if opened else None)
