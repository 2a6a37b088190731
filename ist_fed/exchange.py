"""Send messages and get the replies as they come."""

import time
from collections.abc import Callable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from ist_fed.liveness import Liveness

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5  # between two questions for replies; Flower's own wait is three seconds


def exchange(
    grid: Grid, messages: list[Message], timeout: float, on_lost: Callable[[int, str], None]
) -> Iterator[Message]:
    """Push messages, and yield replies as they arrive, until none is to be had any more or the time is up.

    Args:
        grid: where the nodes are.
        messages: one to each node; they are taken out of the list, for the grid holds them then.
        timeout: seconds after which no more replies are waited for.
        on_lost: called with a node that has gone, and how one can tell; its reply is waited for no longer.
    """
    liveness = Liveness(grid)
    keys = grid.push_messages(messages)
    owing = {key: message.metadata.dst_node_id for key, message in zip(keys, messages, strict=True) if key}
    messages.clear()
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE_S
    while owing and time.monotonic() < deadline:
        replies = list(grid.pull_messages(set(owing)))
        for reply in replies:
            owing.pop(reply.metadata.reply_to_message_id, None)
        yield from replies
        for node, reason in liveness.gone(set(owing.values())).items():
            on_lost(node, reason)
            owing = {key: other for key, other in owing.items() if other != node}
        pause = _FIRST_PAUSE_S if replies else min(_LONGEST_PAUSE_S, 1.5 * pause)
        if owing and not replies:
            time.sleep(pause)
