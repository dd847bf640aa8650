"""Whether what a model reads and says is still what it was: the population stability index, feature by feature.

The index is the symmetric relative entropy of two histograms, sum over bins of (now - then) * ln(now / then). Below
0.1 nothing has changed that matters, from 0.25 on much has (N. Siddiqi, *Credit Risk Scorecards*, Wiley 2006, ch. 9).
Those limits know nothing of how few were counted: without any change the index of n now and m then over B bins spreads
as (1/n + 1/m) times a chi-square of B - 1 degrees of freedom (B. Yurdakul, *Statistical Properties of Population
Stability Index*, Western Michigan University 2018). So a feature has only changed where the index is above what chance
reaches once in a thousand times, too.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy import Connection

from inference.card import Card, Histogram
from inference.registry import Registry, parted
from node.settings import Settings
from node.workflow.models import Models, View, store_of
from storage import drift

__all__ = ["MODERATE", "MUCH", "Feature", "Stability", "Weighing", "index", "stability", "weighed"]

MODERATE, MUCH = 0.1, 0.25
_BINS = 10
#: With so few different values each is a bin of its own.
_DISTINCT = 10
_OTHER = "other"
#: Fewer than so many tell nothing.
_LEAST = 30
#: Standard normal quantile of 0.999.
_RARE = 3.0902

Level = Literal["steady", "moderate", "much", "unknown"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature then and now.

    ``bins`` are the names of the bins in order; ``then`` and ``now`` the shares in them (each sums to 1); ``chance``
    what the index reaches by chance once in a thousand times.
    """

    name: str
    psi: float | None
    chance: float
    level: Level
    bins: tuple[str, ...]
    then: tuple[float, ...]
    now: tuple[float, ...]
    then_count: int
    now_count: int


@dataclass(frozen=True, slots=True)
class Stability:
    """A version of a model: where its reference comes from, and every feature, the most changed first."""

    model: str
    version: str
    digest: str
    observations: int
    reference: Literal["card", "first inputs"]
    features: tuple[Feature, ...]

    @property
    def level(self) -> Level:
        """Return the worst level of any feature."""
        order: tuple[Level, ...] = ("much", "moderate", "steady")
        return next((level for level in order if any(one.level == level for one in self.features)), "unknown")


def index(then: Sequence[float], now: Sequence[float]) -> float:
    """Return the population stability index of two histograms of shares above 0."""
    return sum((b - a) * math.log(b / a) for a, b in zip(then, now, strict=True))


def weighed(
    name: str, then: Sequence[float | str] | Histogram, now: Sequence[float | str], *, least: int = _LEAST
) -> Feature:
    """Weigh one feature.

    Parameters
    ----------
    then
        Values of the reference, or the histogram that a card declares of them.
    now
        Values of the window.
    """
    edges, words = _bins(then)
    if isinstance(then, Histogram):
        # A card tells shares, not of how many: as of many.
        then_count, counted = 100_000, [share * 100_000 for share in then.shares]
        counted += [0.0] * (len(words) - len(counted))
    else:
        then_count, counted = len(then), _counted(then, edges, words)
    now_counted = _counted(now, edges, words)
    bins = len(counted)
    # Half a count in every bin, so that an empty one has a logarithm.
    before = [(one + 0.5) / (then_count + 0.5 * bins) for one in counted]
    after = [(one + 0.5) / (len(now) + 0.5 * bins) for one in now_counted]
    known = then_count >= least and len(now) >= least
    psi = index(before, after) if known else None
    chance = _by_chance(then_count, len(now), bins) if known else 0.0
    level: Level = "steady"
    if psi is None:
        level = "unknown"
    elif psi > chance:
        level = "much" if psi >= MUCH else "moderate" if psi >= MODERATE else "steady"
    return Feature(
        name=name,
        psi=psi,
        chance=chance,
        level=level,
        bins=tuple(words) if words else _named(edges),
        then=_shares(counted, then_count),
        now=_shares(now_counted, len(now)),
        then_count=0 if isinstance(then, Histogram) else then_count,
        now_count=len(now),
    )


