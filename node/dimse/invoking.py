"""What the acceptor of an association asks of its requestor: requests in the other direction, and work for later.

Everything here runs in the association's thread, which also serves the peer's requests, so that messages do not mix.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT

__all__ = ["Invocations"]

Lost = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Later:
    at: float
    run: Callable[[], None]
    lost: Lost


class Invocations:
    """Requests that an acceptor makes, and what is to be done once an association has been quiet for a moment."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._later: list[_Later] = []
        self._open: dict[int, tuple[Callable[[int], None], Lost]] = {}
        self._message_id = 0
        self._lock = threading.Lock()

    def later(self, seconds: float, run: Callable[[], None], lost: Lost) -> None:
        """Do something in so many seconds; ``lost`` is called instead where the association ends before."""
        with self._lock:
            self._later.append(_Later(time.monotonic() + seconds, run, lost))

    def due(self) -> Callable[[], None] | None:
        """Take what is to be done now."""
        if not self._later:
            return None
        with self._lock:
            for one in self._later:
                if one.at <= time.monotonic():
                    self._later.remove(one)
                    return one.run
        return None

    def request(self, primitive: N_EVENT_REPORT, context_id: int, answered: Callable[[int], None], lost: Lost) -> None:
        """Send a request; ``answered`` is called with the status of its response, ``lost`` where none comes."""
        self._message_id = self._message_id % 0xFFFF + 1
        primitive.MessageID = self._message_id
        self._open[self._message_id] = (answered, lost)
        self._association.dimse.send_msg(primitive, context_id)

    def take(self, message: Any) -> bool:
        """Take a message that is a response to one of these requests; False where it is none."""
        if not isinstance(message, N_EVENT_REPORT) or message.MessageIDBeingRespondedTo is None:
            return False
        waiting = self._open.pop(message.MessageIDBeingRespondedTo, None)
        if waiting is not None:
            answered, lost = waiting
            if message.Status is None:
                lost()
            else:
                answered(int(message.Status))
        return True

    def end(self) -> None:
        """The association has ended: nothing of this will happen any more."""
        with self._lock:
            later, self._later = self._later, []
        waiting, self._open = list(self._open.values()), {}
        for one in later:
            one.lost()
        for _, lost in waiting:
            lost()
