"""Declared steps on the intensities of a volume: clipped, scaled or standardised, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import InputRefused

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.steps import PreprocessStep, Scale, ZScore

    Values = npt.NDArray[np.float32]
    Change = Callable[[Values], Values]

__all__ = ["changes"]

#: Percentiles are read off so many bins between the least and the largest value.
_BINS = 1 << 16


def changes(steps: Sequence[PreprocessStep], pieces: Callable[[], Iterable[Values]]) -> Change:
    """Return what turns one piece of a volume into what the model reads.

    Parameters
    ----------
    steps
        Only those on intensities are looked at.
    pieces
        Gives the whole volume anew, piece by piece, for steps that depend on all of it: float32, of any shape.

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

    for step in steps:
        if step.clip:
            done.append(_clipped(step.clip.low, step.clip.high))
        elif step.scale:
            done.append(_scaled(step.scale, lambda: map(so_far, pieces())))
        elif step.z_score:
            done.append(_standardised(step.z_score, lambda: map(so_far, pieces())))
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
    least, largest = min(low for low, _ in bounds), max(high for _, high in bounds)
    if wanted == (0, 100) or least == largest:
        return least, largest
    counts = np.zeros(_BINS, np.int64)
    for piece in pieces():
        counts += np.histogram(piece, bins=_BINS, range=(least, largest))[0]
    shares = np.cumsum(counts) / counts.sum() * 100
    edges = np.linspace(least, largest, _BINS + 1)
    found = np.interp(wanted, np.concatenate([[0.0], shares]), edges)
    return float(found[0]), float(found[1])
