"""``overread models add bundle`` and ``add meshnet``: models that others have made, as folders with a card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import CONFIG, ByOption, ConfigOption
from node.cli.support import asker, console, progress, show

if TYPE_CHECKING:
    from inference.bring.bundle import Described
    from inference.card import Card

__all__ = ["CheckOption", "add_bundle", "add_meshnet", "as_typed"]

NameOption = Annotated[str, typer.Option("--name", help="What the model is called here; made from its own name else.")]
VersionOption = Annotated[
    str, typer.Option("--version", help="Its version here, where what it says of itself is taken already.")
]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Load it once, in a process of its own, before it is kept.")
]
CodeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--code",
        metavar="LABEL=VALUE,SCHEME,MEANING",
        help="The code of a label, such as **--code spleen=78961009,SCT,Spleen**; may be given several times.",
    ),
]


def add_bundle(
    source: Annotated[Path, typer.Argument(help="The bundle's folder, or a zip archive of it.", exists=True)],
    name: NameOption = "",
    code: CodeOption = None,
    modality: Annotated[str, typer.Option(help="Where the metadata name none: CT, MR or PT.")] = "",
    version: VersionOption = "",
    check: CheckOption = True,
    by: ByOption = "",
    config: ConfigOption = CONFIG,
) -> None:
    """Add a MONAI bundle that segments volumes.

    Its files are copied (links that lead out of the folder are refused), its card is made from its metadata.json, and
    the digest of each file is recorded. Labels whose names are no concept of DICOM's own (PS3.16 CID 7151) have an open
    code until **--code** says one; a model with open codes is kept, but does not run on patients.

    A bundle is code: its configuration and its scripts run as the node's user, in an engine's process. Add only what
    you trust.

    Examples: **overread models add bundle spleen_ct_segmentation**, **overread models add bundle ball.zip --name ball
    --code "ball=52988006,SCT,Lesion"**
    """
    from inference.bring.archive import take_in
    from inference.bring.bundle import describe_bundle

    with _room() as folder, as_typed(source, folder):
        with progress("copy") as step:
            files = take_in(source, folder / "bundle", progress=step)
        copy = folder / "bundle"
        with as_typed(source, copy):
            described = describe_bundle(
                copy, files, folder="bundle", name=name or None, codes=code or [], modality=modality or None
            ).called(version)
        names = [f"bundle/{file}" for file in files]
        _finish(folder, described, names, config=config, by=by, source=source, check=check)


def add_meshnet(
    source: Annotated[Path, typer.Argument(help="The folder of model.json and its weights.", exists=True)],
    name: NameOption = "",
    labels: Annotated[
        Path | None, typer.Option(help="The JSON file that names the classes, where none beside the model does.")
    ] = None,
    code: CodeOption = None,
    scaling: Annotated[
        str,
        typer.Option(help="How values come to 0..1: **auto**, **minmax** or **quantile** (5th to 95th percentile)."),
    ] = "auto",
    version: VersionOption = "",
    check: CheckOption = True,
    by: ByOption = "",
    config: ConfigOption = CONFIG,
) -> None:
    """Convert a trained MeshNet for T1 MR of the head (TensorFlow.js layers, as brainchop has them) and add it.

    Examples: **overread models add meshnet model5_gw_ae**, **overread models add meshnet model11_gw_ae --labels
    ../model5_gw_ae/colormap3.json**
    """
    import re

    from inference.bring.meshnet import MODEL_FILE, convert_meshnet

    if scaling not in ("auto", "minmax", "quantile"):
        raise typer.BadParameter("expected auto, minmax or quantile", param_hint="--scaling")
    called = name or re.sub(r"[^a-z0-9]+", "-", f"meshnet-{source.resolve().name}".lower()).strip("-")[:62]
    with _room() as folder, as_typed(source, folder):
        described = convert_meshnet(
            source,
            folder,
            name=called,
            labels=labels,
            codes=code or [],
            scaling=scaling,  # type: ignore[arg-type]
        ).called(version)
        _finish(folder, described, [MODEL_FILE], config=config, by=by, source=source, check=check)


@contextmanager
def _room() -> Iterator[Path]:
    """Give a folder to make the model in, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="overread-bringing-") as held:
        folder = Path(held) / "model"
        folder.mkdir()
        yield folder


@contextmanager
def as_typed(source: Path | str, copy: Path) -> Iterator[None]:
    """Name in an error what was given, and not the copy of it that is gone afterwards."""
    from inference.errors import CardError

    try:
        yield
    except CardError as problem:
        text = str(problem)
        for place in (copy.resolve(), copy):
            text = text.replace(str(place), str(source))
        raise CardError(text) from problem


def _finish(
    folder: Path, described: Described, files: list[str], *, config: Path, by: str, source: Path, check: bool
) -> None:
    """Write the card, try the model, and add it as any other: the same checks, the same history."""
    from inference.bring.folder import write_card
    from node.cli.models import at_work
    from node.workflow import arriving

    with progress("digests") as step:
        card = write_card(folder, described.values, files, progress=step)
    if check:
        _try(card, source)
    with at_work(config) as (settings, database), progress("add") as step:
        done = arriving.add(settings, database, folder, by=asker(by), why=f"from {source.name}", progress=step)
    _tell(card, described)
    if card.engine == "monai-bundle" and done.changed:
        # The metadata of a bundle say neither, and the digest holds both.
        done = replace(done, hint=f"limits and prefer of its inputs, in a version of its own; {done.hint}")
    show(done)


def _try(card: Card, source: Path) -> None:
    """Load the model once where the node would: what cannot be loaded is told now, not at the first study."""
    from inference.errors import CardError
    from inference.trial import why_not_loaded

    problem = why_not_loaded(card)
    if problem:
        raise CardError(refusal(card, source, problem))


def refusal(card: Card, source: Path, problem: str) -> str:
    """Return why a model was not added, by what was typed: the folder that it was made in is gone by then."""
    problem = problem.replace(f"{card.path}: ", "").replace(f"{card.directory}/", "")
    hint = " (--no-check adds it as it is)" if "not installed here" in problem else ""
    return f"{source}: {card.name} {card.version} cannot be loaded, and was not added: {problem}{hint}"


def _tell(card: Card, described: Described) -> None:
    """Say what the card was made of, and what is left for an engineer to say."""
    out = console()
    for line in described.remarks:
        out.print(line, highlight=False, markup=False)
    for output in card.outputs:
        if output.name not in described.open_codes:
            code = output.code
            out.print(f"{output.name}: {code.value}, {code.scheme}, {code.meaning}", highlight=False, markup=False)
    if described.open_codes:
        out.print(
            "These codes are open. Until they are said, the model runs on no patient; add it anew with", highlight=False
        )
        for label in described.open_codes:
            out.print(f'  --code "{label}=VALUE,SCHEME,MEANING"', highlight=False, markup=False)
