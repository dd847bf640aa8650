"""Reconciles files and rows in the background of a node that is at work, and says how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from node.ops.directory import DataDirectory
from storage import chores
from storage.database import Database
from storage.reconcile import Reconciled, remove_leftovers, steps, still_missing

__all__ = ["CHORE", "reconciling"]

_log = structlog.get_logger("overread.reconcile")

#: The name of this work among the chores.
CHORE = "reconcile"
#: Should the clock have been set back since the start, what an attempt has just written may look like a leftover:
#: within this time it is committed.
_PATIENCE_SECONDS = 10.0
_AGAIN_SECONDS = 10.0
_TELL_SECONDS = 1.0
_NAMED_IN_LOG = 100


@contextmanager
def reconciling(
    database: Database, directory: DataDirectory, device_uids: Container[str], before: int
) -> Iterator[None]:
    """Reconcile in the background for as long as the block lasts, once through everything.

    Parameters
    ----------
    before
        Files that changed at this time or later are being taken in by other processes; see
        :meth:`DataDirectory.moment`.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_reconcile, args=(database, directory, device_uids, before, stop), name="reconcile", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _reconcile(
    database: Database, directory: DataDirectory, device_uids: Container[str], before: int, stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            found = _once(database, directory, device_uids, before, stop)
        except (OSError, SQLAlchemyError):
            _log.exception("files and rows could not be compared; it is tried again", seconds=_AGAIN_SECONDS)
            stop.wait(_AGAIN_SECONDS)
            continue
        if found is not None and found.leftovers and not stop.wait(_PATIENCE_SECONDS):
            _log.info("leftovers removed", files=remove_leftovers(database, directory.blobs, found.leftovers))
        return


def _once(
    database: Database, directory: DataDirectory, device_uids: Container[str], before: int, stop: threading.Event
) -> Reconciled | None:
    began = told = time.monotonic()
    found = Reconciled()
    blobs, refused = directory.blobs, directory.refused
    at = time.monotonic()
    begun = False
    for done, total in steps(database, blobs, refused, device_uids, found, before=before):
        if not begun or time.monotonic() - told >= _TELL_SECONDS:
            with database.write() as connection:
                if not begun:
                    chores.begin(connection, CHORE, total)
                chores.step(connection, CHORE, done, _told(found))
            begun, told = True, time.monotonic()
        # As long as a folder took, others have the processor.
        if stop.wait(time.monotonic() - at):
            return None
        at = time.monotonic()
    found.missing = still_missing(database, found.missing)
    with database.write() as connection:
        chores.end(connection, CHORE, _told(found))
    _log.info("reconciled", seconds=round(time.monotonic() - began, 3), **_told(found))
    for blob in found.missing[:_NAMED_IN_LOG]:
        _log.error("bytes are missing", blob=blob)
    for blob in found.unreadable[:_NAMED_IN_LOG]:
        _log.error("file without a row cannot be read", blob=blob)
    return found


def _told(found: Reconciled) -> dict[str, int]:
    return {
        "adopted": found.adopted,
        "quarantined": found.quarantined,
        "removed": found.removed,
        "missing": len(found.missing),
    }
