"""Concurrent calls of a model are joined where that is faster, and each gets what it would have got alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from inference.batching import BatchingModel
from inference.errors import EngineFailure

Array = npt.NDArray[Any]


class Doubling:
    """A model whose runs cost a fixed time and a time an item; it answers twice its input and notes its batches."""

    provider, precision = "CPU", "fp32"

    def __init__(self, seconds: float = 0.0, seconds_each: float = 0.0, breaks: Callable[[Array], bool] | None = None):
        self.seconds, self.seconds_each, self.breaks = seconds, seconds_each, breaks
        self.batches: list[int] = []
        self.order: list[float] = []
        self.at_once = 0

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.at_once += 1
        assert self.at_once == 1, "two calls at the same time"
        image = feeds["image"]
        self.batches.append(len(image))
        self.order.extend(float(row.flat[0]) for row in image)
        try:
            time.sleep(self.seconds + self.seconds_each * len(image))
            if self.breaks is not None and self.breaks(image):
                raise EngineFailure("broke", "cannot stand it")
            return {"output": image * 2}
        finally:
            self.at_once -= 1

    def close(self) -> None:
        pass


def values(number: int, shape: tuple[int, ...] = (1, 1, 4, 4)) -> dict[str, Array]:
    return {"image": np.full(shape, float(number), np.float32)}


def all_at_once(model: BatchingModel, inputs: list[dict[str, Array]]) -> list[Any]:
    """Call from a thread each; what was raised stands in the place of the answer."""

    ready = threading.Barrier(len(inputs))

    def call(feeds: dict[str, Array]) -> Any:
        with model.under_way():
            ready.wait(30)
            try:
                return model.infer(feeds)["output"]
            except EngineFailure as failure:
                return failure

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(call, inputs))


def test_calls_that_come_together_run_together_and_each_gets_its_own_answer() -> None:
    inner = Doubling(seconds=0.01)
    model = BatchingModel(inner, maximum=8, wait_seconds=0.05)
    answers = all_at_once(model, [values(n) for n in range(16)])
    assert [answer.tolist() for answer in answers] == [(values(n)["image"] * 2).tolist() for n in range(16)]
    assert max(inner.batches) == 8
    assert sum(inner.batches) == 16


def test_batches_are_kept_where_they_are_faster_and_given_up_where_they_are_not() -> None:
    quicker = BatchingModel(Doubling(seconds=0.01), maximum=4, wait_seconds=0.05)
    slower = BatchingModel(Doubling(seconds_each=0.002), maximum=4, wait_seconds=0.05)
    # A run of many takes longer for each of them than a run of one does.
    slower._model.seconds = 0.0
    original = slower._model.infer
    slower._model.infer = lambda feeds: (time.sleep(0.004 * (len(feeds["image"]) - 1)), original(feeds))[1]  # type: ignore[method-assign]
    for model in (quicker, slower):
        for _ in range(6):
            all_at_once(model, [values(n) for n in range(8)])
    assert quicker.chosen()["batch"] == 4
    assert slower.chosen()["batch"] == 1
    assert slower.chosen()["measured"]
    before = len(slower._model.batches)
    all_at_once(slower, [values(n) for n in range(8)])
    assert set(slower._model.batches[before:]) == {1}


def test_what_breaks_on_one_input_spoils_no_other() -> None:
    model = BatchingModel(
        Doubling(seconds=0.01, breaks=lambda image: bool((image == 3).any())), maximum=8, wait_seconds=0.1
    )
    for _ in range(5):
        answers = all_at_once(model, [values(n) for n in range(8)])
        assert [n for n, answer in enumerate(answers) if isinstance(answer, EngineFailure)] == [3]
        assert all(float(answer.flat[0]) == 2 * n for n, answer in enumerate(answers) if n != 3)
    # One input that breaks every batch it is in does not make the model one that takes no batches.
    assert model.chosen()["batch"] == 8


def test_a_model_that_takes_no_batches_is_found_out_and_still_answers() -> None:
    inner = Doubling(breaks=lambda image: len(image) > 1)
    model = BatchingModel(inner, maximum=4, wait_seconds=0.05)
    for _ in range(6):
        answers = all_at_once(model, [values(n) for n in range(4)])
        assert [float(answer.flat[0]) for answer in answers] == [0, 2, 4, 6]
    assert model.chosen()["batch"] == 1
    assert sum(1 for size in inner.batches if size > 1) == 3


def test_an_answer_without_an_item_for_each_input_is_not_shared_out() -> None:
    class Summing(Doubling):
        def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"output": super().infer(feeds)["output"].sum(axis=0, keepdims=True)}

    model = BatchingModel(Summing(seconds=0.01), maximum=4, wait_seconds=0.05)
    answers = all_at_once(model, [values(n) for n in range(4)])
    assert [float(answer.flat[0]) for answer in answers] == [0, 2, 4, 6]


def test_as_many_boxes_as_inputs_are_not_taken_for_one_box_of_each() -> None:
    class Finding(Doubling):
        """Finds as many boxes as it sees images, all of them in the first."""

        def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            found = super().infer(feeds)["output"]
            return {"output": np.repeat(found[:1, 0, 0], len(found), axis=0)}

    model = BatchingModel(Finding(seconds=0.01), maximum=4, wait_seconds=0.05, ranks={"output": 3})
    answers = all_at_once(model, [values(number) for number in range(1, 5)])
    assert [answer.tolist() for answer in answers] == [[[2.0 * number] * 4] for number in range(1, 5)]


def test_other_shapes_run_by_themselves_and_none_is_passed_over_for_ever() -> None:
    inner = Doubling(seconds=0.002)
    model = BatchingModel(inner, maximum=8, wait_seconds=0.01)
    stop = threading.Event()

    def crowd() -> None:
        while not stop.is_set():
            model.infer(values(1))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            pool.submit(crowd)
        try:
            other = model.infer(values(9, (1, 1, 2, 2)))["output"]
            assert other.shape == (1, 1, 2, 2)
            started = len(inner.order)
            model.infer(values(8, (1, 1, 2, 2)))
            # It came behind at most what had been waiting before it and the run under way.
            assert inner.order.index(8.0) - started < 24
        finally:
            stop.set()


def test_which_way_is_faster_is_measured_before_the_first_job_and_can_be_told_again() -> None:
    class OnDevice(Doubling):
        provider = "GPU"

    quicker, slower = OnDevice(seconds=0.004), OnDevice(seconds_each=0.002)
    slower.seconds = -0.001
    for inner, many in ((quicker, True), (slower, False)):
        model = BatchingModel(inner, maximum=4, wait_seconds=0.05)
        assert model.measure(values(0)) is many
        assert model.chosen()["batch"] == (4 if many else 1)
        inner.batches.clear()
        all_at_once(model, [values(n) for n in range(8)])
        assert (max(inner.batches) > 1) is many
    again = BatchingModel(OnDevice(seconds=0.004), maximum=4)
    assert again.measure(values(0), known=False) is False
    assert again.chosen() | {"batch": 1, "measured": True} == again.chosen()


def test_runs_of_one_overlap_in_a_model_that_several_threads_may_call() -> None:
    together = threading.Barrier(2)

    class Meeting(Doubling):
        def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            together.wait(30)
            return {"output": feeds["image"] * 2}

    model = BatchingModel(Meeting(), lanes=2)
    assert [float(one.flat[0]) for one in all_at_once(model, [values(n) for n in range(4)])] == [0, 2, 4, 6]


def test_jobs_that_wait_for_the_model_leave_reading_to_others() -> None:
    model = BatchingModel(Doubling(seconds=0.01), maximum=4, wait_seconds=5.0, readers=1)
    model.measure(values(0), known=True)

    def job(number: int) -> float:
        with model.under_way():
            return float(model.infer(values(number))["output"].flat[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(4))) == [0, 2, 4, 6]
    assert max(model._model.batches) > 1  # type: ignore[attr-defined]


def test_one_alone_waits_for_nobody() -> None:
    model = BatchingModel(Doubling(), maximum=8, wait_seconds=30.0)
    began = time.monotonic()
    with model.under_way():
        model.infer(values(1))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("rows", [2, 3])
def test_calls_with_several_rows_are_split_where_they_were_joined(rows: int) -> None:
    inner = Doubling(seconds=0.01)
    model = BatchingModel(inner, maximum=6, wait_seconds=0.05)
    inputs = [{"image": np.arange(rows * 4, dtype=np.float32).reshape(rows, 1, 2, 2) + n} for n in range(5)]
    for feeds, answer in zip(inputs, all_at_once(model, inputs), strict=True):
        np.testing.assert_array_equal(answer, feeds["image"] * 2)
    assert max(inner.batches) == 6
