"""Which way runs a model on this machine: what was measured, measuring it, and whether a test was passed that way.

The way is of this machine, and a version's test is of the node: a test that was passed on another way than the one
that runs here now says nothing of what would run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inference.engines.choice import Choice, on_gpu, read_choice, tunable, write_choice
from inference.engines.modelfile import model_file
from inference.errors import EngineFailure
from inference.ownership import make_folder
from inference.samples import SampleResult, job_of, run_samples
from node.settings import Settings
from node.workflow.engines import cache_of, cores_of, unreadable
from storage import models
from storage.database import Database

if TYPE_CHECKING:
    from inference.card import Card
    from storage.records import ModelVersion

__all__ = [
    "choice_of",
    "is_unmeasured",
    "made_cache",
    "measured_samples",
    "note_changed",
    "tested_otherwise",
    "told",
    "way_of",
]

#: What "not measured" and "measured, and ONNX Runtime is the fastest" both run.
_PLAIN = ""
_UNEXPECTED = "the samples do not come out as expected"


def made_cache(settings: Settings) -> Path:
    """Return the folder of what is measured, made where it is not there, for whoever runs the node."""
    # It will hold patients' data; see :meth:`node.ops.directory.DataDirectory.lock`.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_folder(cache_of(settings))
    return cache_of(settings)


def choice_of(settings: Settings, card: Card) -> Choice | None:
    """Return what was measured on this machine for a card, where anything was and it counts."""
    if not _is_open(card):
        return None
    try:
        return read_choice(card, model_file(card, ".onnx"), cache_of(settings), cores_of(settings))
    except EngineFailure:
        return None


def is_unmeasured(settings: Settings, card: Card) -> bool:
    """Whether there is a choice of ways for a card here, and nothing was measured: ONNX Runtime runs it then."""
    return _is_open(card) and choice_of(settings, card) is None


def way_of(settings: Settings, card: Card) -> str:
    """Return which measured way runs a card here, as "openvino/bf16"; "" where it is ONNX Runtime, or no choice."""
    choice = choice_of(settings, card)
    if choice is None or choice.way.provider == "cpu":
        return _PLAIN
    declared = card.onnx.precision if card.onnx else "auto"
    own = choice.measured[0].way.precision if choice.measured else choice.way.precision
    return str(choice.way) if declared == "auto" or choice.way.precision in (declared, own) else _PLAIN


def tested_otherwise(settings: Settings, version: ModelVersion, card: Card) -> str:
    """Return what to say where a version has passed its test on another way than the one that runs it here now."""
    if not version.is_tested or not _is_open(card):
        return ""
    # Before ways were written down, samples ran on ONNX Runtime.
    then, now = str((version.test or {}).get("choice", _PLAIN)), way_of(settings, card)
    if then == now:
        return ""
    return f"{version.name} has passed its test on {_named(then)}, and here {_named(now)} runs it now"


def told(settings: Settings, version: ModelVersion, card: Card) -> tuple[str, str]:
    """Return what runs a version on this machine, and what is left to do about that and its test; each "" for nothing.

    A model with one way only (a pinned provider, another engine, a GPU) has none to measure.
    """
    tested = f"overread models test {version.name}"
    if _is_open(card) and (why := unreadable(card, cache_of(settings), cores_of(settings))):
        todo = f"let the node's user read it, or overread models tune {version.name}"
        return f"what was measured on this machine cannot be read ({why}): ONNX Runtime", todo
    if is_unmeasured(settings, card):
        # A card without samples has no test that would measure.
        todo = tested if card.samples else f"overread models tune {version.name}"
        return "not measured on this machine: ONNX Runtime", todo
    choice = choice_of(settings, card)
    way = "" if choice is None else f"{way_of(settings, card) or choice.way}, measured on {choice.measured_on}"
    if tested_otherwise(settings, version, card):
        return f"{way}; its test was passed on another way", tested
    return way, tested if card.samples and version.tested_digest != version.digest else ""


def measured_samples(
    settings: Settings, card: Card, *, measure: bool, progress: Callable[..., None]
) -> tuple[list[SampleResult], str]:
    """Run a card's samples in the way in which the node will run it, measuring the ways first where none was yet.

    A way under which the samples do not come out as expected is not taken: the next best is tried, to the last.
    What was measured is kept only once the samples have passed.

    Parameters
    ----------
    measure
        Whether ways may be measured and another may be chosen; else they run in the way that is chosen already.
    progress
        Called with (done, in all, what is being done).

    Returns
    -------
    list of SampleResult, str
        And what has to be said of the measuring, if anything.

    Raises
    ------
    CardError
        When a sample's files are not there.
    """
    cache, count = made_cache(settings), cores_of(settings)
    kept = choice_of(settings, card)
    choice, remark = kept, ""
    if measure and is_unmeasured(settings, card):
        choice, remark = _measured(settings, card, progress)
    if choice is None or not measure:
        return run_samples(card, cache=cache, cores=count, progress=progress), remark
    while True:
        results = _run_by(card, choice, cache if choice == kept else None, count, progress)
        passed = all(one.passed for one in results)
        if passed or choice.way.provider == "cpu":
            break
        remark = f"on {choice.way} {_UNEXPECTED}, so it is not taken"
        choice = choice.without(_UNEXPECTED)
    if not passed:
        # It is not the way that is at fault, and nothing has been chosen.
        return results, ""
    if choice != kept:
        write_choice(card, model_file(card, ".onnx"), choice, cache, count)
    return results, remark


def note_changed(
    settings: Settings, database: Database, cards: Iterable[Card], before: Mapping[str, str], *, by: str
) -> Iterator[str]:
    """Write down which registered versions run in another way than before, and say which have to be tested again.

    Parameters
    ----------
    before
        By the version's name, as MODEL@VERSION: what :func:`way_of` said.
    """
    with database.read() as connection:
        versions = {one.name: one for one in models.versions(connection)}
    for card in cards:
        version = versions.get(f"{card.name}@{card.version}")
        if version is None or version.digest != card.digest:
            continue
        now = way_of(settings, card)
        if now != before[version.name]:
            why = f"{_named(now)} runs it on this machine, no more {_named(before[version.name])}"
            with database.write() as connection:
                models.note(connection, version, "tuned", by=by, why=why, detail={"choice": now})
        otherwise = tested_otherwise(settings, version, card)
        if otherwise:
            yield f"{otherwise}: overread models test {version.name}"


def _is_open(card: Card) -> bool:
    return tunable(card) and not on_gpu()


def _named(way: str) -> str:
    return way or "ONNX Runtime"


def _measured(settings: Settings, card: Card, progress: Callable[..., None]) -> tuple[Choice | None, str]:
    from inference.engines.tune import measure

    analysed = [one for one in card.samples if one.not_analysed is None]
    done = 0

    def tell(way: str) -> None:
        nonlocal done
        progress(done, 3, f"measure {way}")
        done += 1

    progress(0, 3, "look for inputs in the samples")
    try:
        choice = measure(
            card,
            cache_of(settings),
            jobs=[job_of(card, one) for one in analysed[:4]],
            source="samples",
            cores=cores_of(settings),
            progress=tell,
        )
    except EngineFailure as failure:
        # Its samples will tell better what is wrong with the model.
        return None, f"not measured: {failure.text}"
    return choice, ""


def _run_by(
    card: Card, choice: Choice, cache: Path | None, count: int, progress: Callable[..., None]
) -> list[SampleResult]:
    """Run the samples by a choice that nobody else follows yet, where it is not the one that is kept."""
    if cache is not None:
        return run_samples(card, cache=cache, cores=count, progress=progress)
    with tempfile.TemporaryDirectory(prefix="overread-trial-") as folder:
        write_choice(card, model_file(card, ".onnx"), choice, Path(folder), count)
        return run_samples(card, cache=Path(folder), cores=count, progress=progress)
