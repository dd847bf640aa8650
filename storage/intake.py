"""Taking objects in: bytes made durable, then indexed in group commits; only then is anything acknowledged."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from storage import receiving
from storage.blobs import Blobs
from storage.database import Database
from storage.errors import Mismatch, NotDicom, StorageError
from storage.headers import Header, read_header
from storage.index import Indexed, Origin, Outcome, insert_instance, is_made_here, quarantine_blob

__all__ = ["Archive", "Receipt"]

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


@dataclass(slots=True)
class _Entry:
    header: Header
    blob: str
    origin: Origin
    made_here: bool
    done: Future[Indexed] = field(default_factory=Future)
    #: No row can name the blob: said only where its transaction ended before the COMMIT.
    unindexed: bool = False


class Archive:
    """The one way in. Safe to call from many threads; commits are shared between them.

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

    def __init__(self, database: Database, blobs: Blobs, refused: Blobs, device_uids: Collection[str] = ()) -> None:
        self._database = database
        self._blobs = blobs
        self._refused = refused
        self._device_uids = frozenset(device_uids)
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._offering = threading.Lock()
        self._ended = False
        self._committer = threading.Thread(target=self._commit_groups, name="committer", daemon=True)
        self._committer.start()

    def receive(self, path: Path, origin: Origin, announced: tuple[str, str] | None = None) -> Receipt:
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

        Raises
        ------
        NotDicom
            The bytes are in quarantine, with the reason; ``Mismatch`` when they are not what was announced.
        StorageError
            When the archive was closed, or its committer has ended.
        """
        try:
            header = read_header(path)
            if announced is not None:
                _compare(header, announced)
        except NotDicom as error:
            self._quarantine(path, str(error), origin)
            raise
        blob = self._blobs.adopt(path)
        entry = _Entry(header, blob, origin, is_made_here(header, self._device_uids))
        self._offer(entry)
        try:
            indexed = entry.done.result()
        except Exception:
            # After a COMMIT that failed the row may stand all the same: then start-up finds what is to become of it.
            if entry.unindexed:
                self._blobs.delete(blob)
            raise
        if indexed.outcome is Outcome.DUPLICATE:
            self._blobs.delete(blob)
        return Receipt(
            outcome=indexed.outcome,
            study_instance_uid=header.study_instance_uid,
            sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid,
            made_here=indexed.made_here,
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
        self._entries.put(None)
        self._committer.join()

    def _offer(self, entry: _Entry) -> None:
        with self._offering:
            if not self._ended:
                self._entries.put(entry)
                return
        entry.unindexed = True
        entry.done.set_exception(StorageError(_ENDED))

    def _quarantine(self, path: Path, reason: str, origin: Origin) -> None:
        size = path.stat().st_size
        blob = self._refused.adopt(path)
        with self._database.write() as connection:
            quarantine_blob(connection, blob, size, reason, origin)

    def _commit_groups(self) -> None:
        try:
            while (entry := self._entries.get()) is not None:
                group = [entry]
                last = False
                while len(group) < _COMMIT_ROWS:
                    try:
                        following = self._entries.get_nowait()
                    except queue.Empty:
                        break
                    if following is None:
                        last = True
                        break
                    group.append(following)
                try:
                    self._commit(group)
                finally:
                    _give_up(group)
                if last:
                    return
        finally:
            self._end()

    def _end(self) -> None:
        """Leave nobody waiting, however the committer has come to its end."""
        with self._offering:
            self._ended = True
        while True:
            try:
                left = self._entries.get_nowait()
            except queue.Empty:
                return
            if left is not None:
                left.unindexed = True
                left.done.set_exception(StorageError(_ENDED))

    def _commit(self, group: Sequence[_Entry], again: int = 3, *, in_doubt: bool = False) -> None:
        committing = in_doubt
        try:
            with self._database.write() as connection:
                found = [
                    insert_instance(
                        connection, one.header, one.blob, one.origin, made_here=one.made_here, holds=self._holds
                    )
                    for one in group
                ]
                committing = True
        except BaseException as error:  # noqa: BLE001 - whoever waits must learn of it, whatever it is
            if len(group) > 1:
                # One bad row must not refuse its neighbours. Where the COMMIT has worked, each finds its own row.
                for one in group:
                    self._commit([one], in_doubt=committing)
                return
            if isinstance(error, IntegrityError) and again:
                # Another receiver made the same study, series or instance first: now it is there to be found.
                self._commit(group, again - 1, in_doubt=committing)
                return
            group[0].unindexed = not committing
            group[0].done.set_exception(error)
            return
        for one, indexed in zip(group, found, strict=True):
            one.done.set_result(indexed)

    def _holds(self, blob: str) -> bool:
        return self._blobs.path(blob).is_file()


def _give_up(group: Sequence[_Entry]) -> None:
    for one in group:
        if not one.done.done():
            one.done.set_exception(StorageError(_ENDED))


def _compare(header: Header, announced: tuple[str, str]) -> None:
    """Refuse an object that is another than was announced: its sender would take the wrong one for stored."""
    for name, said, found in (
        ("SOP Class UID", announced[0], header.sop_class_uid),
        ("SOP Instance UID", announced[1], header.sop_instance_uid),
    ):
        if said != found:
            raise Mismatch(f"{name} of the dataset is not the announced one")
