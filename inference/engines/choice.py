"""Which of several ways runs a model on this machine's processor: what was measured here, if anything was.

A choice holds for one model file, one number of threads and one machine (:func:`inference.engines.machine.signature`).
:mod:`inference.engines.tune` makes it; loading a model only reads it and never measures, so that loading is quick and
always does the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inference.engines.machine import CACHE_VARIABLE, cache_folder, signature
from inference.ownership import make_folder, write_whole
from inference.sizing import allotted

if TYPE_CHECKING:
    from inference.card import Card

__all__ = [
    "Choice",
    "Measured",
    "Way",
    "best_of",
    "on_gpu",
    "read_choice",
    "tunable",
    "why_unreadable",
    "way_of",
    "write_choice",
]

#: What is not faster by this much is not worth other answers in the last digits.
_WORTH = 0.95

Provider = Literal["cpu", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a model on the processor: ONNX Runtime (``cpu``) or OpenVINO, and how precisely it computes."""

    provider: Provider = "cpu"
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return f"{self.provider}/{self.precision}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took, and how far its answers lie from those of ONNX Runtime on the same file.

    ``milliseconds`` is the least that a run took; ``difference`` what :func:`inference.engines.distance.distance` says.
    ``problem`` says why the way is not taken, where it is not.
    """

    way: Way
    load_seconds: float = 0.0
    milliseconds: float = 0.0
    difference: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a model on this machine, of what, and on what it was measured (``noise`` or images)."""

    way: Way
    measured: tuple[Measured, ...] = ()
    measured_on: str = "noise"

    def without(self, problem: str) -> Choice:
        """Return the next best choice, where the way that was chosen has shown a problem."""
        left = tuple(replace(one, problem=problem) if one.way == self.way else one for one in self.measured)
        return replace(self, way=best_of(left) if left else Way(), measured=left)


def best_of(measured: tuple[Measured, ...]) -> Way:
    """Return the fastest way without a problem; the first is the exact one, which is left only for what is worth it."""
    best = measured[0]
    for one in measured[1:]:
        if not one.problem and one.milliseconds < _WORTH * best.milliseconds:
            best = one
    return best.way


def tunable(card: Card) -> bool:
    """Return whether there is anything to choose: the engine onnx on any provider."""
    return card.engine == "onnx" and (card.onnx is None or card.onnx.providers == "auto")


def on_gpu() -> bool:
    """Return whether ``providers: auto`` means a GPU here: a way on the processor counts only without one."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


def read_choice(card: Card, file: str, folder: Path | None = None, cores: int | None = None) -> Choice | None:
    """Return what was measured for a card's file on this machine, or None if nothing (readable) was.

    Parameters
    ----------
    folder
        Where choices are kept; by default what this process was given. Whosever that is: unlike a compiled model
        (:func:`inference.engines.machine.cache_folder`) a choice is no code, and is followed within the card alone.
    cores
        How many the engine's process gets; by default what this process was given.
    """
    try:
        return _read(card, file, folder, cores)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def why_unreadable(card: Card, file: str, folder: Path | None = None, cores: int | None = None) -> str:
    """Return why what was measured cannot be read; "" where it can, or nothing was."""
    try:
        _read(card, file, folder, cores)
    except OSError as problem:
        return f"{problem.filename}: {problem.strerror}"
    except (ValueError, KeyError, TypeError):
        return "it is damaged"
    return ""


def _read(card: Card, file: str, folder: Path | None, cores: int | None) -> Choice | None:
    if folder is None and not os.environ.get(CACHE_VARIABLE):
        return None
    path = _place(card, file, folder or Path(os.environ[CACHE_VARIABLE]), cores)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Choice(
        way=way_of(values["way"]),
        measured=tuple(Measured(**(one | {"way": way_of(one["way"])})) for one in values["measured"]),
        measured_on=str(values.get("measured_on", "noise")),
    )


def write_choice(card: Card, file: str, choice: Choice, folder: Path | None = None, cores: int | None = None) -> bool:
    """Keep a choice for the next time that the model is loaded; return whether there is a place to keep it."""
    folder = folder or cache_folder()
    if folder is None:
        return False
    path = _place(card, file, folder, cores)
    for one in (folder, path.parent):
        make_folder(one)
    write_whole(path, json.dumps(asdict(choice)))
    return True


def _place(card: Card, file: str, folder: Path, cores: int | None) -> Path:
    threads = card.resources.threads or cores or allotted()
    return folder / "choices" / f"{card.files[file].sha256[:32]}-{threads}-{signature(cores)}.json"


def way_of(values: Any) -> Way:
    """Read a way as it was written.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it is none.
    """
    way = Way(values["provider"], values["precision"])
    if way.provider not in ("cpu", "openvino") or way.precision not in ("fp32", "fp16", "bf16", "int8"):
        raise ValueError("no such way")
    return way
