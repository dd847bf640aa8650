"""Turn pixels as they come from an image into what a model's input tensor holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import InputRefused
from inference.reasons import REASONS

if TYPE_CHECKING:
    from inference.radiograph import Radiograph

__all__ = ["Square", "centre_crop", "padded_square", "radiograph_input", "torchxrayvision_input"]

_MOST_COUNTED = 65535
#: torchxrayvision's models see the range of Bits Stored as 2,048 steps. 12 bits stored as 16 are 128 of them in all, an
#: even grey on which an answer would be made up.
_LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Square:
    """The square of a displayed image that a model's input shows: its first row and column, and its edge, in pixels.

    Negative where the square is padded beyond the image.
    """

    row: int
    column: int
    edge: int


def padded_square(rows: int, columns: int) -> Square:
    """Return the smallest square that holds the whole image, the image in its middle."""
    edge = max(rows, columns)
    return Square(row=-((edge - rows) // 2), column=-((edge - columns) // 2), edge=edge)


def centre_crop(rows: int, columns: int) -> Square:
    """Return the largest square inside an image, as torchxrayvision's ``XRayCenterCrop`` places it."""
    edge = min(rows, columns)
    return Square(row=rows // 2 - edge // 2, column=columns // 2 - edge // 2, edge=edge)


def radiograph_input(pixels: NDArray[Any], size: int = 256) -> NDArray[np.float32]:
    """Rescale, pad and resize one radiograph to a square input.

    The 0.5th and 99.5th percentile of the pixels become 0 and 1 (values beyond are clipped), so that any positive
    linear rescale of the pixels gives the same result; the shorter axis is padded with 0 on both ends; the resize
    averages over the source pixels.

    Parameters
    ----------
    pixels
        [rows, columns], any real type, in the sense of MONOCHROME2 (bright is dense), rows from head to foot, columns
        from the patient's right to the left.
    size
        Edge of the result in pixels.

    Returns
    -------
    numpy.ndarray
        float32 [size, size] in 0..1.

    Raises
    ------
    InputRefused
        When the array is not two-dimensional, is empty, holds a value that is not finite, or is constant.
    """
    _check(pixels)
    # Single precision throughout: what it rounds away is a ten-thousandth of a grey level of a 12-bit image.
    low, high = _percentiles(pixels, 0.5, 99.5)
    if high <= low:
        # A few odd pixels (a marker on an even field) leave both percentiles alike: there is no picture to read either.
        raise InputRefused("pixels-constant", "the radiograph has the same value all over, so it shows nothing")
    rows, columns = pixels.shape
    place = padded_square(rows, columns)
    square = np.zeros((place.edge, place.edge), np.float32)
    inside = square[-place.row : rows - place.row, -place.column : columns - place.column]
    np.subtract(pixels, low, out=inside, casting="same_kind" if pixels.dtype == np.float32 else "unsafe")
    inside *= np.float32(1 / (high - low))
    np.clip(inside, 0, 1, out=inside)
    return np.clip(_resized(square, size), 0, 1)


def torchxrayvision_input(radiograph: Radiograph, size: int = 224) -> NDArray[np.float32]:
    """Bring a radiograph to what torchxrayvision's models read: centre crop, antialiased resize, -1024 to 1024.

    The darkest value that the header leaves possible becomes -1024 and the brightest 1024, whatever the image itself
    holds and whatever window it names: for unsigned pixels without a modality LUT this is the library's
    ``normalize(pixels, 2**BitsStored - 1)``, after its inversion of MONOCHROME1. The crop is its ``XRayCenterCrop``,
    the resize the bilinear one with antialiasing that its models apply to larger input.

    Parameters
    ----------
    radiograph
        As it is shown.
    size
        Edge of the result in pixels, the model's own resolution.

    Returns
    -------
    numpy.ndarray
        float32 [size, size].

    Raises
    ------
    InputRefused
        When the pixels are not two-dimensional, empty, not finite, or constant; ``narrow-range`` when they use so
        little of what the header leaves possible that the model would see an even grey.
    """
    pixels = radiograph.pixels
    lowest, highest = _check(pixels)
    if highest <= lowest:
        raise InputRefused("pixels-constant", "the radiograph has the same value all over, so it shows nothing")
    place = centre_crop(*pixels.shape)
    inside = pixels[place.row : place.row + place.edge, place.column : place.column + place.edge]
    # The scale is linear, so it comes after the resize, where there are few pixels left.
    small = _resized(np.ascontiguousarray(inside, np.float32), size)
    darkest, brightest = np.percentile(small, (1, 99))
    share = float(brightest - darkest) / (radiograph.high - radiograph.low)
    if share < _LEAST_SHARE:
        raise InputRefused(
            "narrow-range",
            f"the picture uses {100 * share:.1f} % of the values that Bits Stored leaves possible, of which this model "
            f"needs {100 * _LEAST_SHARE:g} % to see it; its sender states more bits than it uses",
            REASONS["narrow-range"],
        )
    small -= np.float32(radiograph.low)
    small *= np.float32(2048 / (radiograph.high - radiograph.low))
    small -= np.float32(1024)
    return small


def _check(pixels: NDArray[Any]) -> tuple[float, float]:
    """Refuse what is no picture; return the least and the largest value."""
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise InputRefused("no-pixels", f"the radiograph has no rows and columns of pixels (shape {pixels.shape})")
    # A single value that is not a number makes one of these not a number too.
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise InputRefused("pixels-not-finite", "the radiograph holds pixel values that are not numbers")
    return lowest, highest


def _percentiles(pixels: NDArray[Any], *wanted: float) -> tuple[float, ...]:
    """Return percentiles as ``numpy.percentile`` does (linear between neighbours), counting whole numbers."""
    counted = _counts(pixels)
    if counted is None:
        return tuple(float(value) for value in np.percentile(pixels, wanted))
    below, first = counted
    found = []
    for percentile in wanted:
        place = percentile / 100 * (pixels.size - 1)
        left, right = (int(np.searchsorted(below, rank, side="right")) for rank in (int(place), -int(-place // 1)))
        found.append(first + left + (right - left) * (place - int(place)))
    return tuple(found)


def _counts(pixels: NDArray[Any]) -> tuple[NDArray[np.int64], float] | None:
    """Return how many pixels hold at most each whole number from the least on, and that; None for other values."""
    first = float(pixels.min())
    if not first.is_integer() or float(pixels.max()) - first > _MOST_COUNTED:
        return None
    if pixels.dtype.kind in "iu":
        whole = (pixels if first == 0 else pixels.astype(np.int64) - int(first)).astype(np.uint16)
    else:
        shifted = pixels if first == 0 else pixels - pixels.dtype.type(first)
        whole = shifted.astype(np.uint16)
        if not (whole == shifted).all():
            return None
    return np.cumsum(np.bincount(whole.reshape(-1))), first


def _resized(square: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize bilinearly, averaging over the source pixels where it shrinks."""
    from PIL import Image

    resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized, np.float32)
