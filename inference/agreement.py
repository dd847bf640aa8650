"""How far two ways to run one model agree, on the same images and through all that the card declares around it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.marking import dice, planes_of
from inference.perform import CardEngine

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Job, Model
    from inference.findings import Detection, Findings

    Feeds = dict[str, npt.NDArray[Any]]

__all__ = ["Agreement", "Bounds", "compare", "feeds_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a faster way may lie from the exact one.

    ``difference`` of any probability (of a measurement: as a share of its value), ``alike`` the least share of findings
    on the same side of their threshold (of a detector: of boxes that the other way has too), ``dice`` the least of any
    structure in any case.
    """

    difference: float = 0.02
    alike: float = 0.99
    dice: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What was compared and how far it lay apart; a task leaves what it does not have at its default.

    ``dice`` maps each structure's name to the least Dice coefficient of any case; a structure that neither way has
    found in a case counts as 1. ``boxes`` are those of both ways together. ``found_nothing``: a model that looks for
    structures or boxes has found none in any case, either way.
    """

    cases: int
    not_analysed: int
    largest_difference: float = 0.0
    mean_difference: float = 0.0
    alike: float = 1.0
    dice: Mapping[str, float] = field(default_factory=dict)
    boxes: int = 0
    found_nothing: bool = False
    exact_seconds: float = 0.0
    other_seconds: float = 0.0

    def failings(self, bounds: Bounds) -> tuple[str, ...]:
        """Return, in words, what lies outside the bounds; nothing where all is well."""
        found = []
        if not self.cases:
            found.append("no case could be analysed")
        elif self.found_nothing:
            found.append("nothing was found in any case, so nothing could be compared: take cases with findings")
        if not self.largest_difference <= bounds.difference:
            found.append(f"largest difference {self.largest_difference:.4f}, allowed {bounds.difference:g}")
        if not self.alike >= bounds.alike:
            found.append(f"{self.alike_words()}, needed {bounds.alike:.0%}")
        found += [
            f"Dice of {name} {value:.4f}, needed {bounds.dice:g}"
            for name, value in self.dice.items()
            if not value >= bounds.dice
        ]
        return tuple(found)

    def alike_words(self) -> str:
        """Return what ``alike`` says of a model of this kind."""
        of = "boxes that the other way has too" if self.boxes else "findings on the same side of their threshold"
        return f"{self.alike:.2%} of the {of}"


def feeds_of(
    card: Card, model: Model, jobs: Sequence[Job], *, most: int, progress: Callable[[int], None]
) -> list[Feeds]:
    """Return what the card's way feeds the model with for these jobs: at most ``most`` feeds, drawn evenly.

    Raises
    ------
    EngineFailure
        If the model broke.
    """
    recording = _Recording(model, most)
    engine = CardEngine(card, recording)
    for number, job in enumerate(jobs, start=1):
        engine.run(job)
        progress(number)
    return recording.kept


def compare(
    card: Card, exact: Model, other: Model, jobs: Sequence[Job], *, progress: Callable[[int], None]
) -> Agreement:
    """Run the same jobs both ways and compare the findings.

    Parameters
    ----------
    exact, other
        Two models that the card fits. Neither is closed.
    progress
        Called with the number of jobs that are done.

    Raises
    ------
    EngineFailure
        If one of them broke.
    """
    differences: list[float] = []
    alike: list[bool] = []
    least: dict[str, float] = {}
    seconds = [0.0, 0.0]
    cases = refused = boxes = masks = 0
    for number, job in enumerate(jobs, start=1):
        both: list[Findings] = []
        for which, model in enumerate((exact, other)):
            began = time.perf_counter()
            both.append(CardEngine(card, model).run(job))
            seconds[which] += time.perf_counter() - began
        one, two = both
        progress(number)
        if one.not_analysed and two.not_analysed:
            refused += 1
            continue
        cases += 1
        if one.not_analysed or two.not_analysed:
            # An answer on one side alone is as far apart as two answers can be.
            alike.append(False)
            continue
        for first, second in zip(one.classifications, two.classifications, strict=True):
            differences.append(abs(first.probability - second.probability))
            alike.append(first.present == second.present)
        for value, again in zip(one.measurements, two.measurements, strict=True):
            differences.append(abs(value.value - again.value) / max(abs(value.value), 1e-9))
        boxes += len(one.detections) + len(two.detections)
        masks += sum(said.segmentation is not None and bool(said.segmentation.labels.any()) for said in both)
        for found, others in ((one.detections, two.detections), (two.detections, one.detections)):
            for detection in found:
                same = [other for other in others if _overlap(detection, other) >= _SAME_PLACE]
                alike.append(bool(same))
                differences += [min(abs(detection.probability - other.probability) for other in same)] if same else []
        for name, coefficient in _dice(one, two).items():
            least[name] = min(least.get(name, 1.0), coefficient)
    return Agreement(
        cases=cases,
        not_analysed=refused,
        largest_difference=max(differences, default=0.0),
        mean_difference=float(np.mean(differences)) if differences else 0.0,
        alike=float(np.mean(alike)) if alike else 1.0,
        dice=least,
        boxes=boxes,
        found_nothing=card.task in ("detection", "segmentation") and not boxes + masks,
        exact_seconds=seconds[0],
        other_seconds=seconds[1],
    )


#: Boxes that share at least this much of what they cover together mark the same thing.
_SAME_PLACE = 0.5


def _overlap(one: Detection, two: Detection) -> float:
    """Return the intersection of two boxes over their union; 0 for other findings or images."""
    if (one.name, one.image) != (two.name, two.image):
        return 0.0
    rows = min(one.box[2], two.box[2]) - max(one.box[0], two.box[0])
    columns = min(one.box[3], two.box[3]) - max(one.box[1], two.box[1])
    shared = max(rows, 0.0) * max(columns, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one.box, two.box)]
    return shared / (sum(areas) - shared) if shared else 0.0


def _dice(one: Findings, two: Findings) -> dict[str, float]:
    if one.segmentation is None or two.segmentation is None:
        return {}
    found = {}
    for segment in one.segmentation.segments:
        first, second = (planes_of(mask, segment.label) for mask in (one.segmentation, two.segmentation))
        coefficient = dice(first, second)
        found[segment.name] = 1.0 if coefficient is None else coefficient
    return found


class _Recording:
    """A model that keeps an even draw of what it is fed with (reservoir sampling)."""

    def __init__(self, model: Model, most: int) -> None:
        self._model = model
        self._most = most
        self._seen = 0
        self._random = random.Random(0)  # noqa: S311 - a draw that is the same each time, not a secret
        self.kept: list[Feeds] = []

    @property
    def provider(self) -> str:
        return self._model.provider

    @property
    def precision(self) -> str:
        return self._model.precision

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self._seen += 1
        if len(self.kept) < self._most:
            self.kept.append({name: np.array(value) for name, value in feeds.items()})
        elif (place := self._random.randrange(self._seen)) < self._most:
            self.kept[place] = {name: np.array(value) for name, value in feeds.items()}
        return self._model.infer(feeds)

    def close(self) -> None:
        """Leave the model to its owner."""
