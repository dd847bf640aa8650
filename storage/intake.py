"""Taking objects in: bytes made durable, then indexed in group commits; only then is anything acknowledged."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from storage import receiving
from storage.blobs import Blobs, file_size
from storage.database import Database, Writer
from storage.errors import Mismatch, NotDicom, StorageError
from storage.headers import Header, Written, file_digest, read_header
from storage.index import Arrival, Indexed, Origin, Outcome, insert_group, is_made_here, quarantine_blob

__all__ = ["Archive", "Receipt", "compare"]

#: How many objects one commit takes at most: enough to share an fsync, few enough to keep the lock short.
_COMMIT_ROWS = 64
_ENDED = "the archive has stopped taking objects in; restart the node, then send the object again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was taken in, durably."""

    outcome: Outcome
    study_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    made_here: bool
    defect: str = ""


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Entry:
    header: Header
    path: Path
    origin: Origin
    made_here: bool
    blob: str = ""
    found: Indexed | None = None
    error: BaseException | None = None
    #: No row can name the blob: said only where its transaction ended before the COMMIT.
    unindexed: bool = False
    #: Held until the entry is dealt with, or its own thread is to lead.
    wake: threading.Lock = field(default_factory=_held_lock)

    @property
    def is_done(self) -> bool:
        return self.found is not None or self.error is not None


