"""Is this picture a frontal radiograph of a human chest? Asked of the pixels alone, before a model reads them.

A header says CHEST over a dog, a hand or a test pattern as easily as over a chest. So the picture itself is asked, in
three steps that can be told and shown:

1. **Where would the chest be?** A drawing of two dark lung fields beside a bright mediastinum, in four builds (slim,
   wide, deep and shallow breath), is laid over the picture at every size and place; where it agrees best (normalised
   cross-correlation, over the whole and over each lung by itself) is the place. Without two such fields there is no
   chest.
2. **Is it one?** What lies at that place, with a margin, brought to 20 x 20 values, and the figures of step 1 go
   through a small network (24 hidden units; ``training/plausibility``), trained on synthetic frontal and lateral
   radiographs, heads, abdomens, slices and patterns. No picture of a patient and none of an animal went into it.
3. **Is it a projection?** A beam adds up all that it meets, so a radiograph has many tones. In a slice all soft tissue
   has one, and a coronal slice through the lungs looks like a chest otherwise. What is clearly a chest is not asked.

A picture that is none is looked at again as its negative and turned by quarters, so that the reason can say which.
All of it works on a picture decimated to 64 pixels: sizes, windows, noise and compression hardly matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Plausibility", "chest_radiograph", "decimated", "evidence", "locate", "one_tone"]

Picture = npt.NDArray[np.float32]

#: Longer edge of the picture that is searched, in pixels, and edge of what the network sees.
_EDGE = 64
#: Shorter edge of what is read of a large picture.
_SAMPLE = 256
_SEEN = 20
#: So many of the best places are looked at, each as it is and mirrored: what one misses by a pixel, others do not.
_PLACES = 4
#: How far beyond the lungs the network sees, as a fraction of the box around them.
_MARGIN = 0.22
#: Rows and columns at which a drawing is compared.
_ROWS = _COLUMNS = 12
#: Builds of the drawn chest: half width of the mediastinum at apex, hilum and dome (1: the chest's), apex, dome.
_BUILDS = (
    ((0.16, 0.22, 0.34), 0.08, 0.82),
    ((0.20, 0.30, 0.55), 0.08, 0.82),
    ((0.14, 0.18, 0.24), 0.08, 0.82),
    ((0.20, 0.30, 0.50), 0.10, 0.68),
)
_HEIGHTS = (0.35, 0.42, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_PROPORTIONS = (0.75, 0.9, 1.05, 1.2, 1.4, 1.65)
#: From one place to the next, as a fraction of the picture.
_STEP = 0.075
#: A detector's field: no more than so many times as long as wide.
_LONGEST = 2.2
_SMALLEST = 64
#: A picture of continuous tones has at least so many; masks, drawings and patterns have fewer.
_TONES = 24
#: Below these there are no two lung fields; every training radiograph lies well above (docs/gate.md).
_LEAST_FIT, _LEAST_LUNG = 0.45, 0.30
#: Log odds above which it is a chest; real ones as they are reach 7 (docs/models/plausibility.md).
_BALANCE = 1.0
#: Below these log odds a picture is turned and negated as well, and has to be a chest by so much more as it stands: of
#: what is none, one way of showing it is often as good as another.
_DOUBTFUL, _MARGIN_OF_WAYS = 6.0, 4.0
#: Below these log odds no more than this share of the tones may lie within one twentieth of their range: synthetic
#: radiographs reach 0.28, as half of the slices of synthetic chests do (docs/models/plausibility.md).
_CLEAR, _ONE_TONE = 8.0, 0.29
_WEIGHTS = Path(__file__).with_name("plausible.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plausibility:
    """What the pixels say.

    ``reason`` is empty where the picture is plausible; else ``matrix``, ``not-a-picture``, ``negative-image``,
    ``turned-image`` or ``not-a-frontal-chest``. ``score`` is the network's log odds (above 1: a chest); ``fit``,
    ``right`` and ``left`` are how well the drawing agrees (-1 to 1) over the whole, the image's left half (the
    patient's right lung) and its right half; ``box`` is (top, left, height, width) as fractions of the picture.
    """

    plausible: bool
    reason: str = ""
    text: str = ""
    score: float = 0.0
    fit: float = 0.0
    right: float = 0.0
    left: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the drawing agrees best, in pixels of the decimated picture, and how well."""

    box: tuple[float, float, float, float]
    fit: float
    right: float
    left: float
    worst: float
    symmetry: float


