"""Commands about everything that is held: reading it again, and making its index anew from the files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from node.cli.options import CONFIG, ConfigOption, JsonOption
from node.cli.quarantine import opened_directory
from node.cli.support import console, load, print_json, progress

__all__ = ["reindex", "verify"]

_UNITS = {"d": "days", "h": "hours"}


def verify(
    config: ConfigOption = CONFIG,
    study: Annotated[
        str | None, typer.Option("--study", metavar="STUDY_UID", help="Only what belongs to this study.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only what came since then: 2026-11-21, 7d or 24h."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run has stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything that is held again and compare it with the SHA-256 taken when it came in.

    Examples: **overread verify**, **overread verify --since 7d**, **overread verify --study 1.2.3 --json**

    Works beside a running node; variants, documents and refused bytes are read too. Exit status 1 where a file is
    missing, changed or unreadable: it stays in **overread status** until it is right again.
    """
    from node.ops.verify import VerifyReport
    from node.ops.verify import verify as read_again

    moment = None if since is None else _moment(since)
    with opened_directory(config) as (_, database, directory), progress("verify") as step:
        report = read_again(
            database,
            directory.blobs,
            directory.refused,
            study_instance_uid=study,
            since=moment,
            resume=resume,
            progress=step,
        )
    if as_json:
        print_json(VerifyReport, report)
    else:
        out = console()
        for one in report.findings:
            of = f"  instance {one.sop_instance_uid} of study {one.study_instance_uid}" if one.sop_instance_uid else ""
            out.print(f"[red]{one.kind}[/] {one.what} {one.blob[:2]}/{one.blob}{of}", soft_wrap=True, highlight=False)
        out.print(
            f"{report.files} files, {report.bytes / 1e6:.1f} MB read in {report.seconds:.1f} s: "
            f"{len(report.findings) or 'none'} wrong",
            soft_wrap=True,
        )
    raise typer.Exit(1 if report.findings else 0)


def reindex(
    config: ConfigOption = CONFIG,
    old: Annotated[
        str | None,
        typer.Option("--old", metavar="URL", help="An older index to ask what no file says; its database's URL."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the index anew from the files alone: when the database is lost or damaged. The node must not run.

    Example: **overread reindex**

    A new database is filled beside the old one and takes its place when it is whole; the old one is kept. Every study
    is historical then: nothing runs on it until **overread rerun STUDY_UID**. What was deleted on purpose stays
    deleted as far as the old database can still be read. With PostgreSQL, name an empty database in database.url.
    """
    from node.ops.reindex import ReindexReport
    from node.ops.reindex import reindex as make_anew
    from node.workflow.models import installed

    settings = load(config)
    device_uids = {card.device_uid for card in installed(settings, routed=False)}
    with progress("reindex") as step:
        report = make_anew(settings, device_uids, old_database_url=old, progress=step)
    if as_json:
        print_json(ReindexReport, report)
        raise typer.Exit(1 if report.found.changed else 0)
    found, out = report.found, console()
    out.print(
        f"{found.instances} instances in {found.studies} studies, all historical; {found.made_here} made by a node, "
        f"{found.variants} variants, {found.quarantined} in quarantine",
        soft_wrap=True,
    )
    if found.deleted:
        out.print(f"{found.deleted} files were deleted on purpose and stay so", soft_wrap=True)
    if found.unreadable:
        out.print(f"{len(found.unreadable)} files are no DICOM; the next start puts them into quarantine")
    if found.changed:
        out.print(
            f"[red]{len(found.changed)} files are not what the old index has of them: send their studies again, or "
            "restore a backup; 'overread status' names them[/]",
            soft_wrap=True,
        )
    for what in found.unknown:
        out.print(f"[yellow]the old database does not say any more: {what}[/]", soft_wrap=True)
    if report.old:
        out.print(f"the old database is kept as {report.old}", soft_wrap=True)
    if found.changed:
        raise typer.Exit(1)


def _moment(written: str) -> datetime:
    if found := re.fullmatch(r"(\d{1,5})([dh])", written):
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        raise typer.BadParameter(
            f"{written!r}: expected a date (2026-11-21), a time (2026-11-21T08:00), days (7d) or hours (24h)",
            param_hint="--since",
        ) from None
    return moment if moment.tzinfo else moment.astimezone()
