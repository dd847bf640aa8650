"""Which images of a role pass the gate: a radiograph each for itself, a volume or a program's input as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference import gate
from inference.errors import InputRefused
from inference.imagefile import open_image
from inference.outgoing import require_no_text
from inference.reasons import REASONS
from inference.statistics import Features, of_header

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.engine import ImageFile
    from inference.frames import Plane
    from inference.inputs import InputRole
    from inference.radiograph import Radiograph

__all__ = ["Admitted", "Held", "Series", "series"]


class Held:
    """Holds each image of a series against its role, as it is read.

    Parameters
    ----------
    textless
        Refuse images that say that text is burned into them (:func:`inference.outgoing.keeps_text`).

    Attributes
    ----------
    words
        What was not known and allowed, each once.
    first
        What the header of the first image that passed is like; empty before one has.
    """

    def __init__(self, role: InputRole, *, textless: bool) -> None:
        self._role = role
        self._textless = textless
        self._words: dict[str, None] = {}
        self.first: Features = {}

    @property
    def words(self) -> tuple[str, ...]:
        """Return what was not known and allowed, each once."""
        return tuple(self._words)

    def image(self, dataset: Dataset) -> None:
        """Hold one image; localizers that a volume leaves out are not asked.

        Raises
        ------
        InputRefused
            As :func:`inference.gate.means` and :func:`inference.gate.header` do, or ``burned-in-annotation``.
        """
        self._words |= dict.fromkeys(_held(self._role, dataset, textless=self._textless))
        self.first = self.first or of_header(dataset)


class Admitted:
    """The radiographs of one role that pass, each for itself; what is left out is remembered.

    Iterate to the end, then ask for :meth:`warnings`: iterating raises where too few have passed. With ``textless``,
    images that say that text is burned into them do not pass (:func:`inference.outgoing.keeps_text`).
    """

    def __init__(self, role: InputRole, files: Sequence[ImageFile], *, textless: bool) -> None:
        self._role = role
        self._files = files
        self._textless = textless
        self._refusals: list[InputRefused] = []
        self._unknown: dict[str, None] = {}
        self._passed = 0

    def __iter__(self) -> Iterator[tuple[ImageFile, Radiograph, Dataset]]:
        """Yield each image that passes, with its pixels and its header.

        Raises
        ------
        InputRefused
            Where too few pass: with their reason, or ``outside-intended-use`` where they have several; or where an
            image cannot be read at all.
        """
        for file, dataset, radiograph in self._passing(shown=True):
            assert radiograph is not None
            yield file, radiograph, dataset

    def headers(self) -> Iterator[tuple[ImageFile, Dataset]]:
        """Yield each image that passes with its header alone; its pixels are looked at only where the card asks that.

        Raises
        ------
        InputRefused
            As iterating does.
        """
        for file, dataset, _ in self._passing(shown=self._role.limits.plausible is not None):
            yield file, dataset

    def _passing(self, *, shown: bool) -> Iterator[tuple[ImageFile, Dataset, Radiograph | None]]:
        from inference.radiograph import radiograph_of

        self._passed = 0
        for file in self._files:
            dataset = open_image(file)
            radiograph = None
            try:
                unknown = _held(self._role, dataset, textless=self._textless)
                if shown:
                    radiograph = radiograph_of(dataset)
                    gate.pixels(self._role, radiograph.pixels)
            except InputRefused as refusal:
                self._leave_out(refusal)
                continue
            self._unknown |= dict.fromkeys(unknown)
            self._passed += 1
            yield file, dataset, radiograph
        if self._passed < self._role.minimum_instances:
            raise self._too_few(self._passed)

    def without(self, refusal: InputRefused) -> None:
        """Leave out the image that was given last after all: what the model would read of it is refused.

        Raises
        ------
        InputRefused
            The same, where its reason is none of the gate's.
        """
        self._leave_out(refusal)
        self._passed -= 1

    def _leave_out(self, refusal: InputRefused) -> None:
        if refusal.reason not in REASONS:
            raise refusal
        self._refusals.append(refusal)

    def warnings(self) -> tuple[str, ...]:
        """Say what was not known, and which images were left out while others were analysed."""
        said = [f"{refusal.text} ({refusal.reason})" for refusal in self._refusals]
        of = len(self._files)
        left_out = (f"Not analysed, {said.count(one)} of {of} images: {one}." for one in dict.fromkeys(said))
        return (*self._unknown, *left_out)

    def _too_few(self, passed: int) -> InputRefused:
        needed, given = self._role.minimum_instances, len(self._files)
        if passed == 0 and len({refusal.reason for refusal in self._refusals}) == 1:
            return self._refusals[0]
        told = "; ".join(dict.fromkeys(refusal.text for refusal in self._refusals))
        said = f"{passed} of {given} images are what the model's card means; it needs {needed}"
        reason = "outside-intended-use"
        return InputRefused(reason, f"{said} ({told})" if told else said, REASONS[reason])


def _held(role: InputRole, dataset: Dataset, *, textless: bool) -> tuple[str, ...]:
    """Hold one image's header against its role; return what was not known and allowed."""
    gate.means(role, dataset)
    unknown = gate.header(role, dataset)
    # Last, so that whoever reads the reason learns first what the model is not meant for.
    if textless:
        require_no_text(dataset)
    return unknown


@dataclass(frozen=True, slots=True)
class Series:
    """What of a role is handed to an engine that reads files by itself.

    Attributes
    ----------
    files
        Those that pass, in their order; of a volume all, but for localizers whose text has to stay.
    words
        What was not known and allowed, and which images were left out.
    first
        What the header of the first image that passed is like.
    """

    files: tuple[ImageFile, ...]
    words: tuple[str, ...]
    first: Features


def series(role: InputRole, files: Sequence[ImageFile], *, textless: bool = False) -> Series:
    """Hold the images of a role, for an engine that reads files by itself: radiographs each for itself, volumes whole.

    Parameters
    ----------
    textless
        Let no image pass that says that text is burned into it (:func:`inference.outgoing.keeps_text`).

    Raises
    ------
    InputRefused
        As the functions of :mod:`inference.gate` do, and with the reasons of :func:`inference.volume.stacked`; of
        radiographs where too few pass, as :class:`Admitted` says.
    """
    if role.kind == "volume":
        from inference.volume import coverage_of, stacked

        held = Held(role, textless=textless)
        planes, beside, lie = stacked(files, minimum=role.minimum_instances, hold=held.image)
        gate.volume(role, coverage_of(planes, lie))
        staying, words = (
            _with_text(beside, {plane.index for plane in planes}, len(files)) if textless else (frozenset[int](), ())
        )
        passing = tuple(file for index, file in enumerate(files) if index not in staying)
        return Series(passing, (*held.words, *words), held.first)
    admitted = Admitted(role, files, textless=textless)
    passed: list[ImageFile] = []
    first: Features = {}
    for file, dataset in admitted.headers():
        passed.append(file)
        first = first or of_header(dataset)
    return Series(tuple(passed), admitted.warnings(), first)


def _with_text(
    localizers: Sequence[Plane], of_volume: Collection[int], count: int
) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return which files hold localizers alone and say that text is burned into them, and words about these."""
    staying: set[int] = set()
    said: dict[str, None] = {}
    for plane in localizers:
        try:
            if plane.index not in of_volume:
                require_no_text(plane.groups[-1])
        except InputRefused as refusal:
            staying.add(plane.index)
            said[f"{refusal.text} ({refusal.reason})"] = None
    return frozenset(staying), tuple(f"Not analysed, {len(staying)} of {count} images: {one}." for one in said)
