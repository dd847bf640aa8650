"""What the values of a mask stand for where structures lie over one another: one byte a voxel, whatever holds there.

A mask holds one value a voxel. A structure alone is its label. Structures that overlap (a tumour's core lies in the
whole tumour) are a value of their own for each set of labels that occurs, one that no structure has as its label; the
table of these sets goes with the mask. So a mask without overlap is what it would be anyway, and one with it takes no
more memory than one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.findings import Segmentation

    Labels = npt.NDArray[np.uint8]
    Place = tuple[str, int]
    Change = Callable[[frozenset[int]], frozenset[int]]
    Planes = dict[Place, npt.NDArray[np.bool_]]

__all__ = ["Marking", "Overlap", "Together", "checked_together", "dice", "places_of", "planes_of"]

#: Up to so many values are counted one by one, which is quicker than to count all that there could be.
_FEW = 9
#: All sets of so many structures have a value of a byte.
_ALL_SETS = 8

#: What becomes of a voxel that several structures have: no answer, the later structure's, or all of them hold there.
Overlap = Literal["refuse", "last", "keep"]
#: Value of a mask -> the labels that hold together where it stands, ascending.
Together = Mapping[int, tuple[int, ...]]


class Marking:
    """Writes structures into a mask, and reads them from it.

    Parameters
    ----------
    labels
        Of the structures.
    overlap
        What :meth:`put` does where another structure is already.
    key
        Where the card says so, for whoever has to be told.
    together
        The sets that a mask already holds.
    """

    def __init__(
        self,
        labels: Iterable[int] = range(1, 256),
        overlap: Overlap = "refuse",
        *,
        key: str = "overlap",
        together: Together = MappingProxyType({}),
    ) -> None:
        self._labels = tuple(labels)
        self._overlap, self._key = overlap, key
        self._sets = {0: frozenset[int](), **{label: frozenset({label}) for label in self._labels}}
        self._sets |= {value: frozenset(those) for value, those in together.items()}
        self._values = {those: value for value, those in self._sets.items()}

    @property
    def keeps(self) -> bool:
        """Whether each structure is for itself."""
        return self._overlap == "keep"

    @property
    def together(self) -> dict[int, tuple[int, ...]]:
        """The sets of labels that have a value of their own."""
        return {value: tuple(sorted(those)) for value, those in self._sets.items() if len(those) > 1}

    def put(self, mask: Labels, where: npt.NDArray[np.bool_], label: int, *, within: Labels | None = None) -> None:
        """Mark a structure, in place.

        Parameters
        ----------
        mask, where
            Of one shape, of two axes or three.
        within
            The whole mask, of which ``mask`` is a part or all: values of sets that it holds nowhere any more are used
            again once there are no others. Without it they stay used up.

        Raises
        ------
        EngineFailure
            ``broke``, where another structure has a voxel and the card takes no such answer.
        """
        # Plane by plane: what is looked up takes eight times the memory of what it is looked up for.
        pairs = list(zip(mask, where, strict=True)) if mask.ndim == 3 else [(mask, where)]
        try:
            for plane, here in pairs:
                self._put(plane, here, label)
        except _NoValueFree:
            if within is None:
                raise
            # What was put already may be put again.
            self._change_anew(within, pairs, lambda those: those | {label})

    def _put(self, mask: Labels, where: npt.NDArray[np.bool_], label: int) -> None:
        if self._overlap == "last":
            mask[where] = label
            return
        present = mask[where]
        if not present.any():
            mask[where] = label
        elif self.keeps:
            mask[where] = self._table(present, lambda those: those | {label})[present]
        elif ((present != 0) & (present != label)).any():
            raise EngineFailure(
                "broke",
                f"the model marked voxels for several outputs; say {self._key}: keep in the card if its structures lie "
                "over one another, and last if the later output alone has such a voxel",
            )
        else:
            mask[where] = label

    def painted(self, marked: npt.NDArray[np.bool_], labels: Iterable[int]) -> Labels:
        """Return a plane with all its structures; only the sets of its voxels in the end take values.

        Parameters
        ----------
        marked
            Where each structure is: (structures, rows, columns).
        labels
            Of the structures, in this order.

        Raises
        ------
        EngineFailure
            ``broke``, as :meth:`put` says.
        """
        plane: Labels = np.zeros(marked.shape[1:], np.uint8)
        # All sets of a few structures have room; of more, those on the way to a voxel's own are kept apart.
        apart = self.keeps and len(self._labels) > _ALL_SETS
        marking = Marking(self._labels, "keep") if apart else self
        for label, where in zip(labels, marked, strict=True):
            marking.put(plane, where, int(label), within=plane if apart else None)
        if not apart or not marking.together:
            return plane
        table = np.arange(256, dtype=np.uint8)
        for value in np.flatnonzero(_seen(plane)):
            table[value] = self._value(marking._sets[int(value)])
        return table[plane]

    def take(self, mask: Labels, where: Any, label: int) -> None:
        """Take a structure away from a whole mask, in place, where an index says; others that hold there stay."""
        present = mask[where]
        try:
            mask[where] = self._table(present, lambda those: those - {label})[present]
        except _NoValueFree:
            self._change_anew(mask, [(mask, where)], lambda those: those - {label})

    def of(self, mask: Labels, label: int) -> npt.NDArray[np.bool_]:
        """Return where a structure is, in the shape of the mask."""
        first, *more = [value for value, those in self._sets.items() if label in those] or [label]
        found: npt.NDArray[np.bool_] = mask == first
        for value in more:
            found |= mask == value
        return found

    def labels_in(self, mask: Labels) -> list[int]:
        """Return the structures that a mask of three axes holds, ascending."""
        seen = _seen_in(mask)
        found = {label for value, those in self._sets.items() if seen[value] for label in those}
        return sorted(found)

    def voxels(self, mask: Labels) -> dict[int, int]:
        """Return how many voxels each structure has, in a mask of three axes."""
        held = dict.fromkeys(self._labels, 0)
        counts = np.zeros(256, np.int64)
        for plane in mask:
            if len(self._sets) > _FEW:
                counts += np.bincount(plane.reshape(-1), minlength=256)
            elif plane.any():
                for value in filter(None, self._sets):
                    counts[value] += np.count_nonzero(plane == value)
        for value, those in self._sets.items():
            for label in those:
                held[label] += int(counts[value])
        return held

    def _table(self, present: Labels, change: Change) -> Labels:
        """Return what becomes of each value; those that are not there stay as they are."""
        table = np.arange(256, dtype=np.uint8)
        for value in np.flatnonzero(_seen(present)):
            table[value] = self._value(change(self._sets[int(value)]))
        return table

    def _value(self, those: frozenset[int]) -> int:
        if those not in self._values:
            value = next((one for one in range(1, 256) if one not in self._sets), None)
            if value is None:
                raise _NoValueFree
            self._sets[value] = those
            self._values[those] = value
        return self._values[those]

    def _change_anew(self, within: Labels, pairs: Sequence[tuple[Labels, Any]], change: Change) -> None:
        """Change the sets at some places of a mask once the values that it does not hold anywhere else are free.

        Parameters
        ----------
        within
            The whole mask.
        pairs
            Parts of it, and where in each of them.

        Raises
        ------
        EngineFailure
            ``broke``, if the mask holds more sets then than there are values; it is of no use afterwards.
        """
        held = [plane[where] for plane, where in pairs]
        before = {
            int(value): self._sets[int(value)]
            for value in np.flatnonzero(np.any([_seen(values) for values in held], axis=0))
        }
        for plane, where in pairs:
            plane[where] = 0
        stay = _seen_in(within)
        alone = {0, *self._labels}
        self._sets = {value: those for value, those in self._sets.items() if value in alone or stay[value]}
        self._values = {those: value for value, those in self._sets.items()}
        table = np.zeros(256, np.uint8)
        for value, those in before.items():
            table[value] = self._value(change(those))
        for (plane, where), values in zip(pairs, held, strict=True):
            plane[where] = table[values]


class _NoValueFree(EngineFailure):
    def __init__(self) -> None:
        super().__init__(
            "broke",
            "the model's structures lie over one another in more ways than a mask tells apart: its structures and "
            "their overlaps are 255 at most",
        )


def planes_of(segmentation: Segmentation, label: int) -> Planes:
    """Return where a structure is, by the image and the number of its frame (0 of a single-frame image).

    Returns
    -------
    dict
        bool, (rows, columns), of the planes that hold any of it.
    """
    marking = Marking((label,), together=segmentation.together)
    found: Planes = {}
    for place, plane in zip(places_of(segmentation), segmentation.labels, strict=True):
        here = marking.of(plane, label)
        if here.any():
            found[place] = found[place] | here if place in found else here
    return found


def places_of(segmentation: Segmentation) -> list[Place]:
    """Return the image and the frame's number of each plane of a mask."""
    frames = segmentation.frames or (0,) * len(segmentation.images)
    return list(zip(segmentation.images, frames, strict=True))


