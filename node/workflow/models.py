"""Which versions of a model read a study: its stages, as the database has them now, with the cards on this disk.

Stages change while the node runs, and every process has to see it: a view is made anew whenever the audit trail of
models has grown, and costs one count otherwise.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from inference.bring.codes import open_names
from inference.card import Card
from inference.errors import CardError
from inference.ownership import make_folder
from inference.registry import Registry, card_of, card_sha256, parted, version_folder
from node.errors import ConfigurationError
from node.settings import Route, Settings
from storage import models, stages
from storage.database import Database
from storage.lifecycle import CANARY, CANDIDATE, LIVE, REMOVED, RETIRED, SHADOW
from storage.records import ModelVersion

__all__ = [
    "Chosen",
    "Models",
    "View",
    "check_routes",
    "found_of",
    "fraction_of",
    "installed",
    "made_store",
    "register",
    "store_of",
    "why_held",
]

_Key = tuple[str, str]
_Exact = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A version that reads a study, how decisions name it, and why it is this one."""

    reference: str
    card: Card
    shadow: bool = False
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The versions at one moment; ``problems`` says of which the files cannot be used here, and why.

    ``released`` names those that were live or a canary at some time: their results have been let out before.
    """

    versions: Mapping[_Key, ModelVersion]
    cards: Mapping[_Key, Card]
    problems: Mapping[_Key, str] = field(default_factory=dict)
    released: frozenset[_Key] = frozenset()

    def chosen(self, reference: str, study_instance_uid: str) -> tuple[tuple[Chosen, ...], str]:
        """Return what a route that names a model, or one version, means for a study: never two that may report.

        Returns
        -------
        tuple of Chosen, str
            The one that is live for it, if there is one, then every shadow; and why there is none that is live.
        """
        model, version = parted(reference)
        if version is not None:
            return self._pinned(reference, model, version)
        there = self._of(model)
        shadows = tuple(
            Chosen(
                reference=one.name,
                card=self.cards[one.model, one.version],
                shadow=True,
                reasons=(f"{one.name} is a shadow: it runs, and nothing of it leaves",),
            )
            for one in there
            if one.state == SHADOW and (one.model, one.version) in self.cards
        )
        live = next((one for one in there if one.state == LIVE), None)
        canary = next((one for one in there if one.state == CANARY), None)
        picked = live
        why: tuple[str, ...] = () if live is None or len(there) == 1 else (f"{live.name} is live",)
        if canary is not None and canary.share is not None:
            part = f"{100 * canary.share:g} % of the studies"
            if fraction_of(model, study_instance_uid) < canary.share:
                picked, why = canary, (f"{canary.name} is the canary for {part}, and this is one of them",)
            else:
                why += (f"the canary {canary.name} reads {part}, and this is none of them",)
        if picked is None:
            return shadows, f"no version of {model} is live"
        card = self.cards.get((picked.model, picked.version))
        if card is None:
            return shadows, self._why_absent(picked)
        return (Chosen(reference=reference, card=card, reasons=why), *shadows), ""

    def serving(self, reference: str) -> tuple[Card, ...]:
        """Return every card that may read some study for a route that names a model or a version."""
        model, version = parted(reference)
        if version is not None:
            return tuple(one.card for one in self._pinned(reference, model, version)[0])
        keys = [(one.model, one.version) for one in self._of(model) if one.state in (LIVE, CANARY, SHADOW)]
        return tuple(self.cards[key] for key in keys if key in self.cards)

    def named(self, reference: str) -> Card | None:
        """Return a card that tells what a model is: that version, or the live one, or any that is there."""
        model, version = parted(reference)
        known = [one for one in self._of(model) if (one.model, one.version) in self.cards]
        known = [one for one in known if version in (None, one.version)]
        best = next((one for one in known if one.state == LIVE), known[-1] if known else None)
        return None if best is None else self.cards[best.model, best.version]

    def of_digest(self, digest: str) -> Card | None:
        """Return the card with a digest, whatever its stage."""
        return next((card for card in self.cards.values() if card.digest == digest), None)

    @property
    def unfit(self) -> Mapping[_Key, str]:
        """What reads studies by its stage and cannot run here, and why: its files or its card are at fault."""
        return {
            key: self._why_absent(one)
            for key, one in self.versions.items()
            if one.state in (LIVE, CANARY, SHADOW) and key in self.problems
        }

    def why_not(self, digest: str) -> str:
        """Return why what was scheduled with a digest must not run now; "" where it may."""
        for key, one in self.versions.items():
            if one.digest == digest:
                if one.state in (RETIRED, REMOVED):
                    return f"{one.name} is {one.state}"
                return "" if key in self.cards else self._why_absent(one)
        return "is not installed any more, or has changed since this was scheduled; rerun the study to use what is live"

    def digests(self, routes: Iterable[Route]) -> frozenset[str]:
        """Return the digests of every version that may be asked for again."""
        return frozenset(card.digest for route in routes for name in route.models for card in self.serving(name))

    def _of(self, model: str) -> list[ModelVersion]:
        return [one for one in self.versions.values() if one.model == model]

    def _pinned(self, reference: str, model: str, version: str) -> tuple[tuple[Chosen, ...], str]:
        one = self.versions.get((model, version))
        if one is None:
            return (), f"{reference} is not registered here"
        held = why_held(one, self.released, pinned=True)
        if held:
            todo = f" (overread models test {reference})" if one.state == CANDIDATE else ""
            return (), f"{reference} is {held}{todo}"
        card = self.cards.get((model, version))
        if card is None:
            return (), self._why_absent(one)
        why = f"the route names {reference}, which is {one.state}"
        return (Chosen(reference=reference, card=card, shadow=one.state == SHADOW, reasons=(why,)),), ""

    def _why_absent(self, one: ModelVersion) -> str:
        return f"{one.name} cannot run here: {self.problems.get((one.model, one.version), 'its files are not here')}"


class Models:
    """Gives the view of now. Safe to use from many threads; made once a process.

    Files are hashed by :meth:`prepare` alone, outside any transaction and under no lock that a view needs: there may
    be gigabytes of them. What a view meets before that counts as it stands; its engine hashes its files anyway.

    Parameters
    ----------
    registry
        What was on disk at the start of the node.
    store
        Where versions lie that are added while it runs.
    """

    def __init__(self, registry: Registry, store: Path) -> None:
        self._store = store
        #: By version, digest and words: what was hashed, what was only read, and what is wrong with the rest.
        self._hashed: dict[_Exact, Card] = {self._exact_of(card): card for card in registry}
        self._read: dict[_Exact, Card] = {}
        self._wrong: dict[_Exact, str] = {}
        self._prepared = -1
        self._revision = -1
        self._view = View(versions={}, cards={})
        self._lock = threading.Lock()
        self._preparing = threading.Lock()

    def prepare(self, database: Database) -> None:
        """Hash the files of every version that has come since the last time; costs one count where nothing has."""
        with self._preparing:
            with database.read() as connection:
                revision = models.revision(connection)
                if revision == self._prepared:
                    return
                versions = [one for one in models.versions(connection) if one.state != REMOVED]
            wrong: dict[_Exact, str] = {}
            for one in versions:
                exact = _exactly(one)
                if exact not in self._hashed:
                    try:
                        self._hashed[exact] = self._load(one, hashed=True)
                    except CardError as problem:
                        wrong[exact] = str(problem)
            with self._lock:
                self._wrong, self._prepared, self._revision = wrong, revision, -1

    def view(self, connection: Connection) -> View:
        """Return the versions as they are now."""
        revision = models.revision(connection)
        with self._lock:
            if revision != self._revision:
                self._view = self._viewed(models.versions(connection), models.released(connection))
                self._revision = revision
            return self._view

    def _viewed(self, versions: Sequence[ModelVersion], released: frozenset[_Key]) -> View:
        cards: dict[_Key, Card] = {}
        problems: dict[_Key, str] = {}
        for one in versions:
            key, exact = (one.model, one.version), _exactly(one)
            if one.state == REMOVED:
                continue
            try:
                card = self._hashed.get(exact) or self._read.get(exact)
                if exact in self._wrong:
                    raise CardError(self._wrong[exact])
                if card is None:
                    card = self._read[exact] = self._load(one, hashed=False)
                if open_names(card):
                    raise CardError(f"{card.path}: outputs: the code of {open_names(card)[0]!r} is still open")
            except CardError as problem:
                problems[key] = str(problem)
                continue
            cards[key] = card
        by_key = {(one.model, one.version): one for one in versions}
        return View(versions=by_key, cards=cards, problems=problems, released=released)

    def _exact_of(self, card: Card) -> _Exact:
        found = found_of(card, self._store)
        return card.name, card.version, card.digest, found.card_sha256 if found.origin == models.ADDED else ""

    def _load(self, one: ModelVersion, *, hashed: bool) -> Card:
        file = version_folder(self._store, one.model, one.version) / "card.yaml"
        card = card_of(file, self._store, hashed=hashed)
        if card.digest != one.digest:
            raise CardError(f"{card.path}: its digest is {card.digest[:12]}, not {one.digest[:12]}")
        return card


def why_held(one: ModelVersion, released: frozenset[_Key], *, pinned: bool) -> str:
    """Return what a version is whose stage lets it read no study; "" where it reads those of its routes.

    Parameters
    ----------
    released
        Those that were live or a canary at some time: their results have been let out before.
    pinned
        Whether a route names this very version: a candidate is asked for by nothing else.
    """
    if one.state in (RETIRED, REMOVED):
        return one.state
    if one.state != CANDIDATE:
        return ""
    if one.has_failed or not (one.is_tested or (one.model, one.version) in released or one.origin == models.SHIPPED):
        return "a candidate that has not passed its test"
    return "" if pinned else "a candidate: not promoted"


def _exactly(one: ModelVersion) -> _Exact:
    """Return what tells a card from others: the words of what was added may change while the node runs."""
    return one.model, one.version, one.digest, one.card_sha256 if one.origin == models.ADDED else ""


def fraction_of(model: str, study_instance_uid: str) -> float:
    """Return where a study lies between 0 and 1 for a model: always the same, and evenly over all studies."""
    digest = hashlib.sha256(f"{model}\n{study_instance_uid}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def store_of(settings: Settings) -> Path:
    """Return where versions lie that are added at run time."""
    return settings.data_dir.absolute() / "models"


def made_store(settings: Settings) -> Path:
    """Return that folder, made where it is not there, for whoever runs the node."""
    # It will hold patients' data; see :meth:`node.ops.directory.DataDirectory.lock`.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(store_of(settings))
    return store_of(settings)


def installed(settings: Settings, *, routed: bool = True) -> Registry:
    """Load every version on disk: those that are configured, and those that were added at run time.

    What was added and cannot be loaded stays a problem of its own; the node works without it.

    Parameters
    ----------
    routed
        Whether every model that a route names has to be there: not for the commands that bring models.

    Raises
    ------
    inference.errors.CardError, ConfigurationError
        Naming the file, the key and what was expected.
    """
    registry = Registry.from_folder(settings.models).merged(Registry.from_folder(store_of(settings), lenient=True))
    if routed:
        check_routes(settings, registry)
    return registry


def check_routes(settings: Settings, registry: Registry) -> None:
    """Check that every model that a route names is there.

    Raises
    ------
    ConfigurationError
        Naming the route and what there is.
    """
    # What was added and cannot be loaded is no mistake in the routes: it is said of each study that it cannot run.
    broken = {path.parent.name for path in registry.problems}
    for route in settings.route_list:
        for name in route.models:
            if name not in registry and parted(name)[0] not in broken:
                known = registry.names() if "@" not in name else (f"{one.name}@{one.version}" for one in registry)
                there = ", ".join(known) or "none"
                raise ConfigurationError(
                    f"routes.{route.name}.models: no model {name!r} in {settings.models} (there is: {there})"
                )


def found_of(card: Card, store: Path) -> models.Found:
    """Say of a card what the database keeps of it."""
    return models.Found(
        model=card.name,
        version=card.version,
        digest=card.digest,
        device_uid=card.device_uid,
        card_sha256=card_sha256(card),
        origin=models.ADDED if card.directory.is_relative_to(store.resolve()) else models.SHIPPED,
    )


def register(connection: Connection, cards: Iterable[Card], store: Path) -> None:
    """Note in the database what a start has found on disk; see :func:`storage.stages.register`."""
    stages.register(connection, [found_of(card, store) for card in cards], by="the node")
