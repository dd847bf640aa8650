"""Which studies are being sent over associations just now, known to all receivers of a node together.

It lives as long as the associations do and is kept where they are: each receiver holds a record of a file by a lock,
which its death frees, and writes there which studies its associations carry. Nothing is written to the database.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Carried"]

#: Twice as many as there may be receivers: one that looks whether another lives holds its record for a moment.
_RECORDS = 128
_RECORD_BYTES = 8192
_MARK_BYTES = 8
#: In place of marks that a record has no room for: it may carry any study.
_ANY = b"\xff" * _MARK_BYTES


class Carried:
    """The studies that associations carry, over processes.

    Parameters
    ----------
    path
        The file; the same for all receivers. Record locks belong to a process: open it once in each.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._lock = threading.Lock()
        self._closed = False
        self._studies: Counter[str] = Counter()
        self._record = next(record for record in range(_RECORDS) if self._acquire(record))
        self._write()

    def begin(self, study_instance_uid: str) -> None:
        """Note that one more association carries a study."""
        with self._lock:
            self._studies[study_instance_uid] += 1
            if self._studies[study_instance_uid] == 1 and not self._closed:
                self._write()

    def end(self, study_instance_uids: Iterable[str]) -> set[str]:
        """Note that an association carries these no more; returns those that no other association carries."""
        ended = set(study_instance_uids)
        if not ended:
            return set()
        with self._lock:
            if self._closed:
                return set()
            self._studies.subtract(ended)
            self._studies = +self._studies
            self._write()
            elsewhere = self._elsewhere()
            if _ANY in elsewhere:
                return set()
            return {one for one in ended if one not in self._studies and _mark(one) not in elsewhere}

    def close(self) -> None:
        """Give the record back."""
        with self._lock:
            self._closed = True
            os.close(self._file)

    def _acquire(self, record: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, _RECORD_BYTES, record * _RECORD_BYTES)
        except OSError:
            return False
        return True

    def _write(self) -> None:
        marks = sorted(map(_mark, self._studies))
        most = _RECORD_BYTES // _MARK_BYTES
        marks = marks if len(marks) <= most else [_ANY]
        os.pwrite(self._file, b"".join(marks).ljust(_RECORD_BYTES, b"\0"), self._record * _RECORD_BYTES)

    def _elsewhere(self) -> set[bytes]:
        """Return the marks of the other receivers that live: the record of one that died can be locked."""
        found: set[bytes] = set()
        for record in range(os.fstat(self._file).st_size // _RECORD_BYTES):
            if record == self._record:
                continue
            if self._acquire(record):
                fcntl.lockf(self._file, fcntl.LOCK_UN, _RECORD_BYTES, record * _RECORD_BYTES)
                continue
            held = os.pread(self._file, _RECORD_BYTES, record * _RECORD_BYTES)
            found |= {held[start : start + _MARK_BYTES] for start in range(0, len(held), _MARK_BYTES)}
        return found - {b"\0" * _MARK_BYTES, b""}


def _mark(study_instance_uid: str) -> bytes:
    return hashlib.blake2b(study_instance_uid.encode(), digest_size=_MARK_BYTES).digest()
