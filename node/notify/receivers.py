"""The port to whoever is told of results, and its adapter for HL7 over MLLP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from node.notify import mllp
from node.notify.hl7 import Profile, build_message

if TYPE_CHECKING:
    from node.notify.mllp import Outcome
    from node.notify.report import Report
    from node.settings import HL7Notifier

__all__ = ["Hl7Receiver", "Receiver", "receiver_for"]


class Receiver(Protocol):
    """Someone who is told of results. Composing and sending are apart: bytes are stored before they are sent."""

    def compose(self, report: Report, control_id: str) -> bytes:
        """Return the bytes of the one message that says ``report``; raises InvalidMessage."""
        ...

    def send(self, message: bytes, control_id: str) -> Outcome:
        """Send stored bytes and return what came of it; never raises for what the peer does."""
        ...

    def probe(self) -> str | None:
        """Return None when the receiver can be reached, else why not, in plain words."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hl7Receiver:
    """An HL7 v2 receiver behind MLLP over TCP."""

    host: str
    port: int
    profile: Profile = field(default_factory=Profile)
    connect_seconds: float = 10.0
    answer_seconds: float = 30.0

    def compose(self, report: Report, control_id: str) -> bytes:
        """Return the ORU^R01 of the report; see :func:`node.notify.hl7.build_message`."""
        return build_message(report, self.profile, control_id)

    def send(self, message: bytes, control_id: str) -> Outcome:
        """Send the stored bytes on a connection of their own; see :func:`node.notify.mllp.send`."""
        return mllp.send(
            self.host,
            self.port,
            message,
            control_id,
            connect_seconds=self.connect_seconds,
            answer_seconds=self.answer_seconds,
        )

    def probe(self) -> str | None:
        """Return None when the port accepts connections; MLLP has no echo, so no more than that can be known."""
        return mllp.reachable(self.host, self.port, self.connect_seconds)


def receiver_for(settings: HL7Notifier) -> Receiver:
    """Return the receiver that a notifier's configuration describes."""
    return Hl7Receiver(
        host=settings.host,
        port=settings.port,
        profile=Profile(
            sending_application=settings.sending_application,
            sending_facility=settings.sending_facility,
            receiving_application=settings.receiving_application,
            receiving_facility=settings.receiving_facility,
            result_status=settings.result_status,
        ),
        connect_seconds=min(settings.timeout_seconds, 10.0),
        answer_seconds=settings.timeout_seconds,
    )
