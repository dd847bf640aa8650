"""A radiograph's pixels as a viewer would show them: dense is bright, and the patient faces the reader."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import InputRefused
from inference.imagefile import (
    count_of,
    open_image,
    padding_mask,
    require_pixels,
    stored_values,
    texts_of,
    value_of,
)
from inference.voi import falls

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = ["Radiograph", "Turn", "radiograph_of", "radiograph_pixels", "read_radiograph"]


@dataclass(frozen=True, slots=True)
class Turn:
    """How a stored image was turned into display orientation: transposed first, then mirrored along its new axes."""

    transposed: bool = False
    columns_mirrored: bool = False
    rows_mirrored: bool = False

    def to_display(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn an array (rows, columns) on the stored pixels to display orientation; a view."""
        if self.transposed:
            stored = stored.T
        if self.columns_mirrored:
            stored = stored[:, ::-1]
        return stored[::-1] if self.rows_mirrored else stored

    def to_source(self, displayed: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo :meth:`to_display`."""
        if self.rows_mirrored:
            displayed = displayed[::-1]
        if self.columns_mirrored:
            displayed = displayed[:, ::-1]
        return displayed.T if self.transposed else displayed


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One radiograph as it is shown.

    Attributes
    ----------
    pixels
        float32, (rows, columns), after the modality LUT, dense bright: what MONOCHROME1, or a VOI LUT that falls, shows
        as a negative of what is stored is turned over. Rows run towards the feet and columns towards the patient's left
        wherever Patient Orientation (0020,0020) says so, in a lateral view towards the front or the back as stored;
        otherwise as stored. No window is applied, and of a VOI LUT nothing else.
    low, high
        The darkest and the brightest value that the header leaves possible (Bits Stored, then the modality LUT), in the
        same units; pixels seldom reach them.
    turn
        From the stored rows and columns to ``pixels``.
    """

    pixels: npt.NDArray[np.float32]
    low: float
    high: float
    turn: Turn


def read_radiograph(file: ImageFile) -> npt.NDArray[np.float32]:
    """Read one projection radiograph; see :func:`radiograph_pixels`."""
    return radiograph_pixels(open_image(file))


def radiograph_pixels(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Return the pixels of :func:`radiograph_of`."""
    return radiograph_of(dataset).pixels


def radiograph_of(dataset: Dataset) -> Radiograph:
    """Return a radiograph's pixels after the modality LUT, dense bright, in display orientation.

    Raises
    ------
    InputRefused
        ``unreadable``, ``no-pixels``, ``multi-sample``, ``unsupported-photometric``, ``multi-frame`` or
        ``for-processing``; ``polarity-unknown`` as :func:`inference.voi.falls` says.
    """
    require_pixels(dataset)
    if count_of(dataset, "NumberOfFrames", default=1) > 1:
        raise InputRefused("multi-frame", "a radiograph of more than one frame")
    if texts_of(dataset, "PresentationIntentType") == ("FOR PROCESSING",):
        raise InputRefused("for-processing", "the radiograph is raw (FOR PROCESSING), not made for display")
    stored = stored_values(dataset)
    padding = padding_mask(dataset, stored)
    pixels, low, high = _modality_lut(dataset, stored)
    negative = texts_of(dataset, "PhotometricInterpretation") == ("MONOCHROME1",)
    if "VOILUTSequence" in dataset:
        # The VOI LUT comes before what MONOCHROME1 says of its output, so two inversions are none.
        negative ^= falls(dataset, *_used(pixels, padding))
    if negative:
        ends = pixels.max() + pixels.min()
        np.subtract(ends, pixels, out=pixels)
        low, high = float(ends) - high, float(ends) - low
    if padding is not None and padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    turn = _turn(texts_of(dataset, "PatientOrientation"))
    return Radiograph(np.ascontiguousarray(turn.to_display(pixels)), low, high, turn)


def _used(pixels: npt.NDArray[np.float32], padding: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return between which values most of the picture lies: markers and the edges of collimators are left aside."""
    part = pixels[::8, ::8]
    if padding is not None and not padding[::8, ::8].all():
        part = part[~padding[::8, ::8]]
    low, high = np.percentile(part, (1, 99))
    return float(low), float(high)


def _modality_lut(dataset: Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], float, float]:
    """Apply the modality LUT (PS3.3 C.11.1) and return the pixels with the ends of what it can give."""
    low, high = _stored_ends(dataset, stored)
    if "ModalityLUTSequence" in dataset:
        pixels = _table(dataset, stored)
        return pixels, float(pixels.min()), float(max(pixels.max(), 2.0 ** _table_bits(dataset) - 1))
    slope, intercept = value_of(dataset, "RescaleSlope"), value_of(dataset, "RescaleIntercept")
    pixels = stored.astype(np.float32)
    if slope is None or intercept is None:
        return pixels, low, high
    try:
        slope, intercept = float(slope), float(intercept)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("no-pixels", "the Modality LUT or rescale cannot be applied") from problem
    # Beyond these a value is no number in float32, whatever was stored.
    if not (math.isfinite(slope) and math.isfinite(intercept) and max(abs(slope), abs(intercept)) < 1e30):
        raise InputRefused("no-pixels", "the Modality LUT or rescale gives values that are no numbers")
    if (slope, intercept) != (1.0, 0.0):
        pixels *= np.float32(slope)
        pixels += np.float32(intercept)
    ends = sorted((slope * low + intercept, slope * high + intercept))
    return pixels, ends[0], ends[1]


def _stored_ends(dataset: Dataset, stored: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the least and the largest value that Bits Stored leaves possible; what is there widens a header's lie."""
    bits = count_of(dataset, "BitsStored")
    bits = bits if 1 <= bits <= 32 else 8 * stored.dtype.itemsize
    signed = count_of(dataset, "PixelRepresentation") == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    return min(low, float(stored.min())), max(high, float(stored.max()))


def _table(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
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


def _table_bits(dataset: Dataset) -> int:
    """Return the bits of the table's entries: the third value of LUT Descriptor (0028,3002)."""
    try:
        bits = int(dataset["ModalityLUTSequence"].value[0]["LUTDescriptor"].value[2])
    except Exception:  # noqa: BLE001 - hostile bytes fail in every way; the table itself was applied
        return 0
    return bits if 1 <= bits <= 16 else 0


def _turn(directions: Sequence[str]) -> Turn:
    """Read Patient Orientation (PS3.3 C.7.6.1.1.1): its values are where rows, then columns, run to.

    Of a lateral view no convention says whether the patient looks to the left or to the right: it is set upright alone.
    """
    if len(directions) != 2 or not all(directions):
        return Turn()
    along_row, along_column = directions[0][0], directions[1][0]
    transposed = along_row in "HF" and along_column in "LRAP"
    if transposed:
        along_row, along_column = along_column, along_row
    return Turn(transposed, columns_mirrored=along_row == "R", rows_mirrored=along_column == "H")
