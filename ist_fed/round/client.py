"""A client as the strategy knows it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Client:
    """A connected client as the strategy knows it.

    Args:
        node: Flower's node id.
        number: the client's own number, the same on every engine; no two clients of a round share one.
        capacity: how much it can hold, relative to the others.
        weight: its share in the mean of its cohort.
        limit: largest fraction of every axis that it can hold.
        link: bytes a second between it and the server; 0 if not known.
    """

    node: int
    number: int
    capacity: float
    weight: float
    limit: float = 1.0
    link: float = 0.0