def chest_radiograph(pixels: npt.NDArray[Any]) -> Plausibility:
    """Ask whether a picture is a frontal radiograph of a human chest, upright and not a negative.

    Parameters
    ----------
    pixels
        (rows, columns), any real type; dense is bright, rows run from head to foot
        (:func:`inference.radiograph.radiograph_pixels`). Which side is left does not matter.

    Returns
    -------
    Plausibility
    """
    rows, columns = pixels.shape
    if min(rows, columns) < _SMALLEST or max(rows, columns) > _LONGEST * min(rows, columns):
        return Plausibility(
            plausible=False,
            reason="matrix",
            text=f"a matrix of {rows} x {columns} pixels is none of a chest radiograph",
        )
    small = decimated(pixels)
    if small is None:
        return Plausibility(
            plausible=False,
            reason="not-a-picture",
            text="the image has too few shades of grey for a radiograph",
        )
    verdict = _judged(small)
    of_one_tone = verdict.plausible and verdict.score < _CLEAR and one_tone(pixels) > _ONE_TONE
    if verdict.plausible and not of_one_tone and _stands_upright(verdict.score, small):
        return verdict
    reason, text = "not-a-frontal-chest", "the pixels do not show the chest of a human from the front"
    if of_one_tone:
        text = "the pixels have one tone for all soft tissue, as a slice has and no projection"
    elif _judged(1 - small).plausible:
        reason = "negative-image"
        text = "the pixels show a chest as a negative, against what Photometric Interpretation says"
    elif any(_judged(np.ascontiguousarray(np.rot90(small, quarter))).plausible for quarter in (1, 2, 3)):
        reason, text = "turned-image", "the pixels show a chest that lies on its side or stands on its head"
    return Plausibility(
        plausible=False,
        reason=reason,
        text=text,
        score=verdict.score,
        fit=verdict.fit,
        right=verdict.right,
        left=verdict.left,
        box=verdict.box,
    )


def _stands_upright(score: float, small: Picture) -> bool:
    """Whether a decimated picture is more of a chest as it stands than turned by quarters, negated, or both."""
    if score >= _DOUBTFUL:
        return True
    ways = (np.rot90(one, quarter) for one in (small, 1 - small) for quarter in range(4))
    return score > max(_judged(np.ascontiguousarray(way)).score for way in list(ways)[1:]) + _MARGIN_OF_WAYS


def _judged(small: Picture) -> Plausibility:
    """Judge a decimated picture as it stands."""
    places = locate(small, _PLACES)
    place = places[0]
    score = _log_odds(np.stack([one for other in places for one in _both_ways(evidence(small, other))]))
    rows, columns = small.shape
    top, left, height, width = place.box
    return Plausibility(
        plausible=score > _BALANCE and place.fit > _LEAST_FIT and min(place.right, place.left) > _LEAST_LUNG,
        score=score,
        fit=place.fit,
        right=place.right,
        left=place.left,
        box=(top / rows, left / columns, height / rows, width / columns),
    )


def one_tone(pixels: npt.NDArray[Any]) -> float:
    """Return the largest share of a picture's tones that lies within a twentieth of their range.

    Parameters
    ----------
    pixels
        (rows, columns), any real type.

    Returns
    -------
    float
        0 to 1; what lies within 3 % of either end, as air beside a body and a border do, is no tone.
    """
    sample = _sampled(pixels)
    if max(sample.shape) > _SAMPLE:
        sample = _shrunk(sample, _SAMPLE)
    low, high = np.percentile(sample, [0.5, 99.5])
    level = (sample - low) / max(float(high - low), 1e-6)
    between = np.histogram(level, 100, (0, 1))[0]
    tones = np.count_nonzero((level > 0.03) & (level < 0.97))
    return float(np.convolve(between, np.ones(5), "valid")[4:92].max() / max(tones, 0.05 * level.size))


