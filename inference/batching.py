"""Joins what several jobs infer at the same time into one run of the model, where that is faster.

Jobs run in threads of the engine's process. While the model works, the inputs of the others gather; the next run takes
as many of them as the card allows, in the order in which they came. Whether a run of many is faster than as many runs
of one depends on the machine: on a GPU and on CPUs with AMX it is, on others often not. So it is measured when the
model is loaded, on made-up inputs of the card's shape, or where the card says no shape on the first that gather; the
faster way is kept. On a CPU what counts is the processor's time, since with many jobs every core is busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.detect import RANKS
from inference.errors import EngineFailure
from inference.sizing import concurrency_of, cores, threads_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Engine, Job, Model
    from inference.findings import Findings

__all__ = ["BatchingModel", "SharedEngine", "shared"]

Feeds = Mapping[str, "npt.NDArray[Any]"]
Answer = dict[str, "npt.NDArray[Any]"]

#: So many runs of each way are measured before the choice, and each is measured again after so many runs of the other.
_MEASURED = 3
_AGAIN_AFTER = 256
#: A model whose one run takes longer is not made to run several times before its first job.
_TOO_LONG_SECONDS = 0.5
#: In the name of a provider that computes elsewhere than on the processor.
_DEVICES = ("CUDA", "TENSORRT", "GPU", "ROCM")
#: Shapes whose choice is remembered; a model with more is one that reads volumes of any size.
_SHAPES = 16


class BatchingModel:
    """A model (:class:`inference.engine.Model`) that several threads may use, over one that knows of no threads.

    Parameters
    ----------
    model
        With a maximum of 1 its tensors may be of any shape.
    maximum
        The largest batch; with 1, calls only wait for one another.
    wait_seconds
        How long a run waits for the inputs of jobs that are under way, where batches are the faster way.
    lanes
        How many runs of one there may be at once, for a model that several threads may call; runs of many are alone.
    readers
        How many jobs may read and prepare at once; one that waits for the model leaves its place to the next.
    ranks
        The least axes that an answer has, by its role, where the first of them is that of the inputs; one by default.
    """

    def __init__(
        self,
        model: Model,
        *,
        maximum: int = 1,
        wait_seconds: float = 0.0,
        lanes: int = 1,
        readers: int = 64,
        ranks: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._model = model
        self._ranks = ranks
        self._maximum = maximum
        self._wait = wait_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._lanes = lanes
        self._running = 0
        self._jobs = 0
        self._readers = threading.Semaphore(readers)
        self._own = threading.local()
        self._choices: dict[Any, _Choice] = {}

    @property
    def provider(self) -> str:
        """Where the model runs."""
        return self._model.provider

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self._model.precision

    def close(self) -> None:
        """Free what the model holds."""
        self._model.close()

    def __getattr__(self, name: str) -> Any:
        # What else an engine's model can do is passed through as it is.
        return getattr(self._model, name)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Say that a job has begun whose inputs will come: others may wait a little for them."""
        with self._changed:
            self._jobs += 1
        self._readers.acquire()
        self._own.reads = True
        try:
            yield
        finally:
            self._own.reads = False
            self._readers.release()
            with self._changed:
                self._jobs -= 1
                self._changed.notify_all()

    def chosen(self) -> dict[str, Any]:
        """Return what was measured, for people: the batch that is used and seconds an item, of the shape used most."""
        with self._changed:
            if not self._choices:
                return {"batch": 1, "measured": False}
            return max(self._choices.values(), key=lambda one: one.runs).described(self._maximum)

    def measure(self, feeds: Feeds, known: bool | None = None) -> bool | None:
        """Run once, so that the first job need not wait for it, and find out whether many at once are faster.

        Parameters
        ----------
        feeds
            One item of the usual shape; what it holds does not matter.
        known
            What was measured before on this machine.

        Returns
        -------
        bool or None
            Whether many are faster; None where that was not measured.
        """
        key = _Item(feeds).key
        if self._maximum < 2 or known is not None:
            self._timed(feeds, 1)
            if self._maximum > 1:
                self._choices[key] = _Choice(decided=known)
            return known
        first = self._timed(feeds, 1)
        if first > _TOO_LONG_SECONDS:
            return None
        choice = self._choices[key] = _Choice()
        choice.one.extend(self._timed(feeds, 1) for _ in range(_MEASURED))
        try:
            joined = {name: np.concatenate([value] * self._maximum) for name, value in feeds.items()}
            self._timed(joined, self._maximum)
            choice.many.extend(self._timed(joined, self._maximum) for _ in range(2))
            choice.decided = min(choice.many) < min(choice.one)
        except EngineFailure:
            choice.decided = False
        return choice.decided

    def _timed(self, feeds: Feeds, items: int) -> float:
        """Return the seconds that an item takes: of the processor, where that is what computes, else of the clock."""
        clock = time.perf_counter if any(sign in self.provider.upper() for sign in _DEVICES) else time.process_time
        began = clock()
        self._model.infer(feeds)
        return (clock() - began) / items

    def infer(self, feeds: Feeds) -> Answer:
        """Run once, perhaps together with others; an error is that of these inputs alone."""
        reads = getattr(self._own, "reads", False)
        if reads:
            self._readers.release()
        try:
            return self._infer(feeds)
        finally:
            if reads:
                self._readers.acquire()

    def _infer(self, feeds: Feeds) -> Answer:
        item = _Item(feeds)
        with self._changed:
            self._queue.append(item)
            self._changed.notify_all()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: item.over or self._free())
                if item.over:
                    break
                # Whoever finds the model free leads the next run, for the first in the queue and those like it.
                # While it waits for more, nobody else may begin.
                self._running += self._lanes
                batch = self._gathered()
                if self._maximum == 1 or self._chose_one(batch[0].key):
                    self._running -= self._lanes - 1
                    lane = 1
                else:
                    lane = self._lanes
                self._changed.notify_all()
            try:
                self._run(batch)
            finally:
                with self._changed:
                    self._running -= lane
                    self._changed.notify_all()
        if item.error is not None:
            raise item.error
        assert item.answer is not None
        return item.answer

    def _free(self) -> bool:
        """Whether there is something to run, and a lane for it: all of them where it is not sure to be one."""
        if not self._queue:
            return False
        one = self._maximum == 1 or self._chose_one(self._queue[0].key)
        return self._running < self._lanes if one else not self._running

    def _chose_one(self, key: Any) -> bool:
        choice = self._choices.get(key)
        return choice is not None and choice.decided is False

    def _gathered(self) -> list[_Item]:
        """Take the next run's inputs out of the queue; called with the lock held."""
        key = self._queue[0].key
        choice = self._choices.get(key)
        if choice is None:
            if len(self._choices) >= _SHAPES:
                self._choices.pop(next(iter(self._choices)))
            choice = self._choices[key] = _Choice()
        if self._maximum > 1 and choice.wants_many():
            until = time.monotonic() + self._wait
            while (left := until - time.monotonic()) > 0 and self._like(key) < self._maximum and self._more_come():
                self._changed.wait(left)
        most = choice.size(min(self._like(key), self._maximum))
        taken: list[_Item] = []
        rows = 0
        for item in list(self._queue):
            if item.key == key and (not taken or rows + item.rows <= most):
                taken.append(item)
                rows += item.rows
                self._queue.remove(item)
        return taken

    def _like(self, key: Any) -> int:
        return sum(item.rows for item in self._queue if item.key == key)

    def _more_come(self) -> bool:
        return self._jobs > len(self._queue)

    def _run(self, batch: list[_Item]) -> None:
        choice = self._choices.get(batch[0].key) or _Choice()
        if len(batch) > 1:
            answers: list[Answer] | None
            began = time.perf_counter()
            try:
                answers = self._together(batch)
            except Exception:  # noqa: BLE001 - one by one it shows whose error it is
                answers = None
            if answers is not None:
                choice.took(batch, time.perf_counter() - began)
                for item, answer in zip(batch, answers, strict=True):
                    item.end(answer)
                return
        for item in batch:
            began = time.perf_counter()
            try:
                answer = self._model.infer(item.feeds)
            except BaseException as error:  # noqa: BLE001 - raised where the inputs came from
                item.fail(error)
            else:
                choice.took([item], time.perf_counter() - began)
                item.end(answer)
        if len(batch) > 1 and not any(item.error for item in batch):
            # It was no input's doing.
            choice.refuse_many()

    def _together(self, batch: list[_Item]) -> list[Answer]:
        rows = [item.rows for item in batch]
        feeds = {name: np.concatenate([item.feeds[name] for item in batch]) for name in batch[0].feeds}
        answer = self._model.infer(feeds)
        for name, value in answer.items():
            if value.ndim < self._ranks.get(name, 1) or len(value) != sum(rows):
                raise EngineFailure("broke", f"the model's {name} has no item of its own for each of its inputs")
        cuts = np.cumsum(rows)[:-1]
        parts = {name: np.split(value, cuts) for name, value in answer.items()}
        return [{name: part[number] for name, part in parts.items()} for number in range(len(batch))]


