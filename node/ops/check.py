"""Checks everything that a node needs before it is put to work: configuration, models, database, disk, every peer.

Nothing is changed by a check but one file that is written into the data directory and taken away again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from node.errors import ConfigurationError
from node.security.tls import SOON, Acceptor, Expiry, PeerTls, expiries
from node.settings import Settings
from storage.lifecycle import CANARY, LIVE
from storage.space import Disk, Room

if TYPE_CHECKING:
    from inference.card import Card
    from inference.registry import Registry
    from node.workflow.models import View

__all__ = ["Check", "check", "check_route", "why_idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found, and where it is not in order, what to do.

    What has passed and says what to do is in order for a start, and still not as its operator may think.
    """

    what: str
    passed: bool
    found: str
    todo: str = ""


def check(settings: Settings) -> list[Check]:
    """Check a loaded configuration against the world. Never raises for what it finds; peers are probed at once."""
    found = [*_models(settings), _ports(settings), *_certificates(settings), _database(settings), _data_dir(settings)]
    found += _bytes(settings)
    probes = list(_probes(settings))
    with ThreadPoolExecutor(max_workers=max(1, min(16, len(probes)))) as pool:
        return found + list(pool.map(lambda one: _peer(*one), probes))


def _models(settings: Settings) -> Iterator[Check]:
    from inference.errors import InferenceError
    from inference.registry import Registry
    from node.workflow.models import store_of

    try:
        registry = Registry.from_folder(settings.models).merged(Registry.from_folder(store_of(settings), lenient=True))
    except InferenceError as error:
        yield Check(
            what="models",
            passed=False,
            found=str(error),
            todo="put the model's files back as they were, or correct its card",
        )
        return
    for place, problem in registry.problems.items():
        yield Check(
            what=f"model in {place}",
            passed=False,
            found=problem,
            todo="files that are lost: overread models add of the same ones. A card that is at fault: overread models "
            "add of a mended one, as a version of its own; overread models rollback meanwhile",
        )
    view = _view(settings, registry)
    # One after the other: each may take as much memory as its card allows.
    yield from (_model(settings, card, view) for card in registry)
    idle = _why_idle(settings, registry, view)
    yield from (check_route(route.name, route.models, registry, idle) for route in settings.route_list)


def _model(settings: Settings, card: Card, view: View | None) -> Check:
    """Load a model as the node would, in a process of its own: a right hash does not make bytes a model."""
    from inference.errors import EngineFailure
    from inference.host import EngineHost
    from node.workflow.engines import cache_of, cores_of, share_of_memory

    what = f"model {card.name} {card.version}"
    engines = cache_of(settings)
    try:
        # Nothing is left by a check: what engines keep is used where a node has run, and not begun.
        with EngineHost(card, cache=engines if engines.is_dir() else None, cores=cores_of(settings)) as host:
            host.load()
    except EngineFailure as failure:
        return Check(
            what=what,
            passed=False,
            found=f"{card.version}, hashes right, but it cannot be loaded ({failure.reason}): {failure.text}",
            todo=_mend(settings, card, failure.reason),
        )
    shown = "; a demonstration, and off (demonstration_models)" if _is_off(settings, card.demonstration) else ""
    share, wanted = int(share_of_memory(settings.perform)), card.resources.memory_mb
    todo = ""
    if wanted > share:
        shown += f"; its card lets it hold {wanted} MB, and here it is ended beyond {share} MB"
        todo = "raise perform.memory_mb if it needs that much, or give the card less"
    elif not _is_off(settings, card.demonstration):
        said, todo = _way(settings, card, view)
        shown += f"; {said}" if said else ""
    return Check(what=what, passed=True, found=f"{card.version}, hashes right, loads{shown}", todo=todo)


def _mend(settings: Settings, card: Card, reason: str) -> str:
    """Say what to do about a model that cannot be loaded."""
    from node.workflow.models import store_of

    if reason == "unreachable":
        return f"start the model's server, or correct {card.path}: kserve.url"
    if reason == "no-room":
        return "give the node what is short"
    if card.path.is_relative_to(store_of(settings)):
        return "bring it mended under a version of its own: overread models add; what was added is never edited"
    return f"correct {card.path} or its files; then give the new sha256 there"


def _way(settings: Settings, card: Card, view: View | None) -> tuple[str, str]:
    """Say of a version that reads studies whether it was tested as it runs here, and what to do where it was not."""
    from node.workflow import measuring

    known = view.versions.get((card.name, card.version)) if view is not None else None
    if known is None:
        # What is shipped is live from the first start on, without anybody having looked at it on this machine.
        unmeasured = measuring.is_unmeasured(settings, card)
        return ("which way runs it the fastest here was not measured" if unmeasured else ""), (
            f"overread models test {card.name}@{card.version}" if unmeasured else ""
        )
    if known.state not in (LIVE, CANARY):
        return "", ""
    way, todo = measuring.told(settings, known, card)
    untested = "never tested here" if known.tested_digest != known.digest else ""
    return "; ".join(filter(None, (f"{known.state}, {untested}" if untested else known.state, way))), todo


