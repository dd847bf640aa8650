"""``overread results``: what is kept so that the same input is not computed again."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.options import CONFIG, ConfigOption, JsonOption
from node.cli.quarantine import opened_directory
from node.cli.support import console, print_json

__all__ = ["results"]


def results(
    config: ConfigOption = CONFIG,
    empty: Annotated[bool, typer.Option("--empty", help="Forget them all; no work is lost by it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how many results are kept for the next time that the same images are read by the same model, or forget them.

    Examples: **overread results**, **overread results --empty**

    Works beside a running node. What was forgotten is computed anew when it is asked for; documents that were made
    stay as they are.
    """
    from node.workflow.way import results_folder
    from storage import results as kept

    with opened_directory(config) as (settings, database, _):
        if empty:
            totals = kept.empty(database, results_folder(settings))
        else:
            with database.read() as connection:
                totals = kept.totals(connection)
    if as_json:
        print_json(kept.Totals, totals)
        return
    what = "forgotten" if empty else f"kept, of at most {settings.perform.results_mb:g} MB"
    console().print(f"{totals.results} results, {totals.size / 2**20:.1f} MB {what}", highlight=False)
