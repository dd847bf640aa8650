"""Structures that lie over one another, as the writer of Segmentations reads them: plane by plane, never all at once.

Such a mask is one bit for each structure and voxel; as the array of bytes that highdicom documents, sixty structures on
three hundred slices of a CT take 4.7 GB. It reads that array one plane of one structure at a time. So it gets something
that is read like the array, and makes each plane when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.findings import Segmentation

__all__ = ["Structures"]


class Structures:
    """Reads like uint8 0 or 1 of (places, rows, columns, structures).

    Parameters
    ----------
    segmentation
        The mask, its labels uint8 of (planes, rows, columns).
    wanted
        The labels of the structures, in their order.
    places
        For each image, or frame of one, the planes that lie on it.
    """

    ndim: Final = 4
    dtype: Final = np.dtype(np.uint8)

    def __init__(self, segmentation: Segmentation, wanted: Sequence[int], places: Sequence[Sequence[int]]) -> None:
        self._labels = segmentation.labels
        self._places = places
        #: The values that stand for each structure.
        self._values = [
            {label} | {value for value, those in segmentation.together.items() if label in those} for label in wanted
        ]
        #: The values that each plane holds.
        self._seen = [set(np.flatnonzero(_seen(plane)).tolist()) for plane in self._labels]
        self.shape = (len(places), *self._labels.shape[1:], len(wanted))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[_Place]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> _Place:
        return _Place(self, place)

    def max(self) -> int:
        """Return 1 where there is any structure."""
        return int(any(self.holds(place) for place in range(len(self))))

    def sum(self, axis: int) -> npt.NDArray[np.uint8]:
        """Return how many structures lie on each voxel, uint8 of (places, rows, columns): they are 255 at most."""
        if axis not in (-1, 3):
            raise ValueError("structures are added up along their own axis")
        found = np.zeros(self.shape[:3], np.uint8)
        for place in range(len(self)):
            for structure in self.holds(place):
                found[place] += self.plane(place, structure)
        return found

    def holds(self, place: int) -> list[int]:
        """Return which structures a place holds, by their number from 0."""
        seen = set[int]().union(*(self._seen[plane] for plane in self._places[place]))
        return [structure for structure, values in enumerate(self._values) if values & seen]

    def plane(self, place: int, structure: int) -> npt.NDArray[np.uint8]:
        """Return where a structure is on a place, uint8 0 or 1 of (rows, columns)."""
        found = np.zeros(self.shape[1:3], np.bool_)
        for plane in self._places[place]:
            for value in self._values[structure] & self._seen[plane]:
                found |= self._labels[plane] == value
        return found.view(np.uint8)


class _Place:
    """Reads like uint8 0 or 1 of (rows, columns, structures)."""

    ndim: Final = 3
    dtype: Final = Structures.dtype

    def __init__(self, structures: Structures, place: int) -> None:
        self._structures = structures
        self._place = place

    def __getitem__(self, index: tuple[slice, slice, int]) -> npt.NDArray[np.uint8]:
        rows, columns, structure = index
        return self._structures.plane(self._place, structure)[rows, columns]

    def any(self, **_: Any) -> bool:
        """Whether any structure is here; numpy asks so, naming what it does not want."""
        return bool(self._structures.holds(self._place))


def _seen(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which values a plane holds, bool (256,)."""
    seen = np.zeros(256, np.bool_)
    if plane.any():
        seen[plane] = True
    return seen
