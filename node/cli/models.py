"""``overread models``: what models there are, which of their versions run, and changing that without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from node.cli.bringing import CheckOption, add_bundle, add_meshnet
from node.cli.lowering import quantise, tune
from node.cli.options import CONFIG, ByOption, ConfigOption, JsonOption
from node.cli.pulling import pull
from node.cli.support import asker, console, load, opened, print_json, progress, show

if TYPE_CHECKING:
    from node.settings import Settings
    from storage.database import Database

__all__ = ["add", "app", "at_work"]


class _CardByDefault(TyperGroup):
    """``add DIR`` means ``add card DIR``: what is no other way of adding is the folder or the archive itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command where only its argument is given."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["card", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="models",
    help="Models and their versions: list, look at, add, verify, test, promote, turn back, compare, retire, remove. "
    "A version is named as lung-ct@1.0.0; what changes is seen by the running node at once, and stays in its history.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

#: Each way of bringing a model in is a command here: ``add.command("bundle")(function)``.
add = typer.Typer(
    name="add",
    cls=_CardByDefault,
    help="Add a version of a model: from a folder or an archive with its card, or from what another tool has made.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
add.command("bundle")(add_bundle)
add.command("meshnet")(add_meshnet)
app.add_typer(add)
app.command()(quantise)
app.command()(tune)
app.command("pull")(pull)

VersionArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL@VERSION",
        help="As 'overread models list' shows it; the number may be left away where there is only one.",
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, without a version.")]
WhyOption = Annotated[str, typer.Option("--why", help="Why, for the history.")]


@app.command("list")
def list_models(
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
    removed: Annotated[bool, typer.Option("--all", help="Also versions that were removed.")] = False,
) -> None:
    """List every version of every model: its stage, its test, what runs it here, and why it reads nothing if so.

    Examples: **overread models list**, **overread models list --json**
    """
    from node.cli.modeltables import show_versions
    from node.workflow import overview

    with at_work(config) as (settings, database):
        found = overview.versions(settings, database, removed=removed)
    if as_json:
        print_json(list[overview.VersionShown], found)
    else:
        show_versions(console(), found)


@app.command("show")
def show_model(version: VersionArgument, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Show what one version is: its card, its stage, its last test and its history.

    Examples: **overread models show lung-ct@1.0.0**, **overread models show lung-ct --json**
    """
    from node.cli.modeltables import show_version
    from node.workflow import overview

    with at_work(config) as (settings, database):
        found = overview.version(settings, database, version)
    if as_json:
        print_json(overview.VersionTold, found)
    else:
        show_version(console(), found)


@add.command("card")
def add_card(
    source: Annotated[Path, typer.Argument(metavar="DIR|ZIP", help="A folder or a zip archive with card.yaml in it.")],
    config: ConfigOption = CONFIG,
    check: CheckOption = True,
    by: ByOption = "",
    why: WhyOption = "",
) -> None:
    """Add a version from a folder or a zip archive with its card.yaml: a candidate, until it is promoted.

    Examples: **overread models add ./lung-ct-2**, **overread models add lung-ct-2.0.0.zip**

    The files are copied into the data directory. Other content under a version that is there already is refused, except
    for words and samples, which take the place of the old ones: what decides its answers has to be the same.
    """
    from node.workflow import arriving

    with at_work(config) as (settings, database), progress("add") as step:
        done = arriving.add(settings, database, source, by=asker(by), why=why, check=check, progress=step)
    show(done)


@app.command()
def verify(
    version: Annotated[
        str | None, typer.Argument(metavar="[MODEL[@VERSION]]", help="Only this model, or this version.")
    ] = None,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of every version again and compare with what was registered. Exit status 1 where any differs.

    Examples: **overread models verify**, **overread models verify lung-ct**
    """
    from node.cli.modeltables import show_verified
    from node.workflow import governing

    with at_work(config) as (settings, database):
        found = list(governing.verify(settings, database, version))
    if as_json:
        print_json(list[governing.Verified], found)
    else:
        show_verified(console(), found)
    raise typer.Exit(0 if all(one.passed for one in found) else 1)


@app.command("test")
def run_test(
    version: Annotated[
        str,
        typer.Argument(
            metavar="MODEL@VERSION",
            help="As 'overread models list' shows it; with --show also the folder of a card that was not added yet.",
        ),
    ],
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune", help="Measure the ways to run it first, where that was not done on this machine."
        ),
    ] = True,
    shown: Annotated[
        bool, typer.Option("--show", help="Say what the model says of each sample, as a card has it; keep nothing.")
    ] = False,
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="DIR", help="With --show: write the mask of each sample here.")
    ] = None,
    by: ByOption = "",
) -> None:
    """Run the card's own sample cases in a process of the engine, and keep what came of it.

    Examples: **overread models test lung-ct@2.0.0**, **overread models test ./my-model --show --masks
    my-model/samples**. Exit status 1 on a mismatch.

    Only what has passed may be promoted. The result holds for the bytes that were tested, and for the way in which
    they ran: which way is the fastest on this machine is measured first, on the images of the samples, and the samples
    run in the way that the node will take. A way under which they do not come out as expected is not taken.
    """
    from node.cli.modeltables import show_test
    from node.workflow import governing

    if shown:
        _show_samples(version, masks, config)
        return
    with at_work(config) as (settings, database), progress("test") as step:
        report = governing.run_test(settings, database, version, by=asker(by), measure=tune, progress=step)
    if as_json:
        print_json(dict[str, Any], report)
    else:
        show_test(console(), report)
    raise typer.Exit(0 if report["passed"] else 1)


