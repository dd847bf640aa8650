"""The port behind which destinations are, and what can become of a delivery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Delivered", "Destination", "Outcome", "ProbeResult", "Refused", "Unreachable"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination said that it has stored the document.

    ``answer`` is its own word; ``note`` is not empty where it stored it with a warning, such as coerced elements.
    """

    answer: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination was there and did not take the document; asked again, it will likely say the same."""

    answer: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The destination was not there, or could not at the moment; whether it stored the document is not known."""

    answer: str


Outcome = Delivered | Refused | Unreachable


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether a destination would answer now, in words."""

    reached: bool
    answer: str


class Destination(Protocol):
    """Where documents go. Delivering the same document twice does no harm."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    def deliver(self, document: Path) -> Outcome:
        """Bring a stored Part 10 file there, byte for byte; never raises for what the destination does."""

    def probe(self) -> ProbeResult:
        """Ask whether it is there, without leaving anything."""