def shared(card: Card, model: Model) -> SharedEngine:
    """Return the engine of a card over its loaded model, for as many threads as the card's process works in."""
    from inference.perform import CardEngine

    # A graph that takes a bare volume has no axis to join several along.
    joins = card.task != "segmentation" or card.layout != "zyx"
    batching = BatchingModel(
        model,
        maximum=card.batch.maximum if joins else 1,
        wait_seconds=card.batch.wait_ms / 1000,
        # Memory is bounded by what one run of a volume takes.
        lanes=min(cores(), concurrency_of(card)) if card.inputs[0].kind == "radiograph" and _is_shared(model) else 1,
        readers=cores() + 1,
        # Without an axis of images, the boxes of one image would be taken for one box of each.
        ranks={role: rank + 1 for role, rank in RANKS.items()} if card.task == "detection" else {},
    )
    feeds = _example(card)
    if feeds is not None:
        _warm(card, batching, feeds)
    return SharedEngine(card, CardEngine(card, batching), batching)


def _is_shared(model: Model) -> bool:
    """Whether several threads may run a model at once, on its processor."""
    return model.provider.startswith(("onnxruntime:", "openvino:")) and "CPU" in model.provider.upper()


def _example(card: Card) -> Feeds | None:
    """Make up the usual input of a card that says its shape: noise, since zeros are quicker than pictures."""
    noise = np.random.default_rng(0).standard_normal
    if card.inputs[0].kind == "radiograph":
        step = card.preprocess[0]
        size = next((one.size for name in step.model_fields_set if hasattr(one := getattr(step, name), "size")), None)
        return {card.tensors["image"]: noise((1, 1, size, size), np.float32)} if isinstance(size, int) else None
    if card.layout == "ncdhw" and card.window is not None:
        return {card.tensors["image"]: noise((1, len(card.inputs), *card.window.size), np.float32)}
    return None


