"""Measures which way runs a model the fastest on this machine's processor, and keeps the choice for whoever loads it.

Each way runs in a process of its own, within the memory that the card allows: OpenVINO may take a whole process with
it, and a file may be hostile. A way is taken only where its answers are those of ONNX Runtime on the same file, within
:data:`DIFFERENCE`, on the inputs that are given: the model's own images if there are any, else smooth noise of the
right shape and range.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.agreement import feeds_of
from inference.card import load_card
from inference.engines.choice import Choice, Measured, Way, best_of, way_of, write_choice
from inference.engines.distance import distance, has_boxes
from inference.engines.machine import CACHE_VARIABLE, computes_bf16
from inference.engines.modelfile import check_file, model_file
from inference.engines.onnx import open_way
from inference.environment import environment_of
from inference.errors import EngineFailure, InferenceError
from inference.processtree import end_with, kill_tree, tree_resident_bytes
from inference.sizing import CORES_VARIABLE
from inference.wire import job_from, job_to

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Job

    Arrays = Mapping[str, npt.NDArray[Any]]

__all__ = ["DIFFERENCE", "measure", "noise", "tune"]

#: Probabilities and scores may differ by so much, values and the edges of boxes by this share (of the value, of the
#: input), and of a mask's voxels a tenth of it may.
DIFFERENCE = 0.01
_SECONDS = 300.0
#: A way is run so often, or for so long; what takes long is run twice at least.
_RUNS, _TIMED_SECONDS, _LEAST = 30, 2.0, 2
_POLL_SECONDS = 0.02
#: Of images, so many inputs are measured on, and no more than fit into this.
_MOST_FEEDS, _MOST_FEED_BYTES = 4, 256 << 20
_FEEDS = "feeds"


def tune(
    card: Card,
    cache: Path,
    *,
    feeds: Sequence[Arrays] = (),
    jobs: Sequence[Job] = (),
    source: str = "images",
    cores: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Measure as :func:`measure` does, and keep the choice for whoever loads the model."""
    choice = measure(card, cache, feeds=feeds, jobs=jobs, source=source, cores=cores, progress=progress)
    write_choice(card, model_file(card, ".onnx"), choice, cache, cores)
    return choice