def stability(
    connection: Connection, observed: drift.Observed, card: Card | None, *, reference: int, window: int
) -> Stability:
    """Weigh the last ``window`` observations of a model against its card's histograms, or against its first ones."""
    declared = dict(card.reference) if card is not None else {}
    first = [] if declared else drift.between(connection, observed.digest, 1, reference)
    begin = max(observed.count - window, 0 if declared else reference) + 1
    last = drift.between(connection, observed.digest, begin, observed.count)
    names = list(declared) or sorted({name for one in first for name in one})
    features = [weighed(name, declared.get(name) or _values(first, name), _values(last, name)) for name in names]
    features.sort(key=lambda one: (-(one.psi or 0.0), one.name))
    return Stability(
        model=observed.model,
        version=observed.version,
        digest=observed.digest,
        observations=observed.count,
        reference="card" if declared else "first inputs",
        features=tuple(features),
    )


class Weighing:
    """Weighs every model of which there are observations, anew only where there are more of them; made once a process.

    Cards are read when first asked: they may declare what a model's inputs are held against.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models: Models | None = None
        self._held: dict[str, Stability] = {}
        self._lock = threading.Lock()

    def weigh(self, connection: Connection) -> list[Stability]:
        """Return every version that there are observations of, by the model's name, the last observed first."""
        with self._lock:
            there = drift.observed(connection)
            self._held = {one.digest: self._of(connection, one) for one in there}
            return [self._held[one.digest] for one in there]

    def unfit(self, connection: Connection) -> Mapping[tuple[str, str], str]:
        """Return each version that a route would have read studies, by its stage, and that cannot run here, and why."""
        routed = {parted(model)[0] for route in self._settings.route_list for model in route.models}
        with self._lock:
            unfit = self._view(connection).unfit
        return {(model, version): why for (model, version), why in unfit.items() if model in routed}

    def _view(self, connection: Connection) -> View:
        if self._models is None:
            # Asked for what it declares and never run, so nothing is hashed: this is within a transaction.
            on_disk = Registry.from_folder(self._settings.models, lenient=True, hashed=False)
            self._models = Models(on_disk, store_of(self._settings))
        return self._models.view(connection)

    def _of(self, connection: Connection, observed: drift.Observed) -> Stability:
        held = self._held.get(observed.digest)
        if held is not None and held.observations == observed.count:
            return held
        card = self._view(connection).of_digest(observed.digest)
        kept = self._settings.drift
        return stability(connection, observed, card, reference=kept.reference, window=kept.window)


def _shares(counted: Sequence[float], of: int) -> tuple[float, ...]:
    return tuple(one / of if of else 0.0 for one in counted)


def _values(observations: Iterable[Mapping[str, Any]], name: str) -> list[float | str]:
    return [one[name] for one in observations if isinstance(one.get(name), (int, float, str))]


def _bins(then: Sequence[float | str] | Histogram) -> tuple[list[float], list[str]]:
    """Return inner edges of the bins of numbers, or the words (the last of them for all others)."""
    if isinstance(then, Histogram):
        return (list(then.edges), []) if then.edges else ([], [*then.categories, _OTHER])
    numbers = sorted(one for one in then if not isinstance(one, str))
    if len(numbers) < len(then) or len(set(numbers)) <= _DISTINCT:
        frequent = Counter(_word(one) for one in then).most_common(_DISTINCT)
        return [], [*sorted(word for word, _ in frequent), _OTHER]
    places = (round(len(numbers) * part / _BINS) for part in range(1, _BINS))
    return sorted({numbers[min(place, len(numbers) - 1)] for place in places}), []


def _word(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _counted(values: Sequence[float | str], edges: Sequence[float], words: Sequence[str]) -> list[float]:
    counts = [0.0] * (len(words) or len(edges) + 1)
    places = {word: place for place, word in enumerate(words)}
    for one in values:
        if words:
            counts[places.get(_word(one), len(words) - 1)] += 1
        elif not isinstance(one, str):
            counts[bisect_left(edges, one)] += 1
    return counts


def _named(edges: Sequence[float]) -> tuple[str, ...]:
    shown = [f"{edge:.4g}" for edge in edges]
    middle = [f"{low} to {high}" for low, high in pairwise(shown)]
    return (f"up to {shown[0]}", *middle, f"above {shown[-1]}") if shown else ("all",)


def _by_chance(then: int, now: int, bins: int) -> float:
    """Return the index's quantile without any change, by Wilson and Hilferty's normal form of the chi-square."""
    freedom = max(bins - 1, 1)
    part = 2 / (9 * freedom)
    return (1 / then + 1 / now) * float(freedom * (1 - part + _RARE * math.sqrt(part)) ** 3)
