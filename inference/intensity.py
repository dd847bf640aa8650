"""Declared steps on the intensities of a volume: clipped, scaled or standardised, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import InputRefused

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.steps import Over, PreprocessStep, Scale, ZScore

    Values = npt.NDArray[np.float32]
    Change = Callable[[Values], Values]

__all__ = ["changes"]

#: Percentiles are read off so many bins between the least and the largest value.
_BINS = 1 << 16
#: One voxel far off makes these bins wide, so that each is divided anew until it is this share of what lies between the
#: percentiles; so often at most, since each time costs a look at the whole volume.
_FINE, _PASSES = 1 / 4096, 4
#: So many values are sorted into bins at once.
_AT_ONCE = 1 << 20


def changes(steps: Sequence[PreprocessStep], pieces: Callable[[Over], Iterable[Values]]) -> Change:
    """Return what turns one piece of a volume into what the model reads.

    Parameters
    ----------
    steps
        Only those on intensities are looked at.
    pieces
        Gives the whole volume anew, piece by piece, for steps that depend on all of it: float32, of any shape. It is
        told whether what lies beyond the images counts.

    Raises
    ------
    InputRefused
        ``pixels-constant``, when a step would divide by nothing, since all values are alike.
    """
    done: list[Change] = []

    def so_far(values: Values) -> Values:
        for change in done:
            values = change(values)
        return values

    def all_of(over: Over) -> Callable[[], Iterable[Values]]:
        return lambda: map(so_far, pieces(over))

    for step in steps:
        if step.clip:
            done.append(_clipped(step.clip.low, step.clip.high))
        elif step.scale:
            done.append(_scaled(step.scale, all_of(step.scale.over)))
        elif step.z_score:
            done.append(_standardised(step.z_score, all_of(step.z_score.over)))
    return so_far


def _clipped(low: float, high: float) -> Change:
    def change(values: Values) -> Values:
        return np.clip(values, np.float32(low), np.float32(high), out=values)

    return change


def _scaled(step: Scale, pieces: Callable[[], Iterable[Values]]) -> Change:
    if step.percentiles is not None:
        low, high = _percentiles(pieces, step.percentiles)
    else:
        assert step.low is not None
        assert step.high is not None
        low, high = step.low, step.high
    if not low < high:
        raise InputRefused("pixels-constant", "the volume has the same value all over, so it shows nothing")

    def change(values: Values) -> Values:
        values -= np.float32(low)
        values *= np.float32(1.0 / (high - low))
        return np.clip(values, 0, 1, out=values) if step.clip else values

    return change


def _standardised(step: ZScore, pieces: Callable[[], Iterable[Values]]) -> Change:
    count, total, squares = 0, 0.0, 0.0
    for piece in pieces():
        values = piece[piece != 0] if step.nonzero else piece
        count += values.size
        total += float(values.sum(dtype=np.float64))
        squares += float(np.square(values, dtype=np.float64).sum())
    mean = total / max(count, 1)
    deviation = (max(squares / max(count, 1) - mean * mean, 0.0)) ** 0.5
    if deviation == 0:
        raise InputRefused("pixels-constant", "the volume has the same value all over, so it shows nothing")

    def change(values: Values) -> Values:
        outside = values == 0 if step.nonzero else None
        values -= np.float32(mean)
        values /= np.float32(deviation)
        if outside is not None:
            values[outside] = 0
        return values

    return change


def _percentiles(pieces: Callable[[], Iterable[Values]], wanted: tuple[float, float]) -> tuple[float, float]:
    bounds = [(float(piece.min()), float(piece.max())) for piece in pieces()]
    if not bounds:
        return 0.0, 0.0
    least, largest = min(low for low, _ in bounds), max(high for _, high in bounds)
    if wanted == (0, 100) or least == largest:
        return least, largest
    places = [_Place(share / 100, least, largest) for share in wanted]
    for _ in range(_PASSES):
        open_places = [place for place in places if not place.exact]
        for place in open_places:
            place.begin()
        for piece in pieces():
            for place in open_places:
                place.count(piece)
        for place in open_places:
            place.narrow()
        low, high = (place.value for place in places)
        width = max(place.width for place in places)
        if width <= _FINE * (high - low) or all(place.exact for place in places):
            break
    # What lies within one bin to the last is one value.
    return (low, high) if high - low > width else (low, low)


class _Place:
    """Closes in on one percentile: in which bin it lies, then where within that."""

    def __init__(self, share: float, least: float, largest: float) -> None:
        self._share = share
        self._low, self._high = least, largest
        self.value = least
        self.begin()

    @property
    def width(self) -> float:
        return self._high - self._low

    @property
    def exact(self) -> bool:
        """Whether no two values of single precision lie in the bin."""
        return self.width <= float(np.spacing(np.float32(max(abs(self._low), abs(self._high)))))

    def begin(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._below, self._total = 0, 0

    def count(self, piece: Values) -> None:
        flat = piece.reshape(-1)
        self._total += flat.size
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            self._below += int(np.count_nonzero(part < self._low))
            # In double precision: edges of bins this narrow fall together in the values' own.
            inside = part[(part >= self._low) & (part <= self._high)].astype(np.float64)
            inside -= self._low
            inside *= _BINS / self.width
            bins = np.minimum(inside.astype(np.intp), _BINS - 1)
            self._counts += np.bincount(bins, minlength=_BINS)

    def narrow(self) -> None:
        edges = np.linspace(self._low, self._high, _BINS + 1)
        reached = self._below + np.concatenate([[0], np.cumsum(self._counts)])
        rank = self._share * self._total
        self.value = float(np.interp(rank, reached, edges))
        last = int(np.clip(np.searchsorted(reached, rank), 1, _BINS))
        self._low, self._high = float(edges[last - 1]), float(edges[last])