def _warm(card: Card, model: BatchingModel, feeds: Feeds) -> None:
    """Run a model for the first time, and measure once a machine and a model; no trouble with it is a job's."""
    from inference.engines.machine import cache_folder, signature

    folder = cache_folder() if card.batch.maximum > 1 else None
    said = (
        f"{card.digest[:32]}-{card.batch.maximum}-{threads_of(card)}-{signature()}-{model.provider}-{model.precision}"
    )
    note = None if folder is None else folder / "batches" / said.replace("/", "_")
    known = None
    if note is not None:
        with contextlib.suppress(OSError):
            known = {"many": True, "one": False}.get(note.read_text(encoding="ascii"))
    try:
        found = model.measure(feeds, known)
    except Exception:  # noqa: BLE001 - what it stumbles over may be the made-up input
        return
    if note is not None and found is not None and known is None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(exist_ok=True)
            note.write_text("many" if found else "one", encoding="ascii")


class SharedEngine:
    """An engine whose jobs may run in several threads, over a model that joins what they infer."""

    def __init__(self, card: Card, engine: Engine, model: BatchingModel) -> None:
        self.card = card
        self._engine = engine
        self.model = model

    def run(self, job: Job) -> Findings:
        """Run one job; see :class:`inference.engine.Engine`."""
        with self.model.under_way():
            return self._engine.run(job)

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()


class _Item:
    """The inputs of one call, and what became of them."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rows = min((len(value) for value in feeds.values() if value.ndim), default=1)
        self.key = tuple((name, value.dtype.str, value.shape[1:], value.ndim) for name, value in sorted(feeds.items()))
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.over = False

    def end(self, answer: Answer) -> None:
        self.answer, self.over = answer, True

    def fail(self, error: BaseException) -> None:
        self.error, self.over = error, True


@dataclass(slots=True)
class _Choice:
    """Which way is faster for inputs of one shape, by the best of the last runs of each."""

    one: deque[float] = field(default_factory=lambda: deque(maxlen=_MEASURED))
    many: deque[float] = field(default_factory=lambda: deque(maxlen=_MEASURED))
    runs: int = 0
    since: int = 0
    refused: int = 0
    #: What was measured when the model was loaded: nothing that happens later is as undisturbed.
    decided: bool | None = None

    def wants_many(self) -> bool:
        if self.decided is not None:
            return self.decided and self.refused < _MEASURED
        if self.refused >= _MEASURED:
            return False
        return len(self.many) < _MEASURED or self.many_is_faster()

    def many_is_faster(self) -> bool:
        return not self.one or not self.many or min(self.many) < min(self.one)

    def size(self, waiting: int) -> int:
        """Return how many of those waiting to take."""
        if waiting < 2 or self.refused >= _MEASURED:
            return 1
        if self.decided is not None:
            return waiting if self.decided else 1
        if len(self.many) < _MEASURED:
            return waiting
        if len(self.one) < _MEASURED:
            return 1
        faster = self.many_is_faster()
        self.since += 1
        if self.since >= _AGAIN_AFTER:
            self.since = 0
            faster = not faster
        return waiting if faster else 1

    def took(self, batch: list[_Item], seconds: float) -> None:
        self.runs += 1
        if self.decided is not None:
            return
        rows = sum(item.rows for item in batch)
        (self.many if len(batch) > 1 else self.one).append(seconds / rows)

    def refuse_many(self) -> None:
        """A batch broke: after some of them, the model is one that does not take batches."""
        self.refused += 1

    def described(self, maximum: int) -> dict[str, Any]:
        measured = self.decided is not None or (bool(self.one) and len(self.many) >= _MEASURED)
        faster = self.refused < _MEASURED and maximum > 1
        faster = faster and (self.many_is_faster() if self.decided is None else self.decided)
        return {
            "batch": maximum if faster else 1,
            "measured": measured,
            "seconds_one": round(min(self.one), 6) if self.one else None,
            "seconds_of_many": round(min(self.many), 6) if self.many else None,
        }
