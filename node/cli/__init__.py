"""The command ``overread``: run the node, ask it, act on it, check it, back it up.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once. Exit status 0 is
success, 1 something that was asked for and could not be done, 2 a configuration or a command line that is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from node.cli import models, quarantine
from node.cli.holding import reindex, verify
from node.cli.options import CONFIG, ByOption, ConfigOption, JsonOption
from node.cli.results import results
from node.cli.support import asker, console, explained, load, opened, print_json, progress, show

__all__ = ["app", "main"]

_NOTICE = "Research use only: not a medical device."

app = typer.Typer(
    name="overread",
    help=f"A second reader that plugs into any PACS: DICOM in, models, DICOM SR and SEG and HL7 out. {_NOTICE}",
    epilog=f"Start with: overread check, then overread serve. {_NOTICE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")]
TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A Study Instance UID, a workitem's UID, or what 'overread status' prints: study:1, revision:2, "
        "workitem:5, delivery:12, notification:3, commitment:4, availability:6.",
    ),
]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone (overread status | head): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the edge: known errors become lines, the rest is raised again
        sys.exit(explained(error))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"overread {version('overread')}. {_NOTICE}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(config: ConfigOption = CONFIG) -> None:
    """Run the node until SIGTERM or Ctrl-C.

    Example: **overread serve --config conf/node.yaml**

    The database is made or brought up to date first. A second node on the same data directory or port is refused.
    """
    settings = load(config)
    from node.app import serve as run

    raise typer.Exit(run(settings))


@app.command()
def explain(
    study: StudyArgument,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
    events: Annotated[bool, typer.Option("--events", help="Also every event of the change feed.")] = False,
) -> None:
    """Tell a study's story: received, judged complete, routed, performed, delivered, notified, and why.

    Example: **overread explain 1.2.840.113619.2.55.3.1**
    """
    with opened(config) as (settings, database):
        from node.workflow import story

        with database.read() as connection:
            told = story.tell(connection, study, settings.data_dir.absolute() / "heat-maps")
    if as_json:
        print_json(story.Story, told)
    else:
        from node.cli.terminal import show_story

        show_story(console(), told, events=events)


@app.command()
def studies(
    config: ConfigOption = CONFIG,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the studies that were received last: UID, state, what came, when, and what came of it.

    Examples: **overread studies**, **overread studies --limit 5 --json**
    """
    with opened(config) as (_, database):
        from node.workflow import listing

        with database.read() as connection:
            found = listing.latest(connection, limit)
    if as_json:
        print_json(list[listing.StudyListed], found)
    else:
        from node.cli.terminal import show_studies

        show_studies(console(), found)


@app.command()
def status(config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Show what waits, what is parked and why, and what to do about each.

    Examples: **overread status**, **overread status --json**
    """
    with opened(config) as (_, database):
        from node.workflow import control

        with database.read() as connection:
            found = control.status(connection)
    if as_json:
        print_json(control.Status, found)
    else:
        from node.cli.terminal import show_status

        show_status(console(), found)


@app.command()
def retry(target: TargetArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Try again what is parked; given a study, everything parked of it.

    Examples: **overread retry delivery:12**, **overread retry 1.2.840.113619.2.55.3.1**

    Stored documents and messages go out as the same bytes. A workitem is replaced by a new one that names it.
    """
    from node.workflow import control

    with opened(config) as (_, database):
        show(control.retry(database, target, by=asker(by)))


@app.command()
def cancel(target: TargetArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Stop what is open: a workitem for good; a delivery or notification until it is retried.

    Examples: **overread cancel workitem:5**, **overread cancel 1.2.840.113619.2.55.3.1**
    """
    from node.workflow import control

    with opened(config) as (_, database):
        show(control.cancel(database, target, by=asker(by)))


@app.command()
def complete(study: StudyArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Judge a study now that is still being received, whatever is waited for.

    Example: **overread complete 1.2.840.113619.2.55.3.1**

    What it waits for stands in **overread explain**. What comes afterwards opens the next revision.
    """
    from node.workflow import control

    with opened(config) as (_, database):
        show(control.complete(database, study, by=asker(by)))


@app.command()
def rerun(study: StudyArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Route a study anew, with the routes and models as they are now: new documents, which name their predecessors.

    Example: **overread rerun 1.2.840.113619.2.55.3.1**
    """
    from node.workflow import control

    with opened(config) as (_, database):
        show(control.rerun(database, study, by=asker(by)))


@app.command()
def exclude(
    study: StudyArgument,
    config: ConfigOption = CONFIG,
    series: Annotated[str | None, typer.Option("--series", help="Only this Series Instance UID.")] = None,
    instance: Annotated[str | None, typer.Option("--instance", help="Only this SOP Instance UID.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back in.")] = False,
    by: ByOption = "",
) -> None:
    """Take a study, a series or an instance out of all judging; nothing is deleted.

    Examples: **overread exclude 1.2.3**, **overread exclude 1.2.3 --series 1.2.3.4**, **overread exclude 1.2.3 --undo**

    Two patients in one study: exclude what does not belong, then **overread retry** the study.
    """
    from node.workflow import control

    with opened(config) as (_, database):
        done = control.exclude(
            database,
            study,
            by=asker(by),
            series_instance_uid=series,
            sop_instance_uid=instance,
            undo=undo,
        )
    show(done)


KindArgument = Annotated[str, typer.Argument(metavar="KIND", help="route, model, destination or notifier.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name in the configuration.")]


@app.command()
def pause(kind: KindArgument, name: NameArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Hold a route, model, destination or notifier still, without a restart and across restarts.

    Examples: **overread pause destination pacs**, **overread pause model lung-ct**
    """
    from node.workflow import control

    with opened(config) as (settings, database):
        show(control.pause(database, settings, kind, name, by=asker(by)))


@app.command()
def resume(kind: KindArgument, name: NameArgument, config: ConfigOption = CONFIG, by: ByOption = "") -> None:
    """Let what was paused move again.

    Example: **overread resume destination pacs**
    """
    from node.workflow import control

    with opened(config) as (settings, database):
        show(control.resume(database, settings, kind, name, by=asker(by)))


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of DICOM files, or one file.")],
    to: Annotated[
        str, typer.Option("--to", metavar="AE@HOST:PORT", help="Whom to send to; the default is this node itself.")
    ] = "",
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="The calling AE title.")] = "OVERREAD_SEND",
    config: ConfigOption = CONFIG,
) -> None:
    """Push the DICOM files of a folder to any AE by C-STORE.

    Examples: **overread send scans/**, **overread send scans/ --to ORTHANC@127.0.0.1:4242 --calling CT1**

    Exit status 1 when anything was not stored, with the file and the reason. Files that are no DICOM are left out.
    The studies that were stored are named, for **overread explain**.
    """
    from node.cli.sending import send_folder

    raise typer.Exit(send_folder(folder, to, calling, config))