class Archive:
    """The one way in. Safe to call from many threads; commits are shared between them.

    Who comes while nothing is being committed leads: it commits what has been offered, its own object and those of
    others, and then hands on to the first of those that came meanwhile. Alone, nobody waits for another thread.

    Parameters
    ----------
    database
        Opened in this process.
    blobs
        Where accepted bytes go.
    refused
        Where refused bytes go.
    device_uids
        Device UIDs of the models this node knows: what carries one of them in its Contributing Equipment
        Sequence (0018,A001) was made by such a model and is never evidence.
    """

    def __init__(self, database: Database, blobs: Blobs, refused: Blobs, device_uids: Container[str] = ()) -> None:
        self._database = database
        self._blobs = blobs
        self._refused = refused
        self._device_uids = device_uids
        self._writer = Writer(database)
        self._entries: deque[_Entry] = deque()
        self._changing = threading.Condition()
        self._is_led = False
        self._ended = False

    def receive(
        self,
        path: Path,
        origin: Origin,
        announced: tuple[str, str] | None = None,
        written: Written | None = None,
        descriptor: int | None = None,
    ) -> Receipt:
        """Take over a Part 10 file; durable on return.

        The file is gone from where it was afterwards, whatever the outcome.

        Parameters
        ----------
        path
            On the same file system as the blobs.
        origin
            Who offers it.
        announced
            The SOP Class and SOP Instance UID that the sender named beside the dataset, where the protocol has that.

        written
            What is known of the file from its writing, where this process has just written it.
        descriptor
            Open for writing to it, where it still is.

        Raises
        ------
        NotDicom
            The bytes are in quarantine, with the reason; ``Mismatch`` when they are not what was announced.
        StorageError
            When the archive was closed.
        """
        try:
            header = read_header(path, written)
            if announced is not None:
                compare(header, announced)
        except NotDicom as error:
            self._quarantine(path, str(error), origin)
            raise
        self._blobs.settle(path, descriptor)
        entry = _Entry(header, path, origin, is_made_here(header, self._device_uids))
        self._take_in(entry)
        if entry.error is not None:
            if not entry.blob:
                path.unlink(missing_ok=True)
            # After a COMMIT that failed the row may stand all the same: then start-up finds what is to become of it.
            elif entry.unindexed:
                self._blobs.delete(entry.blob)
            raise entry.error
        indexed = entry.found
        assert indexed is not None
        if indexed.outcome is Outcome.DUPLICATE:
            self._blobs.delete(entry.blob)
        return Receipt(
            outcome=indexed.outcome,
            study_instance_uid=header.study_instance_uid,
            sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid,
            made_here=indexed.made_here,
            defect=header.defect,
        )

    def refuse(self, path: Path, reason: str, origin: Origin) -> None:
        """Put bytes into quarantine that an earlier check has refused."""
        self._quarantine(path, reason, origin)

    def association_ended(self, study_instance_uids: Iterable[str], released: Collection[str] = ()) -> None:
        """Start the quiet period of these studies anew: an association that carried them has ended.

        ``released`` are those that it let go of in order and that no other association carries.
        """
        uids = list(study_instance_uids)
        if not uids:
            return
        with self._database.write() as connection:
            receiving.association_ended(connection, uids, released)

    def close(self) -> None:
        """Finish what was offered and stop."""
        with self._changing:
            self._ended = True
            self._changing.wait_for(lambda: not self._is_led)
        self._writer.close()

    def _quarantine(self, path: Path, reason: str, origin: Origin) -> None:
        size, digest = path.stat().st_size, file_digest(path)
        blob = self._refused.adopt(path)
        with self._database.write() as connection:
            quarantine_blob(connection, blob, size, digest, reason, origin)

    def _take_in(self, entry: _Entry) -> None:
        """Have an entry committed, by this thread or by the one that leads."""
        with self._changing:
            if self._ended:
                entry.error = StorageError(_ENDED)
                return
            self._entries.append(entry)
            leads, self._is_led = not self._is_led, True
        if not leads:
            entry.wake.acquire()
        if not entry.is_done:
            self._lead()

    def _lead(self) -> None:
        """Commit what has been offered, first of all the own entry, and hand on."""
        with self._changing:
            group = [self._entries.popleft() for _ in range(min(_COMMIT_ROWS, len(self._entries)))]
        try:
            self._commit(group)
        finally:
            with self._changing:
                following = self._entries[0] if self._entries else None
                if following is None:
                    self._is_led = False
                    self._changing.notify_all()
            if following is not None:
                following.wake.release()
            for one in group:
                if not one.is_done:
                    one.error = StorageError(_ENDED)
                one.wake.release()

    def _commit(self, group: Sequence[_Entry]) -> None:
        """Let the files of a group have their names, then rows that say so."""
        try:
            names = self._blobs.adopt_settled([one.path for one in group])
        except OSError as error:
            if len(group) == 1:
                group[0].error = error
                return
            for one in group:
                self._commit([one])
            return
        for one, name in zip(group, names, strict=True):
            one.blob = name
        self._index(group)

    def _index(self, group: Sequence[_Entry], again: int = 3, *, in_doubt: bool = False) -> None:
        committing = in_doubt
        try:
            with self._writer.transaction() as connection:
                arrivals = [
                    Arrival(header=one.header, blob=one.blob, origin=one.origin, made_here=one.made_here)
                    for one in group
                ]
                found = insert_group(connection, arrivals, self._holds)
                committing = True
        except BaseException as error:  # noqa: BLE001 - whoever waits must learn of it, whatever it is
            lost = isinstance(error, DBAPIError) and error.connection_invalidated and not committing
            if isinstance(error, OperationalError) and not committing and not lost:
                # Locked, full or not to be reached, for each of them alike: one after the other would wait as often.
                for one in group:
                    one.unindexed, one.error = True, error
                return
            if len(group) > 1:
                # One bad row must not refuse its neighbours. Where the COMMIT has worked, each finds its own row.
                for one in group:
                    self._index([one], in_doubt=committing)
                return
            # Another receiver made the same study, series or instance first: now it is there to be found. Or the
            # connection was lost while nobody used it: the next one is fresh.
            if again and (lost or isinstance(error, IntegrityError)):
                self._index(group, again - 1, in_doubt=committing)
                return
            group[0].unindexed = not committing
            group[0].error = error
            return
        for one, indexed in zip(group, found, strict=True):
            one.found = indexed

    def _holds(self, blob: str) -> int | None:
        return file_size(self._blobs.path(blob))


def compare(header: Header, announced: tuple[str, str]) -> None:
    """Refuse an object that is another than was announced: its sender would take the wrong one for stored."""
    for name, said, found in (
        ("SOP Class UID", announced[0], header.sop_class_uid),
        ("SOP Instance UID", announced[1], header.sop_instance_uid),
    ):
        if said != found:
            raise Mismatch(f"{name} of the dataset is not the announced one")
