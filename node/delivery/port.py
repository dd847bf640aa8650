"""The port behind which destinations are, and what can become of a delivery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from node.dimse.commitment_messages import Report
from node.dimse.commitment_scu import Requested
from storage.commitments import Reference

__all__ = ["Committing", "Delivered", "Destination", "Outcome", "ProbeResult", "Refused", "Unreachable"]


@dataclass(frozen=True, slots=True)
class _Said:
    """What became of a delivery, in words.

    ``brief`` leaves out what the destination wrote freely, since that may name the patient; it is not given where
    ``said`` quotes nobody.
    """

    said: str
    brief: str = field(default="", kw_only=True)

    @property
    def answer(self) -> str:
        """All that was said, for the delivery's row only."""
        return self.said

    @property
    def summary(self) -> str:
        """What may be logged."""
        return self.brief or self.said


@dataclass(frozen=True, slots=True)
class Delivered(_Said):
    """The destination said that it has stored the document.

    ``note`` is not empty where it stored it in another way than it was sent, such as with elements coerced.
    """

    note: str = field(default="", kw_only=True)

    @property
    def answer(self) -> str:
        """All that was said, with the note, for the delivery's row only."""
        return f"{self.said}; {self.note}" if self.note else self.said


@dataclass(frozen=True, slots=True)
class Refused(_Said):
    """The destination was there and did not take the document; asked again, it will likely say the same."""


@dataclass(frozen=True, slots=True)
class Unreachable(_Said):
    """The destination was not there, or could not at the moment; whether it stored the document is not known."""


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


@runtime_checkable
class Committing(Destination, Protocol):
    """A destination that is asked to commit to what it has taken: only then is a document delivered."""

    @property
    def commit_seconds(self) -> float:
        """How long its report may take."""

    def commit(
        self,
        transaction_uid: str,
        references: Sequence[Reference],
        take: Callable[[Report], bool],
        *,
        accepted: Callable[[], None],
        is_answered: Callable[[], bool],
    ) -> Requested:
        """Ask for commitment; never raises for what the destination does.

        ``take`` keeps a report that comes at once, ``accepted`` is called once the request is taken, ``is_answered``
        says whether a report has come by another way.
        """
