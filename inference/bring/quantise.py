"""Makes a smaller, faster version of an ONNX model, and says how far its answers lie from those of the exact one.

int8 and fp16 make another file (:mod:`inference.bring.lowered`). bf16 changes no byte of the file; it is a word in the
card, and here it gets the report that goes with it.

Only half of the cases calibrate; the other half is what the report is about.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from inference.agreement import Agreement, Bounds, compare, feeds_of
from inference.bring.lowered import PLANS, Plan, halve_file, has_layers, quantise_file
from inference.card import load_card
from inference.engines.choice import Way
from inference.engines.machine import computes_bf16
from inference.engines.modelfile import check_file, model_file
from inference.engines.onnx import OnnxModel, open_way
from inference.engines.onnxfile import describe
from inference.errors import CardError

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Job, Model

    Feeds = dict[str, npt.NDArray[Any]]

__all__ = ["Lower", "Quantised", "quantise"]

Lower = Literal["int8", "fp16", "bf16"]
#: Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """The new version's card, and what its report says."""

    path: Path
    passed: bool
    summary: str
    agreement: Agreement


def quantise(
    card: Card,
    jobs: Sequence[Job],
    target: Path,
    *,
    precision: Lower = "int8",
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    most_feeds: int = 128,
    progress: Progress,
) -> Quantised:
    """Write a version of a model in a lower precision, with its card and its report.

    Parameters
    ----------
    card
        A model of the engine onnx or openvino over one .onnx file in fp32.
    jobs
        The cases: every second one calibrates, the others are compared. One alone does both, and the report says so.
    target
        The folder to make. It must not exist.
    bounds
        What the report needs to pass; without it the version cannot be promoted.
    most_feeds
        So many inputs of the model calibrate at most, drawn evenly from all.
    progress
        Called with what is being done, how much of it is done, and how much there is.

    Raises
    ------
    CardError
        If the model is not of that kind, or the folder is there, or nothing in the file can be quantised.
    EngineFailure
        If the model broke.
    """
    file = _suitable(card, precision, target)
    if not jobs:
        raise CardError(f"{card.path}: no case in the calibration folder is what this model reads")
    calibrating, compared = (jobs[0::2], jobs[1::2]) if len(jobs) > 1 else (jobs, jobs)
    # The model as its file stands, in one thread pool with what it is compared with.
    exact = OnnxModel(card)
    target.parent.mkdir(parents=True, exist_ok=True)
    coming = Path(tempfile.mkdtemp(prefix=".quantise-", dir=target.parent))
    try:
        notes: dict[str, Any] = {}
        if precision == "int8":
            feeds = feeds_of(
                card,
                exact,
                calibrating,
                most=most_feeds,
                progress=lambda done: progress("read the calibration cases", done, len(calibrating)),
            )
            made = _integers(card, file, feeds, coming, compared, exact, bounds, progress, notes)
        else:
            if precision == "fp16":
                halve_file(card.directory / file, coming / file)
            else:
                shutil.copyfile(card.directory / file, coming / file)
            made = _compared(card, coming, file, precision, exact, compared, progress)
        failings = made.failings(bounds)
        summary = _summary(made, failings)
        files = _write_card(card, coming, file, precision, summary)
        report = {
            "passed": not failings,
            "summary": summary,
            "precision": precision,
            "made_from": {"name": card.name, "version": card.version, "digest": card.digest},
            "files": files,
            "calibration": {"cases": len(calibrating), "held_out": len(jobs) > 1, **notes},
            "bounds": asdict(bounds),
            "agreement": asdict(made),
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        (coming / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        coming.chmod(0o755)
        coming.rename(target)
    finally:
        exact.close()
        shutil.rmtree(coming, ignore_errors=True)
    return Quantised(path=load_card(target).path, passed=not failings, summary=summary, agreement=made)


def _suitable(card: Card, precision: Lower, target: Path) -> str:
    if card.engine not in ("onnx", "openvino"):
        raise CardError(f"{card.path}: engine: only models of the engines onnx and openvino can be quantised")
    file = model_file(card, ".onnx")
    contents = check_file(card, file, "auto")
    if contents.precision != "fp32":
        raise CardError(f"{card.path}: {file} is in {contents.precision} already; quantise the fp32 version")
    if precision == "bf16" and not computes_bf16():
        raise CardError("this processor has no bf16, so nothing can be measured: do it on one that has")
    if target.exists():
        raise CardError(f"{target}: is there already; name a folder that is not")
    if precision == "int8" and not has_layers(card.directory / file):
        raise CardError(f"{card.path}: nothing in {file} can be quantised: it has no layer outside its subgraphs")
    return file


def _integers(
    card: Card,
    file: str,
    feeds: Sequence[Feeds],
    coming: Path,
    compared: Sequence[Job],
    exact: Model,
    bounds: Bounds,
    progress: Progress,
    notes: dict[str, Any],
) -> Agreement:
    """Quantise plan by plan until one keeps within the bounds; leave the best, and note which it was."""
    best: tuple[float, Agreement, bytes, Plan] | None = None
    for number, plan in enumerate(PLANS, start=1):
        progress(f"quantise ({plan})", number - 1, len(PLANS))
        quantise_file(card.directory / file, coming / file, feeds, plan)
        if describe(coming / file).integers is None:
            # Both ends were all that there was.
            continue
        made = _compared(card, coming, file, "int8", exact, compared, progress)
        distance = made.largest_difference + (1 - made.alike) + sum(1 - one for one in made.dice.values())
        if best is None or distance < best[0]:
            best = (distance, made, (coming / file).read_bytes(), plan)
        if not made.failings(bounds):
            break
    assert best is not None
    (coming / file).write_bytes(best[2])
    notes |= {"feeds": len(feeds), "method": str(best[3])}
    return best[1]


def _compared(
    card: Card, coming: Path, file: str, precision: Lower, exact: Model, jobs: Sequence[Job], progress: Progress
) -> Agreement:
    _write_card(card, coming, file, precision, "")
    new = load_card(coming)
    contents = describe(coming / file)
    other = open_way(new, Way("openvino", "bf16") if precision == "bf16" else Way("cpu", precision), contents)
    try:
        return compare(card, exact, other, jobs, progress=lambda done: progress("compare", done, len(jobs)))
    finally:
        other.close()


def _write_card(card: Card, folder: Path, file: str, precision: Lower, summary: str) -> dict[str, str]:
    """Write the new version's card, with the files that it keeps; returns the SHA-256 of each by its name."""
    values = yaml.safe_load(card.path.read_text(encoding="utf-8"))
    # Weights that lay in files of their own are in the one file now, whatever its form.
    gone = set(describe(card.directory / file).external) if precision != "bf16" else set()
    kept = [name for name in card.files if name != file and name not in gone]
    folders = {place for sample in card.samples for place in _folders(sample.images)}
    folders |= {sample.mask for sample in card.samples if sample.mask}
    for name in (*kept, *folders):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (card.directory / name).is_dir() else shutil.copyfile
            copy(card.directory / name, folder / name)
    values["version"] = f"{card.version}-{precision}"
    digests = {name: _sha256(folder / name) for name in (file, *kept)}
    values["files"] = {name: {"sha256": digest} for name, digest in digests.items()}
    values[card.engine] = (values.get(card.engine) or {}) | {"precision": precision}
    values["performance"] = {f"of {card.version}, in fp32": values["performance"], f"{precision} beside it": summary}
    values["made_by"] = {f"{card.version}": values["made_by"], precision: "overread models quantise"}
    (folder / "card.yaml").write_text(
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8"
    )
    return digests


def _folders(images: str | dict[str, str]) -> tuple[str, ...]:
    return (images,) if isinstance(images, str) else tuple(images.values())


def _summary(made: Agreement, failings: Sequence[str]) -> str:
    words = [f"{made.cases} cases"]
    if made.dice:
        words.append(f"least Dice {min(made.dice.values()):.4f}")
    else:
        words.append(
            f"largest difference {made.largest_difference:.4f}, mean {made.mean_difference:.4f}, {made.alike_words()}"
        )
    return "; ".join((*words, *(f"not passed: {one}" for one in failings)))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
