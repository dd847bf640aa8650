"""How versions of models that were added leave a node again: first the row says so, then the files go.

The row stays, and with it the number, the Device UID and the history: what the version has made is still known for
this node's own, and no other bytes can ever stand under its number. What a kill has left of the files is taken away by
the next start, or by removing it again.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path

import structlog

from inference.registry import version_folder
from node.errors import ModelRefused
from node.settings import Settings
from node.workflow import shadows
from node.workflow.arriving import COMING, alone
from node.workflow.control import Done
from node.workflow.governing import version_named
from node.workflow.models import made_store, store_of
from storage import models, stages, worklist
from storage.blobs.files import fsync_directory
from storage.database import Database
from storage.lifecycle import REMOVED
from storage.records import ModelVersion

__all__ = ["remove", "sweep"]

_log = structlog.get_logger("overread.leaving")


def remove(settings: Settings, database: Database, reference: str, *, by: str, why: str = "") -> Done:
    """Take the files of a version away that was added and that nothing needs any more; the row stays, as removed.

    Raises
    ------
    ModelRefused
        Where a route names it, or it is the last version of a model that a route names.
    IllegalTransition
        Where it was not added, reads studies, or is what a rollback would go back to.
    """
    one = version_named(database, reference)
    store = made_store(settings)
    with alone(store):
        if one.state == REMOVED:
            there = _unlink(store, one)
            said = f"{one.name} was removed before"
            return (
                Done(changed=[f"{said}; what was left of its files is gone now"]) if there else Done(unchanged=[said])
            )
        with database.write() as connection:
            _check_routes(settings, one, models.versions(connection, one.model))
            stages.remove(connection, models.get(connection, one.model, one.version), by=by, why=why)
        _unlink(store, one)
        with database.read() as connection:
            shadows.forget(
                settings.data_dir.absolute() / "shadows", worklist.shadows_of(connection, one.model, one.version)
            )
    hint = f"its number stays taken, and its history: overread models history {one.model}"
    return Done(changed=[f"{one.name}: {one.state} -> {REMOVED}; its files are gone"], hint=hint)


def sweep(settings: Settings, database: Database) -> int:
    """Take away what is left of the files of versions that were removed; return of how many.

    Nothing waits for it: where somebody is adding or removing a version, and may be loading a model for that, it is
    left to the next start, or to whoever removes or adds something.
    """
    store = store_of(settings)
    if not store.is_dir():
        return 0
    if not _left(store, database) and next(store.glob(COMING), None) is None:
        return 0
    try:
        with alone(store, wait=False):
            # Asked again: whoever was here just now may have brought one back.
            return sum(_unlink(store, one) for one in _left(store, database))
    except BlockingIOError:
        _log.info("a version is being added or removed now; what is left of removed ones stays until the next start")
        return 0


def _left(store: Path, database: Database) -> list[ModelVersion]:
    with database.read() as connection:
        removed = [one for one in models.versions(connection) if one.state == REMOVED]
    return [one for one in removed if version_folder(store, one.model, one.version).exists()]


def _check_routes(settings: Settings, one: ModelVersion, there: list[ModelVersion]) -> None:
    others = [each for each in there if each.id != one.id and each.state != REMOVED]
    for route in settings.route_list:
        if one.name in route.models:
            raise ModelRefused(f"route {route.name} names {one.name}: take it out of the route first")
        if one.model in route.models and not others:
            raise ModelRefused(
                f"{one.name} is the only version of {one.model}, which route {route.name} names: the node could not "
                "start without it. Take it out of the route, or add another version first"
            )


def _unlink(store: Path, one: ModelVersion) -> bool:
    """Remove a version's folder; whole by its name at once, so that no start ever finds half of one."""
    place = version_folder(store, one.model, one.version)
    if not place.exists():
        return False
    # What stands under such a name and belongs to nobody is taken away by whoever is alone here next.
    gone = store / f".coming-{uuid.uuid4().hex}-removed"
    place.rename(gone)
    fsync_directory(place.parent)
    fsync_directory(store)
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        place.parent.rmdir()
    return True