def _is_off(settings: Settings, demonstration: bool) -> bool:
    return demonstration and not settings.demonstration_models


def why_idle(settings: Settings, registry: Registry) -> Mapping[str, str]:
    """Return for each model that a route names and that reads no study now, why not; nothing before the first start."""
    return _why_idle(settings, registry, _view(settings, registry))


def _view(settings: Settings, registry: Registry) -> View | None:
    """Return the stages as the database has them; None before the first start, and where it cannot be asked."""
    from node.workflow.models import Models, store_of
    from storage.database import Database, schema_versions

    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        return None
    try:
        current, ours = schema_versions(settings.database_url)
        if current != ours:
            return None
        database = Database(settings.database_url)
        try:
            with database.read() as connection:
                return Models(registry, store_of(settings)).view(connection)
        finally:
            database.close()
    except (ImportError, ArgumentError, NoSuchModuleError, SQLAlchemyError):
        # What is wrong with the database is said of the database.
        return None


def _why_idle(settings: Settings, registry: Registry, view: View | None) -> Mapping[str, str]:
    if view is None:
        return {}
    known = {model for model, _ in view.versions}
    # What is not registered yet is so at the next start, and live if it is shipped.
    names = {name for route in settings.route_list for name in route.models if name.partition("@")[0] in known}
    names = {name for name in names if name in registry}
    return {name: why for name in sorted(names) if (why := view.chosen(name, "")[1])}


def check_route(name: str, models: tuple[str, ...], registry: Registry, idle: Mapping[str, str]) -> Check:
    """Check that a route's models are here, and say which of them read no study; ``idle`` is of :func:`why_idle`."""
    absent = [model for model in models if model not in registry]
    if absent:
        there = ", ".join(registry.names()) or "none"
        return Check(
            what=f"route {name}",
            passed=False,
            found=f"no model {absent[0]!r} (there is: {there})",
            todo=f"correct routes.{name}.models, or install the model",
        )
    for model in models:
        if model in idle:
            version = registry.versions(model.partition("@")[0])[-1]
            named = model if "@" in model else f"{model}@{version.version}"
            return Check(
                what=f"route {name}",
                passed=True,
                found=f"{', '.join(models)}; {idle[model]}",
                todo=f"overread models test {named}, then overread models promote {named}",
            )
    return Check(what=f"route {name}", passed=True, found=", ".join(models))


def _ports(settings: Settings) -> Check:
    ports = {"http.port": settings.http.port}
    if settings.dimse.plain:
        ports["dimse.port"] = settings.dimse.port
    if settings.dimse.tls is not None:
        ports["dimse.tls.port"] = settings.dimse.tls.port
    for (one, port), (other, same) in combinations(sorted(ports.items()), 2):
        if port == same:
            found = f"{one} and {other} are both {port}"
            return Check(what="ports", passed=False, found=found, todo="give one of them another port")
    names = {"http.port": "HTTP", "dimse.port": "DICOM", "dimse.tls.port": "DICOM over TLS"}
    return Check(what="ports", passed=True, found=", ".join(f"{names[key]} {ports[key]}" for key in sorted(ports)))


def _certificates(settings: Settings) -> Iterator[Check]:
    """Try the files for TLS as the node would use them, and look at when their certificates end."""
    from node.security.tls import acceptor_context, caller_context

    uses: list[tuple[str, Acceptor | PeerTls, Callable[[], object]]] = []
    if (own := settings.dimse.tls) is not None:
        uses.append(("dimse.tls", own, partial(acceptor_context, own)))
    for name, peer in settings.peers.items():
        if peer.tls is not None:
            uses.append((f"peers.{name}.tls", peer.tls, partial(caller_context, peer.tls)))
    for key, tls, make in uses:
        try:
            make()
        except ConfigurationError as error:
            yield Check(what=key, passed=False, found=str(error), todo="put right files there; a PEM file each")
            continue
        files = [path for path in (tls.certificate, tls.authorities) if path is not None]
        yield _ends(key, [expiry for path in files for expiry in expiries(path)])


def _ends(key: str, found: Sequence[Expiry]) -> Check:
    if not found:
        return Check(what=key, passed=True, found="by the authorities of this machine")
    first = min(found, key=lambda one: one.ends)
    days = first.left().days
    when = f"ends in {days} days" if days >= 0 else "has ended"
    said = f"{first.path} {when}, on {first.ends:%Y-%m-%d}"
    if first.left() < SOON:
        todo = "put a new certificate in its place; new associations use it without a restart"
        return Check(what=key, passed=False, found=said, todo=todo)
    return Check(what=key, passed=True, found=said)


