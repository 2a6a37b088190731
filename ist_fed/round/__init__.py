"""One round: who is asked, what is open, what it did."""

from ist_fed.round.client import Client
from ist_fed.round.open import Accumulator, Round
from ist_fed.round.report import Refused, RoundReport

__all__ = ["Accumulator", "Client", "Refused", "Round", "RoundReport"]