def _sampled(pixels: npt.NDArray[Any]) -> Picture:
    """Return every so many-th pixel, so that the shorter edge keeps at least `_SAMPLE`."""
    step = max(1, min(pixels.shape) // _SAMPLE)
    return np.ascontiguousarray(pixels[::step, ::step], dtype=np.float32)


def _shrunk(sample: Picture, edge: int) -> Picture:
    """Average a picture down to a longer edge of so many pixels."""
    from PIL import Image

    scale = edge / max(sample.shape)
    rows, columns = (max(8, round(length * scale)) for length in sample.shape)
    return np.asarray(Image.fromarray(sample).resize((columns, rows), Image.Resampling.BOX), np.float32)


def decimated(pixels: npt.NDArray[Any]) -> Picture | None:
    """Bring a picture to `_EDGE` pixels of 0 to 1, half by value and half by rank; None where it has no tones."""
    sample = _sampled(pixels)
    if not np.isfinite(sample).all() or np.unique(sample).size < _TONES:
        return None
    shrunk = _shrunk(sample, _EDGE)
    low, high = np.percentile(shrunk, [1, 99])
    if not high > low:
        return None
    level = np.clip((shrunk - low) / (high - low), 0, 1)
    # Ranks do not know of windows and curves; alone they would blow up the noise of what is even.
    _, inverse, counts = np.unique(level.ravel(), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts + 1) / 2) / (level.size - 1)
    shown: Picture = ((level + rank[inverse].reshape(level.shape)) / 2).astype(np.float32)
    return shown


def locate(small: Picture, count: int = 1) -> list[_Place]:
    """Lay the drawn chest over a decimated picture at every size and place; return where it agrees, the best first."""
    boxes, index = _boxes(*small.shape)
    seen = small.ravel()[index]
    filters, sums = _filters()
    # One lung's half by itself, and the whole: dot products with drawings of mean 0, over the patch's own spread.
    half = _COLUMNS // 2 * _ROWS
    mean, square = seen @ sums, (seen * seen) @ sums
    number = np.array([half, half, 2 * half], np.float32)
    mean = np.column_stack([mean, mean.sum(axis=1)])
    square = np.column_stack([square, square.sum(axis=1)])
    spread = np.sqrt(np.maximum(square - mean * mean / number, 1e-4))
    agree = (seen @ filters).reshape(len(seen), 3, len(_BUILDS)) / spread[:, :, None]
    right, left, whole = agree[:, 0], agree[:, 1], agree[:, 2]
    total = whole + 0.5 * np.minimum(right, left)
    worst = float(-whole.min())
    places = []
    for best in np.argsort(-total.max(axis=1))[:count]:
        build = int(total[best].argmax())
        top, side, height, width = (float(value) for value in boxes[best])
        places.append(
            _Place(
                box=(top, side, height, width),
                fit=float(whole[best, build]),
                right=float(right[best, build]),
                left=float(left[best, build]),
                worst=worst,
                symmetry=_symmetry(seen[best].reshape(_ROWS, _COLUMNS)),
            )
        )
    return places


def _symmetry(patch: Picture) -> float:
    """Return the correlation of one half with the other half's mirror image."""
    one, other = patch[:, : _COLUMNS // 2], patch[:, : _COLUMNS // 2 - 1 : -1]
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(float(np.sqrt((one**2).sum() * (other**2).sum())), 1e-4))


def evidence(small: Picture, place: _Place) -> Picture:
    """Return what the network sees: the place with its margin, 20 x 20, mean 0 and spread 1, and eight figures."""
    rows, columns = small.shape
    top, left, height, width = place.box
    grid = (np.arange(_SEEN) + 0.5) / _SEEN * (1 + 2 * _MARGIN) - _MARGIN
    y, x = np.floor(top + grid * height).astype(int), np.floor(left + grid * width).astype(int)
    seen = small[np.clip(y, 0, rows - 1)[:, None], np.clip(x, 0, columns - 1)[None]]
    outside = ((y < 0) | (y >= rows))[:, None] | ((x < 0) | (x >= columns))[None]
    inside = ~outside
    seen = seen - seen[inside].mean()
    seen[outside] = 0
    seen /= max(float(np.sqrt((seen**2).mean())), 1e-3)
    figures = (
        place.fit,
        place.right,
        place.left,
        place.symmetry,
        place.worst,
        float(np.log(height / width)),
        height * width / (rows * columns),
        float(outside.mean()),
    )
    return np.concatenate([seen.ravel(), 8 * np.array(figures)]).astype(np.float32)


