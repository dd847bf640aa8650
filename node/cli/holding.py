"""Commands about everything that is held: reading it again, and making its index anew from the files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from node.cli.options import CONFIG, ConfigOption, JsonOption
from node.cli.quarantine import opened_directory
from node.cli.support import console, print_json, progress

__all__ = ["verify"]

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
