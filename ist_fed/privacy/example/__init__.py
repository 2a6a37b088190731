"""Differential privacy of single examples, made by the client itself with Opacus (DP-SGD on its subnet)."""

from ist_fed.privacy.example.guard import Guard
from ist_fed.privacy.example.settings import ExamplePrivacy, check_network
from ist_fed.privacy.example.spent import Spent

__all__ = ["ExamplePrivacy", "Guard", "Spent", "check_network"]