def dice(one: Planes, other: Planes) -> float | None:
    """Return the Dice coefficient of a structure in two masks; None where neither has any of it.

    A plane that one of them has not holds nothing of it.

    Raises
    ------
    ValueError
        If planes of one place are not of one shape.
    """
    total = sum(int(np.count_nonzero(plane)) for planes in (one, other) for plane in planes.values())
    shared = sum(int(np.count_nonzero(plane & other[place])) for place, plane in one.items() if place in other)
    return 2 * shared / total if total else None


def checked_together(values: Together, labels: Iterable[int] | None) -> dict[int, tuple[int, ...]]:
    """Return a table of sets that came from outside, once it is one.

    Parameters
    ----------
    labels
        Those that there are, where that is known.

    Raises
    ------
    ValueError
        If it is none: a value that is a label or none of a byte, a set of one label, or of one that there is not.
    """
    found = {int(value): tuple(int(label) for label in those) for value, those in values.items()}
    members = {label for those in found.values() for label in those}
    known = members if labels is None else set(labels)
    sound = all(len(set(those)) == len(those) > 1 for those in found.values())
    if not sound or members - known or set(found) & (known | {0}) or not set(found) | known <= set(range(256)):
        raise ValueError("a mask's overlaps are not of its structures")
    return found


def _seen_in(mask: Labels) -> npt.NDArray[np.bool_]:
    seen = np.zeros(256, np.bool_)
    for plane in mask:
        # Plane by plane, as in :meth:`Marking.put`.
        seen |= _seen(plane)
    return seen


def _seen(values: Labels) -> npt.NDArray[np.bool_]:
    seen = np.zeros(256, np.bool_)
    seen[values] = True
    return seen
