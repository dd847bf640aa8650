"""``overread models quantise`` and ``tune``: a model in a lower precision, and the fastest way to run one here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from node.cli.options import CONFIG, ConfigOption, JsonOption
from node.cli.support import console, load, progress

if TYPE_CHECKING:
    from inference.bring.quantise import Lower
    from inference.card import Card
    from inference.engines.choice import Choice

__all__ = ["quantise", "tune"]

_Cases = Annotated[
    Path,
    typer.Option(
        exists=True, file_okay=False, help="A folder of DICOM images that the model reads: those of your own scanners."
    ),
]


def quantise(
    model: Annotated[str, typer.Argument(help="A model, NAME or NAME@VERSION, or the folder of a card.")],
    calibration: _Cases,
    output: Annotated[Path | None, typer.Option(help="The folder to make; the default is NAME-VERSION-int8.")] = None,
    precision: Annotated[
        str, typer.Option(help="int8 for processors, fp16 for GPUs, bf16 as a word in the card.")
    ] = "int8",
    limit: Annotated[float, typer.Option(help="How far a probability may move; a measured value, as a share.")] = 0.02,
    dice: Annotated[float, typer.Option(help="The least Dice coefficient of any structure in any case.")] = 0.98,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Make a smaller, faster version of an ONNX model, with a report of how far its answers move.

    Half of the cases calibrate, the other half are compared through all that the card declares. The new folder holds
    the model, its card and **report.json**; a version whose report has not passed cannot be promoted. The exit
    status is 1 then. Bring it in with **overread models add FOLDER**.

    Example: **overread models quantise chest-xray --calibration /data/radiographs**
    """
    from inference.agreement import Bounds
    from inference.bring.quantise import quantise as make
    from inference.cases import jobs_in

    if precision not in ("int8", "fp16", "bf16"):
        raise typer.BadParameter(f"{precision!r}: expected int8, fp16 or bf16", param_hint="--precision")
    # What cannot be decoded is counted; pydicom would tell each decoder's story at length.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    card = _card(model, config)
    target = output or Path(f"{card.name}-{card.version}-{precision}")
    with _failing(), progress("look for cases") as bar:
        jobs = jobs_in(card, calibration, progress=bar)
        made = make(
            card,
            jobs,
            target,
            precision=cast("Lower", precision),
            bounds=Bounds(difference=limit, dice=dice),
            progress=lambda what, done, total: bar(done, total, what),
        )
    if as_json:
        typer.echo((target / "report.json").read_text(encoding="utf-8"))
    else:
        seconds = f"{made.agreement.exact_seconds:.2f} s became {made.agreement.other_seconds:.2f} s"
        verdict = "passed" if made.passed else "not passed"
        console().print(f"{target}: {verdict}; {made.summary}; {seconds} for all cases, images read", highlight=False)
        console().print(f"next: overread models add {target}", highlight=False)
    if not made.passed:
        raise typer.Exit(1)


def tune(
    models: Annotated[list[str] | None, typer.Argument(help="NAME or NAME@VERSION; all by default.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder of DICOM images to measure on; noise by default."),
    ] = None,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Measure which way runs each ONNX model the fastest on this machine, and keep to it.

    ONNX Runtime and OpenVINO, and OpenVINO in bf16 where the processor has it and the card does not forbid it
    (**onnx.precision: fp32**). A way is taken only where its answers stay within 0.01 of a probability or score, 1 % of
    a value, 1 % of the input for each edge of a box, or 0.1 % of the voxels; a detector that finds nothing in noise
    needs **--images**. Models of other engines, or whose card names their provider, have nothing to choose. The choice
    is kept in the node's data directory for this machine and these versions of the runtimes; a process that loads the
    model later follows it. Measure while the machine does nothing else.

    Example: **overread models tune chest-xray --images /data/radiographs**
    """
    import json
    from dataclasses import asdict

    from inference.engines.tune import tunable
    from inference.engines.tune import tune as measure

    settings = load(config)
    chosen: dict[str, Choice] = {}
    with _failing(), progress("tune") as bar:
        cards = _cards(config) if not models else [_card(one, config) for one in models]
        for card in cards if models else ():
            if not tunable(card):
                typer.echo(f"{card.name}@{card.version}: nothing to choose: its card says what runs it", err=True)
        cards = [card for card in cards if tunable(card)]
        for number, card in enumerate(cards):
            name = f"{card.name}@{card.version}"
            bar(number, len(cards), name)
            feeds = _feeds(card, images) if images else []
            if images and not feeds:
                typer.echo(f"{name}: nothing in {images} is what it reads; measured on noise", err=True)
            chosen[name] = measure(
                card,
                settings.data_dir / "engines",
                feeds=feeds,
                progress=lambda way, number=number, name=name: bar(number, len(cards), f"{name} {way}"),  # type: ignore[misc]
            )
    if as_json:
        typer.echo(json.dumps({name: asdict(choice) for name, choice in chosen.items()}, indent=2))
        return
    _print(chosen)


def _print(chosen: dict[str, Choice]) -> None:
    from rich.table import Table

    table = Table(title="One input at a time, on this machine")
    for column in ("model", "way", "load s", "ms", "difference", ""):
        table.add_column(column, justify="right" if column in ("load s", "ms", "difference") else "left")
    for name, choice in chosen.items():
        for one in choice.measured:
            taken = "taken" if one.way == choice.way else one.problem
            figures = (f"{one.load_seconds:.2f}", f"{one.milliseconds:.1f}", f"{one.difference:.4f}")
            table.add_row(name, str(one.way), *(figures if one.milliseconds else ("", "", "")), taken)
    console().print(table)


def _feeds(card: Card, images: Path) -> list[Any]:
    from inference.agreement import feeds_of
    from inference.cases import jobs_in
    from inference.engines.onnx import OnnxModel

    model = OnnxModel(card)
    try:
        return list(feeds_of(card, model, jobs_in(card, images)[:8], most=8, progress=lambda _: None))
    finally:
        model.close()


def _cards(config: Path) -> list[Card]:
    from node.workflow.models import installed

    return list(installed(load(config), routed=False))


def _card(model: str, config: Path) -> Card:
    from inference.card import load_card
    from node.workflow.models import installed

    if os.sep in model or (Path(model) / "card.yaml").is_file():
        return load_card(Path(model))
    return installed(load(config), routed=False).get(model)


@contextmanager
def _failing() -> Iterator[None]:
    """Explain an engine that broke as any other error of a command."""
    from inference.errors import EngineFailure
    from node.errors import NodeError

    try:
        yield
    except EngineFailure as failure:
        raise NodeError(failure.text) from failure
    except ModuleNotFoundError as absent:
        raise NodeError(f"{absent.name} is not installed here: .venv/bin/pip install -e '.[convert]'") from absent
