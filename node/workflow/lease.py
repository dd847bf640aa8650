"""Holding an attempt: its lease is renewed in the background for as long as the whole attempt takes."""

from __future__ import annotations

import threading
from types import TracebackType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from storage import attempts
from storage.database import Database
from storage.errors import LeaseLost
from storage.records import Attempt

__all__ = ["Lease"]

_log = structlog.get_logger("overread.workflow")


class Lease:
    """Renews an attempt's lease at a third of its length, from the engine's start to the last document's end.

    Parameters
    ----------
    seconds
        How long each renewal holds.
    """

    def __init__(self, database: Database, attempt: Attempt, seconds: float) -> None:
        self._database = database
        self._attempt = attempt
        self._seconds = seconds
        self._over = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{attempt.id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Return while the attempt is still held.

        Raises
        ------
        LeaseLost
            When it was taken away: stop working at it.
        """
        if self._lost.is_set():
            raise LeaseLost(f"attempt {self._attempt.id} was taken from {self._attempt.owner}")

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            try:
                with self._database.write() as connection:
                    attempts.renew(connection, self._attempt, self._seconds)
            except LeaseLost:
                self._lost.set()
                return
            except SQLAlchemyError as error:
                # A busy database: there are two more chances before the lease runs out.
                _log.warning("lease not renewed", attempt=self._attempt.number, error=type(error).__name__)
