"""What is about to be read is held against the digests taken at receipt: nothing is said of pixels that have changed.

An engine reads the same pages of memory a moment later that were hashed here, and a kept result stands for the digests
alone, so both are asked for only once the bytes are known to be those that came in.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, select

from node.errors import WorkitemUnfit
from storage import damage, results, schema
from storage.errors import NotDicom
from storage.headers import dataset_digest

if TYPE_CHECKING:
    from node.workflow.way import Way
    from storage.blobs import Blobs
    from storage.damage import Kind
    from storage.records import Instance

__all__ = ["require_sound"]

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
    try:
        return None if dataset_digest(blobs.path(image.blob)) == image.digest else "changed"
    except FileNotFoundError:
        return "missing"
    except NotDicom:
        return "changed"
    except OSError as problem:
        if problem.errno in _NOT_THE_FILES:
            raise
        # As verify calls it. One file that cannot be read must not keep the others waiting.
        return "unreadable"


def _named(connection: Connection, blobs: Iterable[str]) -> set[str]:
    i = schema.instance.c
    # One by one: damage is rare, and a study may have thousands of files.
    return {blob for blob in blobs if connection.execute(select(i.id).where(i.blob == blob)).first() is not None}
