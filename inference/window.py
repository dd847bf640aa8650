"""A model over a volume larger than what it reads at once: windows that slide, in memory bounded by the window.

Only as many planes as a window is deep are held with their scores; what no later window covers is given away and
forgotten. Neighbours are blended with the weights that MONAI's ``sliding_window_inference`` has, which most networks
were validated with: alike, or falling off from a window's middle, since a network sees least at its edges (Isensee et
al., nnU-Net, Nature Methods 18, 2021).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.steps import Window

    Scores = npt.NDArray[np.float32]

__all__ = ["slide", "starts"]

#: The standard deviation of the weights, as a share of a window's edge.
_SIGMA = 0.125
#: The least weight of a voxel, where the largest is 1: one that only corners cover still gets an answer.
_LEAST = 1e-3


def starts(total: int, size: int, overlap: float) -> list[int]:
    """Return where windows of ``size`` begin along an axis, a fixed step apart; the last one is moved back to fit.

    So does MONAI's sliding window, which most networks were validated with. An axis that is shorter than a window has
    one, which begins at or before 0.
    """
    if total <= size:
        return [-((size - total) // 2)]
    step = max(1, int(size * (1 - overlap)))
    return [*range(0, total - size, step), total - size]


def slide(
    shape: tuple[int, int, int],
    window: Window,
    *,
    read: Callable[[int, int], Scores],
    predict: Callable[[Scores], Scores],
    write: Callable[[int, Scores], None],
    batch: int = 1,
) -> None:
    """Run a model over a volume, window by window.

    Parameters
    ----------
    shape
        Of the volume: planes, rows, columns, in whatever order the model's axes have.
    read
        (first plane, last plane + 1) to float32 (channels, planes, rows, columns). Called once for each step of the
        windows along the planes; beyond the volume the model sees 0.
    predict
        float32 (windows, channels, *size) to float32 (windows, scores, *size).
    write
        Takes (first plane, scores): float32 (scores, planes, rows, columns), blended. Each plane comes once, in order.
    batch
        How many windows the model takes at once.

    Notes
    -----
    A window in which every voxel of each channel is the same (air around a patient) is run once for each such value
    and remembered: the same input has the same answer.
    """
    depth, rows, columns = window.size
    places = [starts(total, size, window.overlap) for total, size in zip(shape, window.size, strict=True)]
    weights = _Weights(window, places, shape)
    padded = (max(shape[1], rows), max(shape[2], columns))
    held: Scores | None = None
    known: dict[bytes, Scores] = {}
    # Along axes that are too short, everything is shifted so that the padded volume begins at 0.
    shift = [max(0, -place[0]) for place in places]
    for number, first in enumerate(places[0]):
        block = _padded(read(max(first, 0), min(first + depth, shape[0])), window.size, shift)
        corners = [(y + shift[1], x + shift[2]) for y in places[1] for x in places[2]]
        for (top, left), answer in _answers(block, corners, window, predict, batch, known):
            if held is None:
                held = np.zeros((answer.shape[0], depth, *padded), np.float32)
            held[:, :, top : top + rows, left : left + columns] += weights.applied(answer)
        assert held is not None
        last = number == len(places[0]) - 1
        done = depth if last else places[0][number + 1] - first
        begin = max(first, 0)
        planes = slice(shift[0], shift[0] + shape[0]) if shift[0] else slice(0, min(done, shape[0] - begin))
        weights.divide(held, begin, done)
        body = (planes, slice(shift[1], shift[1] + shape[1]), slice(shift[2], shift[2] + shape[2]))
        write(begin, held[:, *body])
        if not last:
            for score in held:
                # One by one: source and target overlap, so each is copied on its way.
                score[: depth - done] = score[done:]
            held[:, depth - done :] = 0


def _answers(
    block: Scores,
    corners: Sequence[tuple[int, int]],
    window: Window,
    predict: Callable[[Scores], Scores],
    batch: int,
    known: dict[bytes, Scores],
) -> Iterator[tuple[tuple[int, int], Scores]]:
    """Yield each corner with the model's answer to its window."""
    _, rows, columns = window.size
    waiting: list[tuple[tuple[int, int], Scores]] = []
    for top, left in corners:
        piece = block[:, :, top : top + rows, left : left + columns]
        value = piece[:, :1, :1, :1]
        if (piece[:, 0] == value[:, 0]).all() and (piece == value).all():
            key = np.ascontiguousarray(value).tobytes()
            if key not in known:
                known[key] = _mirrored(piece[None], window.mirror, predict)[0]
            yield (top, left), known[key]
            continue
        waiting.append(((top, left), piece))
        if len(waiting) == batch:
            yield from _together(waiting, window, predict)
            waiting = []
    if waiting:
        yield from _together(waiting, window, predict)