def measure(
    card: Card,
    cache: Path,
    *,
    feeds: Sequence[Arrays] = (),
    jobs: Sequence[Job] = (),
    source: str = "images",
    cores: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Measure every way that the card allows, and choose the fastest that gives the same answers.

    Parameters
    ----------
    card
        A model for which :func:`inference.engines.choice.tunable` holds.
    cache
        The folder that the node gives its engines.
    feeds
        Inputs of the model, by its tensors' names.
    jobs
        Where there are no feeds, input sets that the card reads: what the model is fed with then is measured on. Where
        there are none of these either, or nothing comes of them, it is noise.
    source
        What the choice says that it was measured on, where that is feeds or jobs.
    cores
        How many the engine's process gets; by default what this process may use.
    progress
        Called with each way before it is measured.

    Raises
    ------
    EngineFailure
        If ONNX Runtime itself cannot run the model.
    """
    file = model_file(card, ".onnx")
    declared = card.onnx.precision if card.onnx else "auto"
    contents = check_file(card, file, declared)
    exact = Way("cpu", contents.precision)
    ways = [exact]
    if importlib.util.find_spec("openvino") is not None and contents.integers != "asymmetric":
        ways.append(Way("openvino", contents.precision))
        if contents.precision == "fp32" and declared in ("auto", "bf16") and computes_bf16():
            ways.append(Way("openvino", "bf16"))
    process = _Process(card, cache, cores)
    with _leaving_nothing(), tempfile.TemporaryDirectory(prefix="overread-tune-") as folder:
        given = Path(folder) / "feeds.npz"
        measured_on = source
        if feeds:
            _write(given, feeds)
        elif not (jobs and process.gather(jobs, Path(folder), given)):
            measured_on = "noise"
            _write(given, [noise(card)])
        measured: list[Measured] = []
        answers: list[Arrays] = []
        for way in ways:
            progress(str(way))
            result, said = process.measure(way, given, Path(folder))
            if way == exact:
                if result.problem:
                    raise EngineFailure("broke", f"{card.path}: {result.problem}")
                answers = said
            elif not result.problem:
                result = _judged(card, result, answers, said)
            measured.append(result)
    return Choice(best_of(tuple(measured)), tuple(measured), measured_on)


@contextlib.contextmanager
def _leaving_nothing() -> Iterator[None]:
    """Let a signal that would end this process at once end it in order: what is measured is killed, its files go."""
    stops = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Whoever has a way of ending, or means not to end, keeps it.
    ours = [number for number in stops if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def noise(card: Card) -> Arrays:
    """Return one input of the right shape and range: smooth noise, so that no layer sees only extremes."""
    rng = np.random.default_rng(0)
    name = card.tensors["image"]
    if card.inputs[0].kind == "radiograph":
        step = card.preprocess[0]
        if step.torchxrayvision_input:
            size = step.torchxrayvision_input.size
            return {name: (_smooth(rng, (1, 1, size, size)) * 2048 - 1024).astype(np.float32)}
        size = step.radiograph_input.size if step.radiograph_input else 256
        return {name: _smooth(rng, (1, 1, size, size))}
    if card.layout == "ncdhw":
        sizes = (
            card.window.size
            if card.window
            else next((step.crop_or_pad.shape for step in card.preprocess if step.crop_or_pad), (64, 64, 64))
        )
        return {name: _smooth(rng, (1, len(card.inputs), *sizes)) * 2 - 1}
    feeds: dict[str, npt.NDArray[Any]] = {name: (_smooth(rng, (24, 256, 256)) * 1500 - 1000).astype(np.int16)}
    if "spacing" in card.tensors:
        feeds[card.tensors["spacing"]] = np.array([3.0, 1.4, 1.4], np.float32)
    return feeds


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return values of 0 to 1 that change over an eighth of each of the last axes."""
    values = rng.random(shape[:2] + tuple(min(8, n) for n in shape[2:]), dtype=np.float32)
    for axis, size in enumerate(shape[2:], start=2):
        at = np.linspace(0, values.shape[axis] - 1, size)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, values.shape[axis] - 1)
        share = (at - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(len(shape))])
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return values


def _judged(card: Card, result: Measured, exact: Sequence[Arrays], said: Sequence[Arrays]) -> Measured:
    apart = max(distance(card, one, two) for one, two in zip(exact, said, strict=True))
    allowed = DIFFERENCE / 10 if card.task == "segmentation" else DIFFERENCE
    problem = "" if apart <= allowed else f"its answers differ by {apart:.4f}, allowed {allowed:g}"
    if not problem and card.task == "detection" and not any(has_boxes(one) for one in exact):
        problem = "no box was found in what it was shown, so nothing could be compared: measure on --images"
    return Measured(result.way, result.load_seconds, result.milliseconds, apart, problem)


