"""What is about to be read is held against the digests taken at receipt: nothing is said of pixels that have changed.

An engine reads the same pages of memory a moment later that were hashed here, and a kept result stands for the digests
alone, so both are asked for only once the bytes are known to be those that came in.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy import Connection, select

from node.errors import WorkitemUnfit
from storage import damage, results, schema
from storage.errors import NotDicom
from storage.headers import dataset_digest

if TYPE_CHECKING:
    from pathlib import Path

    from node.workflow.way import Way
    from storage.blobs import Blobs
    from storage.damage import Kind
    from storage.records import Instance

__all__ = ["require_sound"]

#: Younger than this a file's times do not yet tell one writing from the next.
_SETTLED_NS = 1_000_000_000
_MOST_REMEMBERED = 50_000


class _Mark(NamedTuple):
    """By what a file is known to be untouched since it was hashed: whoever writes to it changes its times."""

    digest: str
    inode: int
    size: int
    written_ns: int
    changed_ns: int


#: Files that this process has found right: the same input again costs no reading. ``overread verify`` reads all.
_found_right: dict[str, _Mark] = {}

_log = structlog.get_logger("overread.workflow")

#: What the node lacks at the moment, whatever file it opens.
_NOT_THE_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def require_sound(
    way: Way, study_id: int, input_set: Mapping[str, Iterable[Instance]], heartbeat: Callable[[], None]
) -> None:
    """Hold the files of an input set against what came in.

    What is wrong is recorded as ``overread verify`` does, so that the same object sent again takes its place; and what
    was remembered of the study is forgotten, since nobody knows when the file changed.

    Parameters
    ----------
    heartbeat
        Called after each file; what it raises passes on.

    Raises
    ------
    WorkitemUnfit
        When a file is missing, changed or unreadable.
    OSError
        When the node can open no file now, or has no memory for it.
    """
    wrong: dict[str, Kind] = {}
    read = {image.id: image for images in input_set.values() for image in images}
    for image in read.values():
        kind = _wrong(way.blobs, image)
        if kind is not None:
            wrong[image.blob] = kind
        heartbeat()
    if not wrong:
        return
    with way.database.write() as connection:
        # Asked again: meanwhile it may have been deleted, or have got other bytes.
        named = _named(connection, wrong)
        damage.note(connection, {blob: kind for blob, kind in wrong.items() if blob in named})
        if named:
            results.forget_study(connection, study_id)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(wrong.values()).items()))
    _log.error("images are not what was received", files=told)
    raise WorkitemUnfit(
        f"{len(wrong)} of {len(read)} images are not what was received ({told} on the disk; overread verify): "
        "send them again, then retry"
    )


def _wrong(blobs: Blobs, image: Instance) -> Kind | None:
    path = blobs.path(image.blob)
    try:
        as_it_lies = _mark(path, image.digest)
        if _found_right.get(str(path)) == as_it_lies:
            return None
        if dataset_digest(path) != image.digest:
            return "changed"
        # A file that was written a moment ago may be written again in the same tick of its clock.
        if time.time_ns() - as_it_lies.changed_ns > _SETTLED_NS:
            if len(_found_right) >= _MOST_REMEMBERED:
                _found_right.clear()
            _found_right[str(path)] = as_it_lies
        return None
    except FileNotFoundError:
        return "missing"
    except NotDicom:
        return "changed"
    except OSError as problem:
        if problem.errno in _NOT_THE_FILES:
            raise
        # As verify calls it. One file that cannot be read must not keep the others waiting.
        return "unreadable"


def _mark(path: Path, digest: str) -> _Mark:
    status = path.stat()
    return _Mark(digest, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _named(connection: Connection, blobs: Iterable[str]) -> set[str]:
    i = schema.instance.c
    # One by one: damage is rare, and a study may have thousands of files.
    return {blob for blob in blobs if connection.execute(select(i.id).where(i.blob == blob)).first() is not None}
