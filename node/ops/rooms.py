"""Says in the log when a disk fills, and when there is room again: once for each change, from one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from storage.space import Level, Room

__all__ = ["watching"]

_log = structlog.get_logger("overread.disk")
_EVERY_SECONDS = 1.0


@contextmanager
def watching(room: Room) -> Iterator[None]:
    """Watch in the background for as long as the block lasts."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(room, stop), name="disk", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(room: Room, stop: threading.Event) -> None:
    known: dict[str, Level] = {}
    while True:
        try:
            _tell(room, known)
        except OSError as error:
            _log.error("disk cannot be asked for its free space", error=error.strerror)
        if stop.wait(_EVERY_SECONDS):
            return


def _tell(room: Room, known: dict[str, Level]) -> None:
    for one in room.readings():
        before = known.get(one.disk, Level.ENOUGH)
        known[one.disk] = one.level
        if one.level is Level.REFUSED and before is not Level.REFUSED:
            _log.error("disk is full: nothing is taken in", disk=one.disk, reason=one.words)
        elif one.level is Level.SCARCE and before is not Level.SCARCE:
            _log.warning("disk is filling", disk=one.disk, reason=one.words)
        elif one.level is Level.ENOUGH and before is not Level.ENOUGH:
            _log.info("disk has room again", disk=one.disk, free=one.free)
