"""Radiographs computed from CT volumes: a beam through the attenuation of every voxel, from the front or the side."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["projected"]

_WATER_PER_MM = 0.019  # attenuation at about 70 keV
_SCATTER = 0.15


def projected(
    hu: NDArray[Any], spacing: tuple[float, float], view: Literal["frontal", "lateral"]
) -> NDArray[np.float32]:
    """Project a CT volume with parallel rays.

    Parameters
    ----------
    hu
        (slice, row, column), head first, rows from front to back, in Hounsfield units.
    spacing
        Millimetres from slice to slice, and of a pixel (square).
    view
        "frontal" sums along rows, "lateral" along columns.

    Returns
    -------
    numpy.ndarray
        float32 (rows, columns) of square pixels; dense is bright, the head is at the top.
    """
    from scipy.ndimage import gaussian_filter, zoom

    density = np.clip((hu.astype(np.float32) + 1000) / 1000, 0, 3)
    density[hu > 150] *= 1.5  # bone absorbs more than its density says
    line = density.sum(axis=1 if view == "frontal" else 2) * (spacing[1] * _WATER_PER_MM)
    primary = np.exp(-zoom(line, (spacing[0] / spacing[1], 1), order=1))
    scattered = gaussian_filter(primary, 8 / spacing[1])
    image: NDArray[np.float32] = -np.log(primary + _SCATTER * scattered + 1e-4).astype(np.float32)
    return image
