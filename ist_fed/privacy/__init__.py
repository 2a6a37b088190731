"""What is private, and how: settings, what may be claimed, and central differential privacy; accounting has a room."""

from ist_fed.privacy.central import Central, CentralMerge
from ist_fed.privacy.disclosure import Disclosure, disclose
from ist_fed.privacy.ledger import LEDGER, BudgetSpent, Ledger
from ist_fed.privacy.settings import Mechanism, Privacy, check_conditions, mechanism

__all__ = [
    "LEDGER",
    "BudgetSpent",
    "Central",
    "CentralMerge",
    "Disclosure",
    "Ledger",
    "Mechanism",
    "Privacy",
    "check_conditions",
    "disclose",
    "mechanism",
]
