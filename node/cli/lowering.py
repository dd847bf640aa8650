"""``overread models quantise`` and ``tune``: a model in a lower precision, and the fastest way to run one here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from node.cli.options import CONFIG, ByOption, ConfigOption, JsonOption
from node.cli.support import asker, console, load, opened, progress

if TYPE_CHECKING:
    from inference.bring.quantise import Lower
    from inference.card import Card
    from inference.engines.choice import Choice
    from node.settings import Settings

__all__ = ["card_named", "quantise", "tune"]

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
    from inference.proof import few

    if precision not in ("int8", "fp16", "bf16"):
        raise typer.BadParameter(f"{precision!r}: expected int8, fp16 or bf16", param_hint="--precision")
    # What cannot be decoded is counted; pydicom would tell each decoder's story at length.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    card = card_named(model, config)
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
        if few(made.agreement.cases):
            console().print(f"look: {few(made.agreement.cases)}", highlight=False)
        console().print(f"next: overread models add {target}", highlight=False)
    if not made.passed:
        raise typer.Exit(1)


def tune(
    models: Annotated[list[str] | None, typer.Argument(help="NAME or NAME@VERSION; all by default.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A folder of DICOM images to measure on; by default the card's samples, and noise where it has none.",
        ),
    ] = None,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
    by: ByOption = "",
) -> None:
    """Measure which way runs each ONNX model the fastest on this machine, and keep to it.

    ONNX Runtime and OpenVINO, and OpenVINO in bf16 where the processor has it and the card does not forbid it
    (**onnx.precision: fp32**). A way is taken only where its answers stay within 0.01 of a probability or score, 1 % of
    a value, 1 % of the input for each edge of a box, or 0.1 % of the voxels; a detector that finds nothing in noise
    needs samples or **--images**. Models of other engines, or whose card names their provider, have nothing to choose.
    The choice is kept in the node's data directory for this machine and these versions of the runtimes; a process that
    loads the model later follows it. Measure while the machine does nothing else. **overread models test** measures
    too, where nothing was measured yet; a version that has passed its test on another way has to pass it again before
    it is promoted, and is named at the end.

    Example: **overread models tune chest-xray --images /data/radiographs**
    """
    import json
    from dataclasses import asdict

    from inference.cases import jobs_in
    from inference.engines.choice import tunable
    from inference.engines.tune import tune as measure
    from inference.samples import job_of
    from node.workflow.engines import cores_of
    from node.workflow.measuring import made_cache, way_of

    settings = load(config)
    chosen: dict[str, Choice] = {}
    before: dict[str, str] = {}
    with _failing(), progress("tune") as bar:
        cards = _cards(config) if not models else [card_named(one, config) for one in models]
        for card in cards if models else ():
            if not tunable(card):
                typer.echo(f"{card.name}@{card.version}: nothing to choose: its card says what runs it", err=True)
        cards = [card for card in cards if tunable(card)]
        for number, card in enumerate(cards):
            name = f"{card.name}@{card.version}"
            bar(number, len(cards), name)
            before[name] = way_of(settings, card)
            samples = [one for one in card.samples if one.not_analysed is None]
            jobs = list(jobs_in(card, images)[:8]) if images else [job_of(card, one) for one in samples[:4]]
            chosen[name] = measure(
                card,
                made_cache(settings),
                jobs=jobs,
                source="images" if images else "samples",
                cores=cores_of(settings),
                progress=lambda way, number=number, name=name: bar(number, len(cards), f"{name} {way}"),  # type: ignore[misc]
            )
            if images and chosen[name].measured_on == "noise":
                typer.echo(f"{name}: nothing in {images} is what it reads; measured on noise", err=True)
    if as_json:
        typer.echo(json.dumps({name: asdict(choice) for name, choice in chosen.items()}, indent=2))
    else:
        _print(chosen)
    _tell_changed(settings, config, cards, before, asker(by))


def _tell_changed(settings: Settings, config: Path, cards: list[Card], before: Mapping[str, str], by: str) -> None:
    """Write down which way was changed, and say which versions have passed their test on another one."""
    from node.workflow.measuring import note_changed

    if settings.database.url is None and not (settings.data_dir / "overread.sqlite").is_file():
        return
    with opened(config) as (_, database):
        for line in note_changed(settings, database, cards, before, by=by):
            typer.echo(line, err=True)


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


def _cards(config: Path) -> list[Card]:
    from node.workflow.models import installed

    return list(installed(load(config), routed=False))


def card_named(model: str, config: Path) -> Card:
    """Return the card of an installed version, or that of a folder which is none yet."""
    from inference.card import load_card
    from node.workflow.models import installed

    if os.sep in model or (Path(model) / "card.yaml").is_file():
        return load_card(Path(model))
    return installed(load(config), routed=False).get(model)


@contextmanager
def _failing() -> Iterator[None]:
    """Explain an engine that broke as any other error of a command."""
    from inference.errors import EngineFailure
    from inference.extras import lacking
    from node.errors import NodeError

    try:
        yield
    except EngineFailure as failure:
        raise NodeError(failure.text) from failure
    except ModuleNotFoundError as absent:
        raise NodeError(f"this {lacking(absent)}") from absent
