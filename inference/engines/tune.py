"""Measures which way runs a model the fastest on this machine's processor, and keeps the choice for whoever loads it.

Each way runs in a process of its own: OpenVINO may take a whole process with it. A way is taken only where its answers
are those of ONNX Runtime on the same file, within :data:`DIFFERENCE`, on the inputs that are given: the model's own
images if there are any, else smooth noise of the right shape and range.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.card import load_card
from inference.engines.choice import Choice, Measured, Way, way_of, write_choice
from inference.engines.distance import distance, has_boxes
from inference.engines.machine import CACHE_VARIABLE, computes_bf16
from inference.engines.modelfile import check_file, model_file
from inference.engines.onnx import open_way
from inference.environment import environment_of
from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card

    Arrays = Mapping[str, npt.NDArray[Any]]

__all__ = ["DIFFERENCE", "noise", "tunable", "tune"]

#: Probabilities and scores may differ by so much, values and the edges of boxes by this share (of the value, of the
#: input), and of a mask's voxels a tenth of it may.
DIFFERENCE = 0.01
#: What is not faster by this much is not worth other answers in the last digits.
_WORTH = 0.95
_SECONDS = 300.0
_RUNS, _TIMED_SECONDS = 30, 2.0


def tunable(card: Card) -> bool:
    """Return whether there is anything to choose: the engine onnx on any provider."""
    return card.engine == "onnx" and (card.onnx is None or card.onnx.providers == "auto")


def tune(
    card: Card,
    cache: Path,
    *,
    feeds: Sequence[Arrays] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Measure every way that the card allows, and keep the fastest that gives the same answers.

    Parameters
    ----------
    card
        A model for which :func:`tunable` holds.
    cache
        The folder that the node gives its engines.
    feeds
        Inputs of the model, by its tensors' names; noise by default.
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
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "feeds.npz"
        _write(given, feeds or [noise(card)])
        measured: list[Measured] = []
        answers: list[Arrays] = []
        for way in ways:
            progress(str(way))
            result, said = _measure(card, way, given, Path(folder), cache)
            if way == exact:
                if result.problem:
                    raise EngineFailure("broke", f"{card.path}: {result.problem}")
                answers = said
            elif not result.problem:
                result = _judged(card, result, answers, said)
            measured.append(result)
    best = measured[0]
    for one in measured[1:]:
        if not one.problem and one.milliseconds < _WORTH * best.milliseconds:
            best = one
    choice = Choice(best.way, tuple(measured))
    write_choice(card, file, choice, cache)
    return choice


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


def _measure(card: Card, way: Way, given: Path, folder: Path, cache: Path) -> tuple[Measured, list[Arrays]]:
    """Run one way in a process of its own."""
    answers = folder / f"{way.provider}-{way.precision}.npz"
    environment = environment_of(card) | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        CACHE_VARIABLE: str(cache),
    }
    command = [sys.executable, "-P", "-m", "inference.engines.tune"]
    try:
        done = subprocess.run(
            [*command, str(card.path), way.provider, way.precision, str(given), str(answers)],
            env=environment,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Measured(way, problem=f"it gave no answer within {_SECONDS:g} s"), []
    if done.returncode < 0:
        return Measured(way, problem=f"its process died of signal {-done.returncode}"), []
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return Measured(way, problem=f"its process ended with status {done.returncode}"), []
    if "problem" in said:
        return Measured(way, problem=said["problem"]), []
    return Measured(way, said["load_seconds"], said["milliseconds"]), _read(answers)


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
    """Load a model one way, time it, and write its answers; the process that is measured."""
    card_path, provider, precision, given, target = arguments
    began = time.perf_counter()
    try:
        card = load_card(Path(card_path))
        contents = check_file(card, model_file(card, ".onnx"), "auto")
        model = open_way(card, way_of({"provider": provider, "precision": precision}), contents)
        feeds = _read(Path(given))
        answers = [model.infer(one) for one in feeds]
        loaded = time.perf_counter() - began
        # The least of them counts: what else the machine does only ever adds.
        seconds: list[float] = []
        while len(seconds) < 3 or (len(seconds) < _RUNS and sum(seconds) < _TIMED_SECONDS):
            start = time.perf_counter()
            model.infer(feeds[len(seconds) % len(feeds)])
            seconds.append(time.perf_counter() - start)
        _write(Path(target), answers)
    except EngineFailure as failure:
        said: dict[str, Any] = {"problem": failure.text}
    else:
        said = {"load_seconds": loaded, "milliseconds": 1000 * min(seconds)}
    sys.stdout.write(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
