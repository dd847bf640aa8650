"""Delivery: one evidence document to one destination, by C-STORE, STOW-RS or as a file."""

from node.delivery.factory import make_destination
from node.delivery.port import Delivered, Destination, Outcome, ProbeResult, Refused, Unreachable

__all__ = ["Delivered", "Destination", "Outcome", "ProbeResult", "Refused", "Unreachable", "make_destination"]