def _database(settings: Settings) -> Check:
    from storage.database import schema_versions

    what = "database"
    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        return Check(what=what, passed=True, found="none yet; 'overread serve' makes it")
    try:
        current, ours = schema_versions(settings.database_url)
    except ImportError as error:
        return Check(
            what=what,
            passed=False,
            found=f"the driver of database.url is not installed ({error.name or error})",
            todo='.venv/bin/pip install -e ".[postgresql]"',
        )
    except (ArgumentError, NoSuchModuleError):
        # Its text may quote the URL, and with it a password.
        return Check(
            what=what,
            passed=False,
            found="database.url is no URL of a database",
            todo="write it as postgresql+psycopg://USER:PASSWORD@HOST/NAME, or leave it out for SQLite",
        )
    except SQLAlchemyError as error:
        # The driver's own first line: SQLAlchemy's text may quote the URL.
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        return Check(what=what, passed=False, found=cause, todo="check database.url, and that the server runs")
    if current == ours:
        return Check(what=what, passed=True, found=f"reachable, schema {current}")
    if current is None:
        return Check(what=what, passed=True, found="reachable, empty; 'overread serve' makes the schema")
    known = _known_versions()
    if current not in known:
        return Check(
            what=what,
            passed=False,
            found=f"schema {current} is of a newer version; this one knows up to {ours}",
            todo="run the version that wrote it, or restore a backup",
        )
    return Check(what=what, passed=True, found=f"schema {current}; 'overread serve' brings it to {ours}")


def _known_versions() -> set[str]:
    from alembic.script import ScriptDirectory

    import storage

    folder = Path(storage.__file__).parent / "migrations"
    return {one.revision for one in ScriptDirectory(str(folder)).walk_revisions()}


def _data_dir(settings: Settings) -> Check:
    folder = settings.data_dir.absolute()
    what = "data_dir"
    if (
        file := next((one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), None)
    ) is not None:
        todo = "name a folder in data_dir, or move that file away"
        return Check(what=what, passed=False, found=f"{file} is a file", todo=todo)
    # What is not there yet is made at start, below the first folder that is.
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".check-"):
            room = Room([Disk("data_dir", there)], settings.storage.marks).readings()[0]
    except OSError as error:
        todo = f"let the user that runs the node write to {there}"
        return Check(what=what, passed=False, found=f"{folder}: {error.strerror or error}", todo=todo)
    inodes = "" if room.inodes is None else f", {room.inodes} inodes"
    found = f"{folder}: writable, {room.free / 1e9:.1f} GB{inodes} free"
    return Check(what=what, passed=not room.words, found=found, todo=room.words)


def _bytes(settings: Settings) -> Iterator[Check]:
    """Say whether files are known to be missing or changed; nothing where there is no database of this version."""
    from storage import damage
    from storage.database import Database, schema_versions

    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        return
    try:
        current, ours = schema_versions(settings.database_url)
        if current != ours:
            return
        database = Database(settings.database_url)
        try:
            with database.read() as connection:
                counts = {kind: count for kind, count in damage.counts(connection).items() if count}
        finally:
            database.close()
    except (SQLAlchemyError, ImportError):
        return  # said of the database already
    if counts:
        yield Check(
            what="bytes",
            passed=False,
            found=", ".join(f"{count} files {kind}" for kind, count in counts.items()),
            todo="'overread status' names them; have their studies sent again, or restore a backup",
        )
    else:
        yield Check(what="bytes", passed=True, found="no file is known to be missing or changed")


def _probes(settings: Settings) -> Iterator[tuple[str, str, Callable[[], tuple[bool, str]]]]:
    """Give each peer: what it is, its key in the configuration, and how to ask whether it is there."""
    for name, peer in settings.peers.items():
        if peer.address is not None:
            yield f"peer {name}", f"peers.{name}", partial(_reach_peer, settings, name)
    for name, destination in settings.destinations.items():
        if destination.kind == "dimse":
            continue  # its peer has been asked
        yield f"destination {name}", f"destinations.{name}", partial(_reach_destination, settings, name)
    for name in settings.notifiers:
        yield f"notifier {name}", f"notifiers.{name}", partial(_reach_receiver, settings, name)


def _reach_peer(settings: Settings, name: str) -> tuple[bool, str]:
    from node.dimse.scu import echo

    peer = settings.peers[name]
    assert peer.address is not None
    found = echo(peer.address, settings.dimse.ae_title, peer.timeout_seconds)
    return found.reached, found.answer


def _reach_destination(settings: Settings, name: str) -> tuple[bool, str]:
    from node.delivery.factory import make_destination

    found = make_destination(name, settings.destinations[name], settings.peers, settings.dimse.ae_title).probe()
    return found.reached, found.answer


def _reach_receiver(settings: Settings, name: str) -> tuple[bool, str]:
    from node.notify.receivers import receiver_for

    trouble = receiver_for(settings.notifiers[name]).probe()
    return trouble is None, trouble or "accepts connections"


def _peer(what: str, key: str, reach: Callable[[], tuple[bool, str]]) -> Check:
    reached, answer = reach()
    todo = "" if reached else f"start it, or correct {key} in the configuration"
    return Check(what=what, passed=reached, found=answer, todo=todo)
