"""Arrays ⇄ Flower records: the only room that knows records and key strings."""

from ist_fed.wire.order import Order, new_nonce, open_order, order_message
from ist_fed.wire.parcel import Label, Parcel, pack, unpack
from ist_fed.wire.profile import Profile, Question, open_profile, open_question, profile_answer, profile_question
from ist_fed.wire.records import from_record, to_record
from ist_fed.wire.reply import Reply, open_reply, refusal_message, reply_message

__all__ = [
    "Label",
    "Order",
    "Parcel",
    "Profile",
    "Question",
    "Reply",
    "from_record",
    "new_nonce",
    "open_order",
    "open_profile",
    "open_question",
    "open_reply",
    "order_message",
    "pack",
    "profile_answer",
    "profile_question",
    "refusal_message",
    "reply_message",
    "to_record",
    "unpack",
]
