"""A radiograph's pixels as a viewer would show them: dense is bright, and the patient faces the reader."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import InputRefused
from inference.imagefile import count_of, open_image, padding_mask, require_pixels, stored_values, texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = ["read_radiograph", "radiograph_pixels"]


def read_radiograph(file: ImageFile) -> npt.NDArray[np.float32]:
    """Read one projection radiograph; see :func:`radiograph_pixels`."""
    return radiograph_pixels(open_image(file))


def radiograph_pixels(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Return a radiograph's pixels after the modality LUT, dense bright, in display orientation.

    Returns
    -------
    numpy.ndarray
        float32, (rows, columns). Columns run towards the patient's left and rows towards the feet wherever Patient
        Orientation (0020,0020) names left or right and head or feet; otherwise as stored. No window is applied.

    Raises
    ------
    InputRefused
        ``unreadable``, ``no-pixels``, ``multi-sample``, ``unsupported-photometric``, ``multi-frame`` or
        ``for-processing``.
    """
    require_pixels(dataset)
    if count_of(dataset, "NumberOfFrames", default=1) > 1:
        raise InputRefused("multi-frame", "a radiograph of more than one frame")
    if texts_of(dataset, "PresentationIntentType") == ("FOR PROCESSING",):
        raise InputRefused("for-processing", "the radiograph is raw (FOR PROCESSING), not made for display")
    stored = stored_values(dataset)
    padding = padding_mask(dataset, stored)
    pixels = _modality_lut(dataset, stored)
    if texts_of(dataset, "PhotometricInterpretation") == ("MONOCHROME1",):
        pixels = (pixels.max() + pixels.min()) - pixels
    if padding is not None and padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return np.ascontiguousarray(_displayed(pixels, texts_of(dataset, "PatientOrientation")))


def _modality_lut(dataset: Dataset, stored: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    from pydicom.pixels.processing import apply_modality_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = np.array(apply_modality_lut(stored, dataset), dtype=np.float32)
    except Exception as problem:  # a LUT is hostile bytes like any other
        raise InputRefused("no-pixels", "the Modality LUT or rescale cannot be applied") from problem
    if not np.isfinite(pixels).all():
        raise InputRefused("no-pixels", "the Modality LUT or rescale gives values that are no numbers")
    return pixels


def _displayed(pixels: npt.NDArray[np.float32], directions: Sequence[str]) -> npt.NDArray[np.float32]:
    """Turn by Patient Orientation (PS3.3 C.7.6.1.1.1): its values are where rows, then columns, run to."""
    if len(directions) != 2 or not all(directions):
        return pixels
    along_row, along_column = directions[0][0], directions[1][0]
    if along_row in "HF" and along_column in "LR":
        pixels, along_row, along_column = pixels.T, along_column, along_row
    if along_row == "R":
        pixels = pixels[:, ::-1]
    if along_column == "H":
        pixels = pixels[::-1]
    return pixels
