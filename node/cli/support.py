"""What the commands share: opening, explaining errors, and printing; everything heavy is imported when it is used."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from node.peers import Address
    from node.settings import Settings
    from node.workflow.control import Done
    from storage.database import Database

__all__ = ["asker", "console", "explained", "load", "opened", "peer_of", "print_json", "progress", "show"]


def peer_of(to: str, config: Path) -> Address:
    """Return whom ``AE@HOST:PORT`` or the name of a peer means; this node itself where nothing is named."""
    from node.peers import Address
    from node.security.tls import as_own_peer

    if to and "@" not in to:
        peer = load(config).peers.get(to)
        if peer is None or peer.address is None:
            raise typer.BadParameter(f"{to!r}: no peer of that name has a host and port to call", param_hint="--to")
        return peer.address
    if to:
        ae_title, at, address = to.rpartition("@")
        host, colon, port = address.rpartition(":")
        if not (at and colon and 1 <= len(ae_title) <= 16 and host and port.isdecimal() and 0 < int(port) < 65536):
            expected = "expected AE@HOST:PORT, as in ORTHANC@127.0.0.1:4242, or the name of a peer"
            raise typer.BadParameter(f"{to!r}: {expected}", param_hint="--to")
        return Address(ae_title, host.strip("[]"), int(port))
    dimse = load(config).dimse
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to call where the node listens everywhere
    if dimse.plain or dimse.tls is None:
        return Address(dimse.ae_title, everywhere.get(dimse.bind, dimse.bind), dimse.port)
    host = dimse.tls.bind or dimse.bind
    return Address(dimse.ae_title, everywhere.get(host, host), dimse.tls.port, as_own_peer(dimse.tls))


def asker(by: str) -> str:
    """Return who asks, for the audit trail: as told, else the login name, else the number of a user without one."""
    try:
        return by or getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def load(config: Path) -> Settings:
    """Read and check the configuration."""
    from node.settings import load_settings

    return load_settings(config)


@contextmanager
def opened(config: Path) -> Iterator[tuple[Settings, Database]]:
    """Open the node's database beside it, whether it runs or not."""
    settings = load(config)
    from sqlalchemy.exc import ArgumentError, OperationalError

    from node.errors import ConfigurationError, NodeError
    from storage.database import Database, schema_versions

    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        raise NodeError(
            f"{settings.data_dir.absolute()} holds no database: no node has run with this configuration yet"
        )
    try:
        current, ours = schema_versions(settings.database_url)
    except OperationalError as error:
        raise NodeError(f"the database cannot be reached: {str(error.orig).splitlines()[0]}") from None
    except (ArgumentError, ImportError):
        raise ConfigurationError("database.url cannot be used; 'overread check' says why and what to do") from None
    if current != ours:
        raise NodeError(f"the database has schema version {current}, this command {ours}; start the node to migrate it")
    database = Database(settings.database_url)
    try:
        yield settings, database
    finally:
        database.close()


def console() -> Console:
    """Return the terminal; where it is none, lines are wide enough for UIDs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def show(done: Done) -> None:
    """Print what an action came to."""
    from node.cli.terminal import show_done

    show_done(console(), done)


def print_json(kind: Any, value: Any) -> None:
    """Print a value of a known type as JSON."""
    from pydantic import TypeAdapter

    typer.echo(json.dumps(TypeAdapter(kind).dump_python(value, mode="json"), indent=2, ensure_ascii=False))


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """Show a bar; gives a function of (done, total), to which the name of what is being done may be added."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what=title: bar.update(task, completed=done, total=total, description=what)


def explained(error: Exception) -> int:
    """Print an error that was raised on purpose and return the exit status; raise any other again."""
    from inference.errors import CardError
    from node.errors import ConfigurationError, NodeError
    from storage.errors import StorageError

    if isinstance(error, (ConfigurationError, CardError)):
        typer.echo(str(error), err=True)
        return 2
    if isinstance(error, (NodeError, StorageError)):
        typer.echo(f"overread: {error}", err=True)
        return 1
    raise error
