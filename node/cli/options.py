"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["CONFIG", "ByOption", "ConfigOption", "JsonOption"]

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="OVERREAD_CONFIG", help="The configuration file.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ByOption = Annotated[
    str, typer.Option("--by", help="Who asks, for the audit trail; the default is the login name.", show_default=False)
]
CONFIG: Final = Path("conf/node.yaml")
