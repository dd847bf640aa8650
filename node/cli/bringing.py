"""``overread models add bundle`` and ``add meshnet``: models that others have made, as folders with a card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.options import CONFIG, ConfigOption
from node.cli.support import console, load, progress

if TYPE_CHECKING:
    from inference.bring.bundle import Described
    from inference.card import Card

__all__ = ["add_bundle", "add_meshnet"]

NameOption = Annotated[str, typer.Option("--name", help="What the model is called here; made from its own name else.")]
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
    check: CheckOption = True,
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

    with _room(config) as (store, folder):
        with progress("copy") as step:
            files = take_in(source, folder / "bundle", progress=step)
        described = describe_bundle(
            folder / "bundle", files, folder="bundle", name=name or None, codes=code or [], modality=modality or None
        )
        _finish(store, folder, described, [f"bundle/{file}" for file in files], check=check)


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
    check: CheckOption = True,
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
    with _room(config) as (store, folder):
        described = convert_meshnet(
            source,
            folder,
            name=called,
            labels=labels,
            codes=code or [],
            scaling=scaling,  # type: ignore[arg-type]
        )
        _finish(store, folder, described, [MODEL_FILE], check=check)


@contextmanager
def _room(config: Path) -> Iterator[tuple[Path, Path]]:
    """Give the folder of added versions, and one within it that is no model yet and is gone afterwards."""
    from node.workflow.models import store_of

    store = store_of(load(config))
    store.mkdir(parents=True, exist_ok=True)
    held = Path(tempfile.mkdtemp(prefix=".bringing-", dir=store))
    try:
        (held / "model").mkdir()
        yield store, held / "model"
    finally:
        shutil.rmtree(held, ignore_errors=True)


def _finish(store: Path, folder: Path, described: Described, files: list[str], *, check: bool) -> None:
    from inference.bring.folder import write_card

    with progress("digests") as step:
        card = write_card(folder, described.values, files, progress=step)
    if check:
        _try(card)
    _tell(_keep(store, folder, card), card, described)


def _try(card: Card) -> None:
    """Load the model once where the node would, as what cannot be loaded is told now."""
    from inference.errors import CardError, EngineFailure
    from inference.host import EngineHost

    try:
        with EngineHost(card) as host:
            host.load()
    except EngineFailure as failure:
        raise CardError(f"{card.name} {card.version} cannot be loaded, and was not added: {failure.text}") from failure


def _keep(store: Path, folder: Path, card: Card) -> Path:
    """Make it a version beside the others; it becomes a candidate, which runs on no patient until it is promoted."""
    from inference.errors import CardError
    from inference.registry import version_folder

    place = version_folder(store, card.name, card.version)
    if place.exists():
        raise CardError(f"{place}: this version is there already; say another name by --name")
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)
    return place


def _tell(place: Path, card: Card, described: Described) -> None:
    out = console()
    what = f"{len(card.outputs)} labels, {len(card.files)} files"
    out.print(f"{card.name} {card.version}: {what}, in {place}", highlight=False)
    for line in described.remarks:
        out.print(f"  {line}", highlight=False, markup=False)
    for output in card.outputs:
        if output.name not in described.open_codes:
            code = output.code
            out.print(f"  {output.name}: {code.value}, {code.scheme}, {code.meaning}", highlight=False, markup=False)
    if described.open_codes:
        out.print("Open codes: say them in the card, or add the model anew with", highlight=False)
        for label in described.open_codes:
            out.print(f'  --code "{label}=VALUE,SCHEME,MEANING"', highlight=False, markup=False)
        out.print("Until then the model does not run on patients.", highlight=False)