def _show_samples(model: str, masks: Path | None, config: Path) -> None:
    import yaml

    from inference.expected import expected_of
    from node.cli.lowering import card_named

    card = card_named(model, config)
    if not card.samples:
        raise typer.BadParameter(f"{card.path} has no samples: name their folders there first", param_hint="--show")
    with progress("test") as step:
        said = expected_of(card, masks=masks, progress=step)
    typer.echo(yaml.safe_dump({"samples": said}, sort_keys=False, width=118, allow_unicode=True), nl=False)


@app.command()
def promote(
    version: VersionArgument,
    config: ConfigOption = CONFIG,
    stage: Annotated[
        Literal["live", "canary", "shadow", "candidate"],
        typer.Option(
            "--stage",
            help="live: reads every study. canary: a share of them. shadow: reads every study, and "
            "nothing leaves. candidate: reads none.",
        ),
    ] = "live",
    share: Annotated[
        float | None,
        typer.Option("--share", min=0.01, max=99.99, help="Of a canary: how many studies of a hundred it reads."),
    ] = None,
    untested: Annotated[
        bool, typer.Option("--untested", help="Answer for a card that has no samples; needs --why.")
    ] = False,
    by: ByOption = "",
    why: WhyOption = "",
) -> None:
    """Set the stage of a version, without a restart: live by default. What was live before becomes a candidate.

    Examples: **overread models promote lung-ct@2.0.0 --stage shadow**, **overread models promote lung-ct@2.0.0 --stage
    canary --share 10**, **overread models promote lung-ct@2.0.0 --why "agrees with 1.0.0 on 200 studies"**

    Refused where the version has not passed **overread models test**, its bytes have changed, or a report.json beside
    its card says that it has not passed.
    """
    from node.workflow import governing

    if (stage == "canary") != (share is not None):
        raise typer.BadParameter("a canary has a share of the studies, and only a canary", param_hint="--share")
    with at_work(config) as (settings, database):
        show(
            governing.promote(
                settings,
                database,
                version,
                stage,
                by=asker(by),
                why=why,
                share=None if share is None else share / 100,
                untested=untested,
            )
        )


@app.command()
def rollback(
    model: ModelArgument,
    config: ConfigOption = CONFIG,
    to: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="Go back to this version.")] = None,
    retired: Annotated[
        bool, typer.Option("--retire", help="Also retire what is turned back: what is scheduled for it is canceled.")
    ] = False,
    by: ByOption = "",
    why: WhyOption = "",
) -> None:
    """Turn a model back by one step, without a restart: a canary ends, else the version before is live again.

    Examples: **overread models rollback lung-ct**, **overread models rollback lung-ct --to 1.0.0 --why "too slow"**

    What is scheduled already for the version that is turned back is still performed by it, unless it is retired.
    """
    from node.workflow import governing

    with at_work(config) as (settings, database):
        show(governing.rollback(settings, database, model, by=asker(by), why=why, to=to, retired=retired))


@app.command()
def retire(version: VersionArgument, config: ConfigOption = CONFIG, by: ByOption = "", why: WhyOption = "") -> None:
    """Take a version out: it runs nowhere, and what is scheduled for it is canceled, with the reason.

    Example: **overread models retire lung-ct@1.0.0 --why "replaced by 2.0.0"**

    Its files, its results and its Device UID stay known. **overread models promote --stage candidate** takes it back.
    """
    from node.workflow import governing

    with at_work(config) as (settings, database):
        show(governing.retire(settings, database, version, by=asker(by), why=why))


@app.command()
def remove(version: VersionArgument, config: ConfigOption = CONFIG, by: ByOption = "", why: WhyOption = "") -> None:
    """Take away the files of a version that was added and that nothing needs: a candidate, or one that is retired.

    Example: **overread models remove lung-ct@2.0.0-rc1 --why "a trial"**

    Its number stays taken, and its Device UID and history stay known. Adding the same bytes again brings it back as a
    candidate. Refused where it is live, a canary or a shadow, a route needs it, or a rollback would go back to it.
    """
    from node.workflow import leaving

    with at_work(config) as (settings, database):
        show(leaving.remove(settings, database, version, by=asker(by), why=why))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="MODEL@VERSION")],
    b: Annotated[str, typer.Argument(metavar="B", help="MODEL@VERSION")],
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions over the studies on which both have run: agreement, differences, Dice.

    Example: **overread models compare lung-ct@1.0.0 lung-ct@2.0.0**

    A shadow runs on the same studies as the live version: promote to **--stage shadow** first, and compare later.
    """
    from node.cli.modeltables import show_comparison
    from node.ops.directory import DataDirectory
    from node.workflow import comparing, governing

    with at_work(config) as (settings, database), progress("compare") as step:
        directory = DataDirectory(settings.data_dir.absolute())
        first, second = (governing.version_named(database, one) for one in (a, b))
        found = comparing.compare(database, directory.blobs, directory.root / "shadows", first, second, step)
    if as_json:
        print_json(comparing.Comparison, found)
    else:
        show_comparison(console(), found)


@app.command()
def history(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.")] = None,
    config: ConfigOption = CONFIG,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show every change of versions and stages, the newest first: who, when, from what to what, and why.

    Examples: **overread models history**, **overread models history lung-ct --json**
    """
    from node.cli.modeltables import show_history
    from storage import models
    from storage.records import ModelChange

    with at_work(config) as (_, database), database.read() as connection:
        found = models.history(connection, model, limit)
    if as_json:
        print_json(list[ModelChange], found)
    else:
        show_history(console(), found)


@contextmanager
def at_work(config: Path) -> Iterator[tuple[Settings, Database]]:
    """Open the node's database, with what is on disk registered; a node that has never run is made ready first."""
    settings = load(config)
    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        from node.app import prepare_database

        prepare_database(settings)
    with opened(config) as (_, database):
        yield settings, database
