"""What a server is told when this node cannot answer."""

import logging

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable

from client.data import Unwilling, is_simulated
from ist_fed.engines.resident import APP_RAISED, NO_ANSWER

logger = logging.getLogger("ist_fed")


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod of Flower's `ClientApp`: errors are this node's own affair, but for what its operator does not allow.

    They may say where data lie, and what stands in them; and which task is to read them the server says.
    """
    try:
        return call_next(message, context)
    except Exception as error:
        if is_simulated(context.node_config):
            raise
        logger.error("this client could not answer", exc_info=error)
        reason = str(error) if isinstance(error, Unwilling) else NO_ANSWER
        return Message(Error(APP_RAISED, reason), reply_to=message)
