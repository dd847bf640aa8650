"""Turn pixels as they come from an image into what a model's input tensor holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import InputRefused

__all__ = ["radiograph_input"]


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
    from PIL import Image

    if pixels.ndim != 2 or 0 in pixels.shape:
        raise InputRefused("no-pixels", f"the radiograph has no rows and columns of pixels (shape {pixels.shape})")
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputRefused("pixels-not-finite", "the radiograph holds pixel values that are not numbers")
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        # A few odd pixels (a marker on an even field) leave both percentiles alike: there is no picture to read either.
        raise InputRefused("pixels-constant", "the radiograph has the same value all over, so it shows nothing")
    scaled = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    rows, columns = scaled.shape
    edge = max(rows, columns)
    square = np.zeros((edge, edge), np.float32)
    top, left = (edge - rows) // 2, (edge - columns) // 2
    square[top : top + rows, left : left + columns] = scaled
    resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, np.float32), 0, 1)
