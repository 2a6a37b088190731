"""Arrays ⇄ Flower records: the only room that knows records and key strings."""

from ist_fed.wire.order import Order, new_nonce, open_order, order_message
from ist_fed.wire.parcel import Label, Parcel, pack, unpack
from ist_fed.wire.profile import Profile, Question, open_profile, open_question, profile_answer, profile_question
from ist_fed.wire.records import from_record, to_record
from ist_fed.wire.reply import Reply, open_reply, refusal_message, reply_message
from ist_fed.wire.steps import Step, layout_of_flat, open_step, open_step_answer, step_answer, step_message

__all__ = [
    "Label",
    "Order",
    "Parcel",
    "Profile",
    "Question",
    "Reply",
    "Step",
    "from_record",
    "layout_of_flat",
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
    "refusal_message",
    "reply_message",
    "step_answer",
    "step_message",
    "to_record",
    "unpack",
]
