"""What happens to a mask after the model: small components leave it, and volumes are taken.

Masks are uint8 of shape (slices, rows, columns), 0 is background; spacing is in mm in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["keep_components", "volumes_ml"]


def voxel_ml(spacing_mm: Sequence[float]) -> float:
    """Return the volume of one voxel in mL."""
    return float(np.prod(np.asarray(spacing_mm, float))) / 1000.0


def volumes_ml(labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], wanted: Sequence[int]) -> dict[int, float]:
    """Return the volume of each wanted label in mL."""
    counts = np.zeros(256, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=256)
    return {label: float(counts[label]) * voxel_ml(spacing_mm) for label in wanted}


def keep_components(
    labels: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    minimum_ml: float = 0.0,
    minimum_fraction: float = 0.0,
) -> npt.NDArray[np.uint8]:
    """Clear, in place, the components of each label that are too small, and return the mask.

    Parameters
    ----------
    labels
        uint8, (slices, rows, columns).
    spacing_mm
        (slice, row, column), in mm.
    minimum_ml
        Components below this volume are cleared.
    minimum_fraction
        Components below this fraction of their label's largest component are cleared.

    Notes
    -----
    Voxels are connected through faces. Each label is searched only within its own bounding box.
    """
    from scipy import ndimage

    voxel = voxel_ml(spacing_mm)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        part = labels[box]
        components, found = ndimage.label(part == number)
        if found == 0:
            continue
        sizes = np.zeros(found + 1, np.int64)
        for plane in components:
            sizes += np.bincount(plane.ravel(), minlength=found + 1)
        sizes[0] = 0
        least = max(minimum_ml / voxel, minimum_fraction * float(sizes.max()))
        small = sizes < least
        small[0] = False
        if small.any():
            part[small[components]] = 0
    return labels
