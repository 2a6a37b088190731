"""Attacks on the product itself: what each found, in numbers and in words."""

from ist_fed.privacy.audit.canary import canaries
from ist_fed.privacy.audit.finding import Finding
from ist_fed.privacy.audit.inversion import Setting, update_inversion
from ist_fed.privacy.audit.membership import membership_inference

__all__ = ["Finding", "Setting", "canaries", "membership_inference", "update_inversion"]
