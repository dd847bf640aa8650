"""``overread models``: what models there are, which of their versions run, and changing that without a restart."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from node.cli.bringing import add_bundle, add_meshnet
from node.cli.options import CONFIG, ConfigOption, JsonOption
from node.cli.support import console, load

__all__ = ["add", "app"]


class _CardByDefault(TyperGroup):
    """``add DIR`` means ``add card DIR``: what is no other way of adding is the folder or the archive itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command where only its argument is given."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["card", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="models",
    help="Models and their versions: list, look at, add, verify, test, promote, turn back, compare, retire.",
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


@app.command("list")
def list_models(config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List the models with their versions.

    Examples: **overread models list**, **overread models list --json**
    """
    import json

    from node.workflow.models import installed

    cards = installed(load(config))
    if as_json:
        typer.echo(json.dumps([{"model": one.name, "version": one.version, "digest": one.digest} for one in cards]))
        return
    for one in cards:
        console().print(f"{one.name}@{one.version}  {one.task}, {one.engine}  {one.title}", highlight=False)