def _together(
    waiting: Sequence[tuple[tuple[int, int], Scores]], window: Window, predict: Callable[[Scores], Scores]
) -> Iterator[tuple[tuple[int, int], Scores]]:
    answers = _mirrored(np.stack([piece for _, piece in waiting]), window.mirror, predict)
    yield from zip((corner for corner, _ in waiting), answers, strict=True)


def _mirrored(pieces: Scores, mirror: Sequence[int], predict: Callable[[Scores], Scores]) -> Scores:
    """Return the mean over all combinations of flips along the named axes; without any, the plain answer."""
    answer = predict(np.ascontiguousarray(pieces))
    combinations = [
        tuple(axis + 2 for axis in chosen)
        for count in range(1, len(mirror) + 1)
        for chosen in itertools.combinations(sorted(set(mirror)), count)
    ]
    if not combinations:
        return answer
    answer = answer.copy()
    for axes in combinations:
        answer += np.flip(predict(np.ascontiguousarray(np.flip(pieces, axes))), axes)
    answer /= len(combinations) + 1
    return answer


def _padded(block: Scores, size: tuple[int, int, int], shift: Sequence[int]) -> Scores:
    wanted = tuple(max(have, want) for have, want in zip(block.shape[1:], size, strict=True))
    if block.shape[1:] == wanted:
        return block
    larger = np.zeros((block.shape[0], *wanted), np.float32)
    inside = tuple(slice(before, before + have) for before, have in zip(shift, block.shape[1:], strict=True))
    larger[:, *inside] = block
    return larger


class _Weights:
    """What a window's answer counts in each of its voxels, and what all that cover a plane count together.

    The weights are a product along the axes but for their floor, so the sum of them has no such form. It is worked out
    for a plane when that is done with, from the few windows that cover it: a volume of sums is never held.
    """

    def __init__(self, window: Window, places: Sequence[Sequence[int]], shape: tuple[int, int, int]) -> None:
        self._depth, self._rows, self._columns = window.size
        self._planes, self._tops, self._lefts = ([place - min(axis[0], 0) for place in axis] for axis in places)
        self._padded = (max(shape[1], self._rows), max(shape[2], self._columns))
        self._each = _window_weights(window.size) if window.blend == "gaussian" else None
        counts = [
            np.bincount(np.ravel([np.arange(begin, begin + size) for begin in begins])).astype(np.float32)
            for begins, size in ((self._tops, self._rows), (self._lefts, self._columns))
        ]
        #: Of windows that count alike: how many cover each pixel of a plane, for each that lies on the plane.
        self._alike = counts[0][:, None] * counts[1]

    def applied(self, answer: Scores) -> Scores:
        """Return a window's answer with its weights."""
        return answer if self._each is None else answer * self._each

    def divide(self, held: Scores, first: int, count: int) -> None:
        """Divide the first ``count`` planes by what they were weighted with, in place.

        Parameters
        ----------
        held
            float32, (scores, window's depth, rows, columns): sums, the first plane being ``first``.
        """
        for plane in range(count):
            held[:, plane] /= self._over(first + plane)

    def _over(self, plane: int) -> Scores:
        offsets = [plane - begin for begin in self._planes if begin <= plane < begin + self._depth]
        if self._each is None:
            return self._alike * np.float32(len(offsets))
        # Windows side by side make the same strip wherever it begins.
        weights = self._each[offsets].sum(axis=0)
        strip = np.zeros((self._rows, self._padded[1]), np.float32)
        for left in self._lefts:
            strip[:, left : left + self._columns] += weights
        total = np.zeros(self._padded, np.float32)
        for top in self._tops:
            total[top : top + self._rows] += strip
        return total


def _window_weights(size: tuple[int, int, int]) -> Scores:
    """Return what MONAI's ``compute_importance_map`` has for a Gaussian: its product along the axes, with a floor."""
    falls = [
        np.exp(-0.5 * ((np.arange(edge) - (edge - 1) / 2) / (_SIGMA * edge)) ** 2).astype(np.float32) for edge in size
    ]
    weights: Scores = falls[0][:, None, None] * falls[1][:, None] * falls[2]
    return np.maximum(weights, max(float(weights.min()), _LEAST), out=weights)