def _both_ways(values: Picture) -> tuple[Picture, Picture]:
    """Return what the network sees, and what it would see of the mirror image."""
    mirrored = values.copy()
    pixels = _SEEN * _SEEN
    mirrored[:pixels] = values[:pixels].reshape(_SEEN, _SEEN)[:, ::-1].ravel()
    mirrored[[pixels + 1, pixels + 2]] = values[[pixels + 2, pixels + 1]]
    return values, mirrored


def _log_odds(values: Picture) -> float:
    """Ask the networks, trained apart, about several rows of evidence; all their answers are averaged."""
    weights = _weights()
    hidden = np.maximum(
        (values - weights["mean"]) @ weights["first"].transpose(0, 2, 1) + weights["first_bias"][:, None], 0
    )
    return float(((hidden * weights["second"][:, None]).sum(axis=2) + weights["second_bias"][:, None]).mean())


@lru_cache(maxsize=1)
def _weights() -> dict[str, Picture]:
    with np.load(_WEIGHTS, allow_pickle=False) as held:
        return {name: held[name].astype(np.float32) for name in held.files}


@lru_cache(maxsize=1)
def _filters() -> tuple[Picture, Picture]:
    """Return the drawings as columns of mean 0 and length 1: right half, left half, whole, each in every build."""
    y, x = np.mgrid[0:_ROWS, 0:_COLUMNS].astype(np.float32)
    y, x = (y + 0.5) / _ROWS, np.abs((x + 0.5) / _COLUMNS * 2 - 1)
    parts = np.zeros((2, _ROWS, _COLUMNS), np.float32)
    parts[0, :, : _COLUMNS // 2] = 1
    parts[1, :, _COLUMNS // 2 :] = 1
    drawn = np.stack([_drawing(y, x, *build) for build in _BUILDS])
    columns = []
    for part in (parts[0], parts[1], np.ones_like(parts[0])):
        for one in drawn:
            kept = np.where(part > 0, one - one[part > 0].mean(), 0)
            columns.append((kept / np.sqrt((kept**2).sum())).ravel())
    return np.stack(columns, axis=1).astype(np.float32), parts.reshape(2, -1).T.copy()


def _drawing(y: Picture, x: Picture, waist: tuple[float, float, float], apex: float, dome: float) -> Picture:
    """Draw one build: -1 in the lungs, 1 elsewhere, with soft edges. ``x`` runs from the midline (0) to the wall."""

    def step(distance: Picture) -> Picture:
        return (1 / (1 + np.exp(-distance * 30))).astype(np.float32)

    depth = (y - apex) / (dome - apex)
    middle = np.interp(depth, [0, 0.5, 1], waist).astype(np.float32)
    wall = 0.9 * np.sqrt(np.clip(1 - (np.clip(1 - depth / 0.55, 0, 1) * 0.93) ** 2, 0, 1))
    floor = dome - 0.10 * np.cos((x - 0.45) * 2.2) + 0.06
    lung = step(x - middle) * step(wall - x) * step(y - apex) * step(floor - y)
    return (1 - 2 * lung).astype(np.float32)


@lru_cache(maxsize=24)
def _boxes(rows: int, columns: int) -> tuple[Picture, npt.NDArray[np.int32]]:
    """Return every place (top, left, height, width in pixels) and the pixels that are compared there."""
    places: list[tuple[float, float, float, float]] = []
    for fraction in _HEIGHTS:
        height = fraction * rows
        for proportion in _PROPORTIONS:
            width = height * proportion
            if not 0.4 * columns <= width <= 1.12 * columns:
                continue
            for top in np.arange(-0.08 * rows, 1.08 * rows - height + 1e-3, _STEP * rows):
                places.extend(
                    (top, left, height, width)
                    for left in np.arange(-0.08 * columns, 1.08 * columns - width + 1e-3, _STEP * columns)
                )
    boxes = np.array(places, np.float32)
    y = np.floor(boxes[:, :1] + (np.arange(_ROWS) + 0.5) / _ROWS * boxes[:, 2:3]).astype(np.int32)
    x = np.floor(boxes[:, 1:2] + (np.arange(_COLUMNS) + 0.5) / _COLUMNS * boxes[:, 3:]).astype(np.int32)
    index = np.clip(y, 0, rows - 1)[:, :, None] * columns + np.clip(x, 0, columns - 1)[:, None, :]
    return boxes, index.reshape(len(boxes), -1)
