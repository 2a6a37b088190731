"""Arrays ⇄ Flower records: the only room that knows records and key strings."""

from ist_fed.wire.aside import Ticket, leave, lift, put_back, ticket_of
from ist_fed.wire.laid import PIECE, Laid
from ist_fed.wire.order import Order, new_nonce, open_order, order_message
from ist_fed.wire.parcel import Label, Parcel, pack, unpack
from ist_fed.wire.profile import Profile, Question, open_profile, open_question, profile_answer, profile_question
from ist_fed.wire.records import from_record, to_record
from ist_fed.wire.reply import Reply, open_reply, refusal_message, reply_message
from ist_fed.wire.steps import Step, layout_of_flat, open_step, open_step_answer, step_answer, step_message

__all__ = [
    "PIECE",
    "Label",
    "Laid",
    "Order",
    "Parcel",
    "Profile",
    "Question",
    "Reply",
    "Step",
    "Ticket",
    "from_record",
    "layout_of_flat",
    "leave",
    "lift",
    "new_nonce",
    "open_order",
    "open_profile",
    "open_question",
    "open_reply",
    "open_step",
    "open_step_answer",
    "order_message",
    "pack",
    "profile_answer",
    "profile_question",
    "put_back",
    "refusal_message",
    "reply_message",
    "step_answer",
    "step_message",
    "ticket_of",
    "to_record",
    "unpack",
]