@app.command()
def check(config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Check configuration, models, database and disk, and reach every peer (C-ECHO, HTTP, MLLP).

    Example: **overread check --config conf/node.yaml**

    Exit status 1 where anything is not in order, 2 where the configuration itself is wrong.
    """
    settings = load(config)
    from node.ops.check import Check
    from node.ops.check import check as look

    found = look(settings)
    if as_json:
        print_json(list[Check], found)
    else:
        from node.cli.terminal import show_checks

        console().print(f"{config}: read and right")
        show_checks(console(), found)
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tar file to make; compressed if it ends with gz.")],
    config: ConfigOption = CONFIG,
) -> None:
    """Copy the data directory into one file, while the node runs or not, and read it back.

    Example: **overread backup /backup/overread-2026-11-21.tar**
    """
    settings = load(config)
    from node.errors import BackupError
    from node.ops.backup import backup as take

    if not file.absolute().parent.is_dir():
        raise BackupError(f"{file.absolute().parent}: no such folder; make it, or name another place for the backup")

    with progress("backup") as step:
        report = take(settings, file, step)
    console().print(
        f"{report.file}: {report.studies} studies, {report.instances} instances, {report.files} files, "
        f"{report.size / 1e6:.1f} MB, {report.seconds:.1f} s; read back and found right",
        soft_wrap=True,
    )
    for word, blobs in (("missing", report.missing), ("damaged", report.damaged)):
        for blob in blobs:
            typer.echo(f"overread: {word} in the data directory: {blob[:2]}/{blob}", err=True)
    raise typer.Exit(1 if report.missing or report.damaged else 0)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'overread backup' made.")],
    config: ConfigOption = CONFIG,
) -> None:
    """Unpack a backup into an empty data directory, checking every byte; the node must not run.

    Example: **overread restore /backup/overread-2026-11-21.tar**

    What was under way when the backup was taken is parked, since it may have been sent after that: look at the PACS
    and the receiver, then **overread retry** what is missing there.
    """
    settings = load(config)
    from node.ops.restore import restore as put_back

    with progress("restore") as step:
        report = put_back(settings, file, step)
    console().print(
        f"{settings.data_dir}: {report.studies} studies, {report.instances} instances as of {report.taken_at}; "
        "every byte is what was backed up",
        soft_wrap=True,
    )
    console().print(
        f"parked, since it may have gone on after the backup: {report.parked_studies} studies, "
        f"{report.parked_workitems} workitems, {report.parked_deliveries} deliveries, "
        f"{report.parked_notifications} notifications, {report.parked_commitments} commitments, "
        f"{report.parked_availability} notifications of availability (overread status)",
        soft_wrap=True,
    )
    for blob in report.missing:
        typer.echo(f"overread: was missing or damaged when the backup was taken: {blob}", err=True)


app.command()(results)
app.command()(verify)
app.command()(reindex)
app.add_typer(quarantine.app)
app.add_typer(models.app)
