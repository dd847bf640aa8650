"""How versions of models come in while a node runs: from a folder or an archive, looked at before they are kept.

A version that is there already is left as it is, put back where its files were lost, or given new words and samples
where what decides its answers is the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from inference.bring.archive import take_in
from inference.bring.meanings import foreign_meanings
from inference.card import Card, load_card
from inference.cautions import cautions, copied
from inference.errors import CardError
from inference.ownership import hand_over, make_folder
from inference.registry import Registry, card_of, card_sha256, version_folder
from inference.samples import check_samples
from inference.trial import why_not_loaded
from node.settings import Settings
from node.workflow.control import Done
from node.workflow.governing import locate
from node.workflow.models import found_of, made_store, store_of
from storage import models, stages
from storage.blobs.files import fsync_directory
from storage.database import Database
from storage.errors import AlreadyThere
from storage.lifecycle import REMOVED
from storage.records import ModelVersion

__all__ = ["COMING", "add", "alone"]

#: What stands in the store under such a name is not whole, and nobody's once its maker is gone.
COMING: Final = ".coming-*"

Progress = Callable[[int, int], None]


def add(
    settings: Settings,
    database: Database,
    source: Path,
    *,
    by: str,
    why: str = "",
    check: bool = False,
    progress: Progress | None = None,
) -> Done:
    """Bring a version in from a folder or a zip archive with its card, as a candidate. The same again is no change.

    Where a version that was added has the same digest and other words or samples, these take the place of the old; what
    it has passed then has to be passed again.

    Parameters
    ----------
    check
        Whether its model is loaded once, in an engine's process, before it is kept.

    Raises
    ------
    CardError
        When something in the source is refused; nothing is left of it.
    AlreadyThere
        When other content stands under its number.
    """
    store = made_store(settings)
    with alone(store):
        coming = store / f".coming-{uuid.uuid4().hex}"
        try:
            take_in(source, coming, progress=progress)
            return _add(settings, database, source, coming, by=by, why=why, check=check)
        except CardError as problem:
            # The folder that it is looked at in is gone when somebody reads this.
            text = str(problem)
            for folder in (coming.resolve(), coming):
                text = text.replace(str(folder), str(source))
            raise CardError(text) from problem
        finally:
            shutil.rmtree(coming, ignore_errors=True)


@contextmanager
def alone(store: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one after the other bring something in; what one has left that was killed is taken away.

    Raises
    ------
    BlockingIOError
        If another is at it, and this one does not ``wait``.
    """
    lock = store / ".lock"
    with lock.open("a") as file:
        hand_over(lock)
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in store.glob(COMING):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _add(settings: Settings, database: Database, source: Path, coming: Path, *, by: str, why: str, check: bool) -> Done:
    store = store_of(settings)
    card = load_card(coming)
    name = f"{card.name}@{card.version}"
    place = version_folder(store, card.name, card.version)
    known = _known(database, card)
    same_words = known is not None and known.card_sha256 == card_sha256(card)
    removed = known is not None and known.state == REMOVED
    if known is not None and same_words and not removed and _is_whole(settings, known):
        return Done(unchanged=[f"{name} is here already, with the same bytes"])
    check_samples(card)
    problem = why_not_loaded(card) if check and (known is None or removed) else ""
    if problem:
        problem = problem.replace(f"{card.path}: ", "")
        raise CardError(f"{name} cannot be loaded, and was not added: {problem} (--no-check adds it as it is)")
    warnings = [*cautions(card), *copied(card, _others(settings)), *foreign_meanings(card)]
    _put(coming, place)
    found = found_of(card_of(place / "card.yaml", store), store)
    with database.write() as connection:
        if known is not None and removed:
            stages.bring_back(connection, known, by=by, why=why or f"again, from {source.name}")
        if known is not None and not same_words:
            models.reword(connection, known, found, by=by, why=why or f"words and samples from {source.name}")
        else:
            models.add(connection, found, by=by, why=why or f"from {source.name}")
    if known is not None and not same_words and not removed:
        return Done(
            changed=[f"{name} has new words and samples; what decides its answers is the same"],
            hint=f"overread models test {name}",
        )
    what = f"{name} is added as a candidate: digest {card.digest[:12]}, {len(card.files)} files"
    hint = f"overread models test {name}, then overread models promote {name}"
    if not card.samples:
        hint = f"no samples: add some to the card, or overread models promote {name} --untested --why"
    return Done(changed=[what], warnings=warnings, hint=hint)


def _others(settings: Settings) -> tuple[Card, ...]:
    """Return the cards of all models on disk, for their words: no file is hashed, and what is wrong is passed over."""
    folders = settings.models, store_of(settings)
    return tuple(card for folder in folders for card in Registry.from_folder(folder, lenient=True, hashed=False))


def _known(database: Database, card: Card) -> ModelVersion | None:
    """Return the version as it is registered, where it is.

    Raises
    ------
    AlreadyThere
        When other content stands under its number.
    """
    with database.read() as connection:
        known = next((one for one in models.versions(connection, card.name) if one.version == card.version), None)
    if known is None or known.card_sha256 == card_sha256(card):
        return known
    if known.digest != card.digest:
        raise AlreadyThere(
            f"{known.name} is registered with other content: what has changed needs a version of its own"
        )
    if known.origin != models.ADDED:
        raise AlreadyThere(
            f"{known.name} is registered with other content: it was not added, so its words are mended where it lies"
        )
    return known


def _is_whole(settings: Settings, known: ModelVersion) -> bool:
    """Whether the files of a version are where they belong; what was lost or damaged is put back."""
    try:
        return locate(settings, known.model, known.version).digest == known.digest
    except CardError:
        return False


def _put(coming: Path, place: Path) -> None:
    """Move a version to its place, durable on return."""
    hand_over(coming)
    for path in sorted(coming.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    for folder in (coming, *(path for path in coming.rglob("*") if path.is_dir())):
        fsync_directory(folder)
    make_folder(place.parent)
    before = coming.with_name(f"{coming.name}-before")
    if place.exists():
        # What was never registered, is damaged, or has other words: what was registered is compared before.
        place.rename(before)
    coming.rename(place)
    fsync_directory(place.parent)
    fsync_directory(place.parent.parent)
    shutil.rmtree(before, ignore_errors=True)
