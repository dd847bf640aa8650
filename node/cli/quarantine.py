"""``overread quarantine``: what was refused, and what is to become of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import CONFIG, ByOption, ConfigOption, JsonOption
from node.cli.support import asker, console, opened, print_json

if TYPE_CHECKING:
    from node.ops.directory import DataDirectory
    from node.settings import Settings
    from storage.database import Database
    from storage.records import Quarantined

__all__ = ["app"]

app = typer.Typer(
    name="quarantine",
    help="What was refused: list it, look at it, offer it to the intake again, or delete it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

NumberArgument = Annotated[int, typer.Argument(metavar="ID", help="The number that 'overread quarantine list' shows.")]
NumbersArgument = Annotated[
    list[int] | None, typer.Argument(metavar="ID...", help="Numbers that 'overread quarantine list' shows.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Everything that is in quarantine.")]


@app.command(name="list")
def list_(
    config: ConfigOption = CONFIG,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 100,
    after: Annotated[int, typer.Option("--after", min=0, help="Only numbers above this one.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List what was refused, oldest first: number, sender, time, size, reason.

    Examples: **overread quarantine list**, **overread quarantine list --after 120 --json**
    """
    from storage import quarantine
    from storage.records import Quarantined

    with opened(config) as (_, database), database.read() as connection:
        found = quarantine.listed(connection, limit=limit, after=after)
    if as_json:
        print_json(list[Quarantined], found)
    elif found:
        from node.cli.terminal import show_refused

        show_refused(console(), found, "in quarantine")
    else:
        console().print("nothing is in quarantine")


@app.command()
def show(
    number: NumberArgument,
    config: ConfigOption = CONFIG,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Also copy the bytes, as they came, to a new file.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many elements at most.")] = 400,
) -> None:
    """Show why something was refused, and what can be read of it. This may name a patient.

    Examples: **overread quarantine show 12**, **overread quarantine show 12 --to refused.dcm**
    """
    from node.errors import NodeError
    from node.ops.dump import dump
    from storage import quarantine

    with opened_directory(config) as (_, database, directory):
        with database.read() as connection:
            item = quarantine.get(connection, number)
        path = directory.refused.path(item.blob)
        out = console()
        facts = (
            ("reason", item.reason),
            ("from", item.calling_ae_title or "unknown"),
            ("when", item.received_at.astimezone().isoformat(timespec="seconds")),
            ("bytes", str(item.size)),
            ("SHA-256", item.digest or "not taken"),
            ("file", str(path)),
        )
        for name, text in facts:
            out.print(f"{name:<8}{text}", soft_wrap=True, highlight=False, markup=False)
        if not path.is_file():
            raise NodeError(f"{path}: the bytes are gone")
        if to is not None:
            _copy(path, to)
            out.print(f"{'copy':<8}{to}", soft_wrap=True, highlight=False, markup=False)
        for line in dump(path, lines):
            out.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def retry(
    numbers: NumbersArgument = None,
    config: ConfigOption = CONFIG,
    everything: AllOption = False,
    as_it_is: Annotated[
        bool, typer.Option("--as-it-is", help="Also take an object that is another than its sender announced.")
    ] = False,
    by: ByOption = "",
) -> None:
    """Offer refused bytes to the same intake again: after an upgrade, or a change of the rules.

    Examples: **overread quarantine retry 12**, **overread quarantine retry --all**

    What is taken in leaves the quarantine; what is refused again stays, with the reason. Exit status 1 where any is.
    """
    from storage import quarantine
    from storage.errors import NotDicom, Unknown
    from storage.intake import Archive
    from storage.models import KnownDevices

    out, left = console(), 0
    with opened_directory(config) as (_, database, directory):
        archive = Archive(database, directory.blobs, directory.refused, KnownDevices(database))
        try:
            for item in _asked_for(database, numbers, everything):
                try:
                    receipt = quarantine.retry(
                        database,
                        archive,
                        directory.refused,
                        directory.incoming,
                        item,
                        by=asker(by),
                        as_it_is=as_it_is,
                    )
                except (NotDicom, Unknown) as error:
                    left += 1
                    out.print(f"[yellow]left[/]  {item.id}: {error}", soft_wrap=True)
                    continue
                out.print(f"[green]taken[/] {item.id}: {receipt.outcome}, study {receipt.study_instance_uid}")
        finally:
            archive.close()
    raise typer.Exit(1 if left else 0)


@app.command()
def drop(
    numbers: NumbersArgument = None,
    config: ConfigOption = CONFIG,
    everything: AllOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    by: ByOption = "",
) -> None:
    """Delete refused bytes for good; who asked for it stays in the change feed.

    Examples: **overread quarantine drop 12**, **overread quarantine drop --all --yes**
    """
    from storage import quarantine

    with opened_directory(config) as (_, database, directory):
        items = list(_asked_for(database, numbers, everything))
        if items and not yes:
            typer.confirm(f"delete the bytes of {len(items)} refused objects for good?", abort=True)
        for item in items:
            quarantine.drop(database, directory.refused, item, by=asker(by))
            console().print(f"[green]deleted[/] {item.id}: {item.size} bytes, refused: {item.reason}", soft_wrap=True)


@contextmanager
def opened_directory(config: Path) -> Iterator[tuple[Settings, Database, DataDirectory]]:
    """Open the node's database and its folders, whether it runs or not."""
    from node.ops.directory import DataDirectory

    with opened(config) as (settings, database):
        yield settings, database, DataDirectory(settings.data_dir.absolute())


def _asked_for(database: Database, numbers: list[int] | None, everything: bool) -> Iterator[Quarantined]:
    from storage import quarantine

    if bool(numbers) == everything:
        raise typer.BadParameter("give numbers, or --all")
    if numbers:
        for number in dict.fromkeys(numbers):
            with database.read() as connection:
                item = quarantine.get(connection, number)
            yield item
        return
    after = 0
    while True:
        with database.read() as connection:
            page = quarantine.listed(connection, after=after)
        if not page:
            return
        yield from page
        after = page[-1].id


def _copy(path: Path, to: Path) -> None:
    from node.errors import NodeError

    try:
        # It may hold a patient's data: for its owner only, from the first byte on.
        to.touch(mode=0o600, exist_ok=False)
        shutil.copyfile(path, to)
    except FileExistsError:
        raise NodeError(f"{to} is there already; name another file") from None
    except OSError as error:
        raise NodeError(f"{to}: cannot be written: {error.strerror}") from None
