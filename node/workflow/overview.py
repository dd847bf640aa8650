"""What operators are shown of models: every version with its stage, and one with its card, test and history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.bring.codes import open_names
from inference.card import Card, load_card
from inference.cautions import cautions
from inference.errors import CardError
from node.settings import Settings
from node.workflow import governing, measuring
from node.workflow.models import why_held
from storage import control, models
from storage.database import Database
from storage.lifecycle import REMOVED, RETIRED
from storage.records import ModelChange, ModelVersion

__all__ = ["VersionShown", "VersionTold", "version", "versions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShown:
    """One version on one line.

    ``problem`` says why it cannot run here, ``idle`` why it reads no study (a problem among it), ``way`` what runs it
    on this machine as far as that is a matter of measuring, ``todo`` what is left to do about that or about its test.
    """

    name: str
    version: str
    stage: str
    share: float | None
    title: str
    task: str
    engine: str
    digest: str
    device_uid: str
    origin: str
    added_at: datetime
    tested_at: datetime | None
    test_passed: bool | None
    demonstration: bool
    active: bool
    paused: bool
    routes: list[str]
    problem: str
    idle: str
    way: str
    todo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTold:
    """One version with all that is known of it; ``cautions`` are of its card (:mod:`inference.cautions`)."""

    shown: VersionShown
    cautions: list[str]
    card: Mapping[str, Any]
    test: Mapping[str, Any] | None
    history: list[ModelChange]


def versions(settings: Settings, database: Database, *, removed: bool = False) -> list[VersionShown]:
    """Return every version that is registered; those that were removed only where they are asked for."""
    with database.read() as connection:
        found, held = models.versions(connection), control.paused(connection, "model")
        released = models.released(connection)
    shown = [one for one in found if removed or one.state != REMOVED]
    return [_shown(settings, one, held, released)[0] for one in shown]


def version(settings: Settings, database: Database, reference: str) -> VersionTold:
    """Return one version with its card, its last test and its history.

    Raises
    ------
    Unknown, ModelRefused
        When there is none, or several.
    """
    one = governing.version_named(database, reference)
    with database.read() as connection:
        held, released = control.paused(connection, "model"), models.released(connection)
        changes = [each for each in models.history(connection, one.model) if each.version == one.version]
    shown, card = _shown(settings, one, held, released)
    told = card.model_dump(mode="json", exclude_defaults=True) if card else {}
    said = list(cautions(card)) if card else []
    return VersionTold(shown=shown, cautions=said, card=told, test=one.test, history=changes)


def _shown(
    settings: Settings, one: ModelVersion, held: frozenset[str], released: frozenset[tuple[str, str]]
) -> tuple[VersionShown, Card | None]:
    card, problem = None, ""
    try:
        if one.state == REMOVED:
            raise CardError("removed: its files are gone")
        card = governing.locate(settings, one.model, one.version, hashed=False)
        if card.digest != one.digest:
            problem = f"{card.path} has digest {card.digest[:12]}, not the one that was registered"
        else:
            _check_bytes(card.path, _stamps(card))
            if open_names(card):
                problem = f"the code of {open_names(card)[0]!r} is still open"
    except CardError as error:
        card, problem = None, str(error)
    way, todo = measuring.told(settings, one, card) if card and not problem and one.state != RETIRED else ("", "")
    active = settings.demonstration_models or card is None or not card.demonstration
    shown = VersionShown(
        name=one.model,
        version=one.version,
        stage=one.state,
        share=one.share,
        title=card.title if card else one.model,
        task=card.task if card else "",
        engine=card.engine if card else "",
        digest=one.digest,
        device_uid=one.device_uid,
        origin=one.origin,
        added_at=one.added_at,
        tested_at=one.tested_at if one.tested_digest == one.digest else None,
        test_passed=one.test_passed if one.tested_digest == one.digest else None,
        demonstration=card is not None and card.demonstration,
        active=active,
        paused=one.model in held,
        routes=_routes(settings, one),
        problem=problem,
        idle=problem or _idle(settings, one, active=active, paused=one.model in held, released=released),
        way=way,
        todo=todo,
    )
    return shown, card


def _routes(settings: Settings, one: ModelVersion) -> list[str]:
    return [route.name for route in settings.route_list if {one.model, one.name} & set(route.models)]


def _idle(
    settings: Settings, one: ModelVersion, *, active: bool, paused: bool, released: frozenset[tuple[str, str]]
) -> str:
    """Return why a version reads no study that comes now; "" where it reads those of its routes."""
    held = why_held(one, released, pinned=any(one.name in route.models for route in settings.route_list))
    if held:
        return held
    if not _routes(settings, one):
        return "no route names it"
    if not active:
        return "a demonstration, and off (demonstration_models)"
    return "paused" if paused else ""


def _stamps(card: Card) -> tuple[tuple[int, int, int, int], ...]:
    """Return what changes with the bytes of a card or its files: which file it is, how long, and since when."""
    try:
        found = [path.stat() for path in (card.path, *(card.directory / name for name in card.files))]
    except OSError as problem:
        raise CardError(f"{card.path}: a file cannot be read ({type(problem).__name__})") from problem
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found)


@lru_cache(maxsize=1024)
def _check_bytes(card: Path, stamps: tuple[tuple[int, int, int, int], ...]) -> None:  # noqa: ARG001
    """Hash what a card names, once for the same files: a list that is asked for every second reads no gigabytes.

    Raises
    ------
    CardError
        When a file's bytes are not what the card says; looked at again the next time.
    """
    load_card(card)
