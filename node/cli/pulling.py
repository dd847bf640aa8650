"""``overread models pull``: a model by its name in a library that others keep."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.bringing import as_typed
from node.cli.options import CONFIG, ByOption, ConfigOption
from node.cli.support import asker, console, load, progress, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["pull"]

_LIBRARY = "torchxrayvision"


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="LIBRARY:MODEL", help="As **torchxrayvision:densenet121-res224-all**; without a model, all names."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The released file, where this machine has no internet."),
    ] = None,
    mirror: Annotated[
        str, typer.Option(metavar="URL", help="Fetch the file from this place instead of the library's own.")
    ] = "",
    name: Annotated[str, typer.Option(help="What the model is called here; the library's name else.")] = "",
    native: Annotated[
        bool, typer.Option("--native", help="Keep it for torch, which must then be installed where it runs.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Real radiographs (DICOM) to compare on too: a file or a folder.", exists=True),
    ] = None,
    config: ConfigOption = CONFIG,
    by: ByOption = "",
) -> None:
    """Fetch a model of torchxrayvision, make ONNX of it, and add it as a candidate.

    Examples: **overread models pull torchxrayvision:densenet121-res224-all**, **overread models pull
    torchxrayvision:densenet121-res224-rsna --from kaggle-densenet121.pt --images chests/**

    The released files are pickled: they are read in a process of their own that can do nothing but give tensors back.
    What is made of them is compared with the library, and added only if no probability differs by more than 0.0001.
    Needs **.venv/bin/pip install -e '.[torch,convert]'** here; what it makes runs without.
    """
    from inference.bring.torchxrayvision import bring, obtain
    from inference.errors import CardError, EngineFailure
    from node.workflow import arriving

    library, _, wanted_name = model.partition(":")
    if library != _LIBRARY:
        raise typer.BadParameter(f"{model!r}: expected {_LIBRARY}:MODEL", param_hint="LIBRARY:MODEL")
    catalogue = _catalogue()
    if not wanted_name:
        for one in catalogue.names():
            typer.echo(f"{_LIBRARY}:{one}")
        return
    load(config)
    wanted = catalogue.entry(wanted_name)
    try:
        with progress("fetch") as step:
            file = obtain(wanted, source, mirror=mirror or None, progress=step)
        real = _radiographs(images, wanted.resolution) if images else []
        with tempfile.TemporaryDirectory(prefix="overread-pull-") as folder, as_typed(model, Path(folder)):
            typer.echo(f"read {file.name} and compare with the library ...", err=True)
            brought = bring(wanted, file, Path(folder), name=name or None, native=native, images=real)
            from node.cli.models import at_work

            with at_work(config) as (settings, database):
                done = arriving.add(
                    settings, database, Path(folder), by=asker(by), why=f"pulled {model}", progress=lambda *_: None
                )
    except EngineFailure as failure:
        raise CardError(failure.text) from failure
    show(done)
    console().print(
        f"largest difference from the library: {brought.difference:.1e} of a probability, over {brought.images} images "
        f"({len(real)} real)",
        highlight=False,
    )


def _catalogue() -> Any:
    from inference.engines import torchxrayvision_catalogue
    from inference.errors import CardError
    from inference.extras import lacking

    try:
        torchxrayvision_catalogue.names()
    except ModuleNotFoundError as absent:
        raise CardError(f"torchxrayvision: {lacking(absent, 'torch,convert')}") from absent
    return torchxrayvision_catalogue


def _radiographs(path: Path, size: int) -> list[npt.NDArray[np.float32]]:
    """Read what can be read as a radiograph, as the model will read it.

    Raises
    ------
    CardError
        If none can.
    """
    from inference.engine import ImageFile
    from inference.errors import CardError, InputRefused
    from inference.imagefile import open_image
    from inference.preprocess import torchxrayvision_input
    from inference.radiograph import radiograph_of

    found = []
    for file in sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
        try:
            found.append(torchxrayvision_input(radiograph_of(open_image(ImageFile(file.name, file))), size))
        except InputRefused as refused:
            typer.echo(f"overread: {file}: left out: {refused.text}", err=True)
    if not found:
        raise CardError(f"{path}: no radiograph that can be read")
    return found
