"""How many threads and jobs an engine's process gets: threads of one job times jobs is not to exceed the cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inference.card import TENSOR_ENGINES

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["CORES_VARIABLE", "allotted", "concurrency_of", "cores", "threads_of"]


#: Tells an engine's process how many cores it gets, where several such processes share the machine.
CORES_VARIABLE = "ENGINE_CORES"


def cores() -> int:
    """Return how many cores this process may use."""
    return min(len(os.sched_getaffinity(0)), allotted())


def allotted() -> int:
    """Return how many cores this process was given, whether all of them are there or not; else those that are there.

    An engine that is tried from a shell with fewer cores than the node has is still to do what the node's would.
    """
    given = os.environ.get(CORES_VARIABLE, "")
    return max(1, int(given)) if given.isdigit() else len(os.sched_getaffinity(0))


def threads_of(card: Card) -> int:
    """Return how many threads one run of the model gets: what its card says, else every core of its process."""
    return card.resources.threads or cores()


def concurrency_of(card: Card) -> int:
    """Return how many jobs its process takes at once: what its card says, else as many as it can make use of.

    Radiographs are read and prepared while others are inferred, and fill a batch; volumes are large, and run one at a
    time.
    """
    if card.resources.concurrency:
        return card.resources.concurrency
    if card.engine in TENSOR_ENGINES and card.inputs[0].kind == "radiograph":
        return max(2, card.batch.maximum)
    return 1