class _Process:
    """Runs this module as a process of its own, within the card's memory and :data:`_SECONDS`."""

    def __init__(self, card: Card, cache: Path, cores: int | None) -> None:
        self._card = card
        self._environment = environment_of(card) | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            CACHE_VARIABLE: str(cache),
        }
        if cores is not None:
            self._environment[CORES_VARIABLE] = str(cores)

    def gather(self, jobs: Sequence[Job], folder: Path, target: Path) -> bool:
        """Write what the model is fed with for these jobs; return whether anything came of it."""
        listed = folder / "jobs.json"
        listed.write_text(json.dumps([job_to(job) for job in jobs]), encoding="utf-8")
        said, problem = self._run(folder, _FEEDS, str(listed), str(target))
        return not problem and bool(said.get("feeds"))

    def measure(self, way: Way, given: Path, folder: Path) -> tuple[Measured, list[Arrays]]:
        """Time one way, and return its answers too."""
        answers = folder / f"{way.provider}-{way.precision}.npz"
        said, problem = self._run(folder, way.provider, way.precision, str(given), str(answers))
        if problem:
            return Measured(way, problem=problem), []
        return Measured(way, said["load_seconds"], said["milliseconds"]), _read(answers)

    def _run(self, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
        """Return what the process said, and what was wrong with it; "" where nothing was."""
        limit = self._card.resources.memory_mb << 20
        out = folder / "said.json"
        command = [sys.executable, "-P", "-m", "inference.engines.tune", str(os.getpid()), str(self._card.path)]
        with out.open("wb") as stream:
            process = subprocess.Popen(
                [*command, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
            deadline = time.monotonic() + _SECONDS
            try:
                while process.poll() is None:
                    if time.monotonic() > deadline:
                        return {}, f"it gave no answer within {_SECONDS:g} s"
                    if tree_resident_bytes(process.pid, limit) > limit:
                        return {}, f"it held more than the {limit >> 20} MB of resources.memory_mb"
                    time.sleep(_POLL_SECONDS)
            finally:
                if process.poll() is None:
                    kill_tree(process.pid)
                status = process.wait()
        if status < 0:
            return {}, f"its process died of signal {-status}"
        try:
            said = json.loads(out.read_bytes())
            return said, str(said.get("problem", ""))
        except (ValueError, AttributeError):
            return {}, f"its process ended with status {status}"


def _write(path: Path, arrays: Sequence[Arrays]) -> None:
    named = {f"{number}/{name}": value for number, one in enumerate(arrays) for name, value in one.items()}
    np.savez(path, allow_pickle=False, **named)


def _read(path: Path) -> list[Arrays]:
    found: dict[int, dict[str, npt.NDArray[Any]]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = stored[key]
    return [found[number] for number in sorted(found)]


def main(arguments: Sequence[str]) -> int:
    """Load a model one way and time it, or gather what it is fed with; the process that is measured."""
    parent, card_path, what, *rest = arguments
    # Nobody watches its time and its memory afterwards.
    end_with(int(parent))
    try:
        card = load_card(Path(card_path))
        said = _gathered(card, *map(Path, rest)) if what == _FEEDS else _timed(card, what, *rest)
    except EngineFailure as failure:
        said = {"problem": failure.text}
    except InferenceError as problem:
        said = {"problem": str(problem)}
    sys.stdout.write(json.dumps(said))
    return 0


def _gathered(card: Card, listed: Path, target: Path) -> dict[str, Any]:
    jobs = [job_from(one) for one in json.loads(listed.read_text(encoding="utf-8"))]
    contents = check_file(card, model_file(card, ".onnx"), "auto")
    model = open_way(card, Way("cpu", contents.precision), contents)
    kept: list[Arrays] = []
    size = 0
    for one in feeds_of(card, model, jobs, most=_MOST_FEEDS, progress=lambda _: None):
        size += sum(value.nbytes for value in one.values())
        if not kept or size <= _MOST_FEED_BYTES:
            kept.append(one)
    _write(target, kept)
    return {"feeds": len(kept)}


def _timed(card: Card, provider: str, precision: str, given: str, target: str) -> dict[str, Any]:
    began = time.perf_counter()
    contents = check_file(card, model_file(card, ".onnx"), "auto")
    model = open_way(card, way_of({"provider": provider, "precision": precision}), contents)
    feeds = _read(Path(given))
    answers = [model.infer(one) for one in feeds]
    loaded = time.perf_counter() - began
    # The least of them counts: what else the machine does only ever adds.
    seconds: list[float] = []
    while len(seconds) < _LEAST or (len(seconds) < _RUNS and sum(seconds) < _TIMED_SECONDS):
        start = time.perf_counter()
        model.infer(feeds[len(seconds) % len(feeds)])
        seconds.append(time.perf_counter() - start)
    _write(Path(target), answers)
    return {"load_seconds": loaded, "milliseconds": 1000 * min(seconds)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
