"""Orders: what the server sends to a client in a round."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from ist_fed.errors import WireError
from ist_fed.flat import Flat
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.parcel import Parcel, digest_of, take_pieces, unpack
from ist_fed.wire.records import EXTRA, ORDER, record_of


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a client is asked to do in one round.

    Args:
        round: from 1.
        nonce: of this round's plan and this client; the reply echoes it.
        seed: the scenario's seed, from which the client draws its order of examples.
        sizes: units of each axis of the subnet.
        arrays: the subnet.
        digest: BLAKE3 of the subnet's bytes as they arrived.
        local_steps: how many steps to take.
        lr: learning rate of this round.
        training: the other fields of `Training`.
        scales: layer → what its inputs are multiplied by, for the subnet is narrow.
    """

    round: int
    nonce: str
    seed: int
    sizes: dict[str, int]
    arrays: Flat
    digest: str
    local_steps: int
    lr: float
    training: dict[str, Any]
    scales: dict[str, float] = field(default_factory=dict)


def new_nonce() -> str:
    """A name that nobody can guess, for one client in one round."""
    return secrets.token_hex(16)


def order_message(node: int, parcel: Parcel, order: Mapping[str, Any], extra: ConfigRecord, ttl: float) -> Message:
    """The message that sends a subnet to a node.

    Args:
        node: Flower's node id.
        parcel: the packed subnet; the same object may go to a whole cohort.
        order: the fields of `Order` but `arrays` and `digest`.
        extra: Flower's `train_config`, passed on as it is.
        ttl: seconds until the order lapses.
    """
    records = parcel.beside(ORDER, {"fields": json.dumps(dict(order))})  # Flower pays per key, too
    if extra:
        records[EXTRA] = extra
    return Message(RecordDict(records), node, MessageType.TRAIN, group_id=str(order["round"]), ttl=ttl)


def open_order(message: Message, *, take: bool = False) -> Order:
    """Read an order on the client.

    Args:
        message: as it came.
        take: take a large subnet out of the message, so that it is in memory once.

    Raises:
        WireError: it was not sent by this version of ist_fed.
    """
    try:
        config = record_of(message.content, ORDER, ConfigRecord)
        pieces = take_pieces(message.content if take else dict(message.content), ORDER)
        digest = digest_of(pieces)
        arrays = unpack(str(config["layout"]), pieces)
        order = Order(arrays=arrays, digest=digest, **json.loads(str(config["fields"])))
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError(
            f"an order must hold a subnet and its round, but this one cannot be read ({type(error).__name__}: "
            f"{excerpt(str(error))}); server and client must run the same version of ist_fed"
        ) from error
    _check_order(order)
    return order


def _check_order(order: Order) -> None:
    sound = {
        "round": type(order.round) is int and order.round >= 1,
        "nonce": isinstance(order.nonce, str),
        "seed": type(order.seed) is int and order.seed >= 0,
        "sizes": isinstance(order.sizes, dict) and all(type(n) is int and n >= 0 for n in order.sizes.values()),
        "local_steps": type(order.local_steps) is int and order.local_steps >= 1,
        "lr": type(order.lr) is float and isfinite(order.lr) and order.lr >= 0,
        "training": isinstance(order.training, dict),
        "scales": isinstance(order.scales, dict)
        and all(type(scale) is float and 0 < scale < inf for scale in order.scales.values()),
    }
    for key, fits in sound.items():
        if not fits:
            raise WireError(
                f"an order's {key} makes no sense: {excerpt(getattr(order, key), 80)}; server and client must run the "
                f"same version of ist_fed"
            )
