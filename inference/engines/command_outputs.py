"""What a program has left in its output folder: found without following a link, read within bounds, checked."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, ValidationError

from inference.errors import EngineFailure
from inference.fields import Strict
from inference.findings import Classification, Detection, Findings, Measurement, NotAnalysed
from inference.grid import Grid, reorient
from inference.nifti import NiftiError, read_nifti

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card, Output
    from inference.marking import Marking
    from inference.volume import Volume

    Labels = npt.NDArray[np.uint8]

__all__ = ["Images", "labels_of_nifti", "read_json", "results"]

_MOST_JSON = 16 << 20
#: Voxels may lie this far (in voxels) from those of the series: programs write their affines as 32-bit floats.
_SAME_PLACE = 0.05


class Images:
    """The images of a run: by the names that the program saw, by their true keys, and their sizes."""

    def __init__(self) -> None:
        self.true: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    def add(self, pseudonym: str, key: str, size: tuple[int, int]) -> None:
        """Remember an image that the program gets."""
        self.true[pseudonym] = key
        self.sizes[key] = size

    def named(self, pseudonym: str | None) -> str:
        """Return the key of the image that a program names; of the only one where it names none.

        Raises
        ------
        EngineFailure
            If it is none that the program was given.
        """
        if pseudonym is None and len(self.true) == 1:
            return next(iter(self.true.values()))
        if pseudonym is None:
            raise EngineFailure(
                "broke",
                "the program answered about no image in particular, and there are several: the key 'image' names one, "
                "by its SOP Instance UID in the copy",
            )
        if pseudonym not in self.true:
            raise EngineFailure("broke", "the program answered about an image that it was not given")
        return self.true[pseudonym]


def results(folder: Path, pattern: str) -> list[Path]:
    """Return the plain files in the output folder, at any depth, whose names match a pattern, in order.

    Raises
    ------
    EngineFailure
        ``broke``, if there is a link or anything else that is neither file nor folder, or no such file, or a folder or
        file that cannot be read.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=False, onerror=_unreadable):
        for name in (*folders, *files):
            mode = (Path(place) / name).lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise EngineFailure("broke", "the program left a link or a device among its results")
        found += [Path(place) / name for name in files if fnmatch.fnmatchcase(name, pattern)]
    for path in found:
        if not os.access(path, os.R_OK):
            raise EngineFailure("broke", "the program left a result that may not be read")
    if not found:
        raise EngineFailure("broke", f"the program ended well and left no result ({pattern})")
    return sorted(found)


def _unreadable(problem: OSError) -> None:
    raise EngineFailure("broke", f"the program left a folder that cannot be read ({problem.strerror})") from problem


def labels_of_nifti(card: Card, folder: Path, volume: Volume, most_bytes: int, marking: Marking) -> Labels:
    """Return a mask on a volume's own grid from NIfTI files in any orientation.

    One file holds labels, or, with a channel for each of the card's outputs, 0 and 1. Several hold a structure each.
    ``marking`` writes the labels, and knows afterwards which values stand for several of them.

    Raises
    ------
    EngineFailure
        ``broke``, if they lie on another grid or hold a label that the card does not name.
    """
    command = card.command
    assert command is not None
    grid = volume.grid
    known = {output.label for output in card.outputs}
    if command.masks:
        labels: Labels = np.zeros(grid.shape, np.uint8)
        for name, label in command.masks.items():
            if label not in known:
                raise EngineFailure("broke", f"{card.path}: command.masks.{name}: outputs name no label {label}")
            paths = results(folder, name)
            if len(paths) > 1:
                raise EngineFailure("broke", f"the program left {len(paths)} files for command.masks.{name}")
            [part] = _on(grid, paths[0], most_bytes)
            marking.put(labels, part != 0, label, within=labels)
        return labels
    paths = results(folder, command.result or "*.nii*")
    if len(paths) > 1:
        raise EngineFailure(
            "broke", f"the program left {len(paths)} NIfTI files; command.result or command.masks says which hold what"
        )
    parts = _on(grid, paths[0], most_bytes, channels=len(card.outputs))
    if len(parts) > 1:
        labels = np.zeros(grid.shape, np.uint8)
        for output, part in zip(card.outputs, parts, strict=True):
            if part.max() > 1:
                raise EngineFailure("broke", "the program's mask has channels that hold more than 0 and 1")
            marking.put(labels, part != 0, output.label or 0, within=labels)
        return labels
    labels = parts[0]
    strange = sorted(labels_in(labels) - known - {0})
    if strange:
        raise EngineFailure("broke", f"the program answered label {strange[0]}, which its card does not name")
    return labels


def labels_in(labels: Labels) -> set[int]:
    """Return the values in a mask; plane by plane, since a look at all at once takes eight times its memory."""
    seen = np.zeros(256, bool)
    for plane in labels:
        seen[plane] = True
    return {int(one) for one in np.flatnonzero(seen)}


def _on(grid: Grid, path: Path, most_bytes: int, channels: int = 1) -> list[Labels]:
    """Return the labels of a file on a grid: one array, or as many as are asked for where it has so many channels."""
    try:
        array, place = read_nifti(path, most_bytes=most_bytes, channels=channels)
    except NiftiError as problem:
        raise EngineFailure("broke", f"the program's NIfTI file is not read: {problem}") from problem
    return [_turned(grid, one, place) for one in (array if array.ndim == 4 else [array])]


def _turned(grid: Grid, array: npt.NDArray[Any], place: Grid) -> Labels:
    turned, place = reorient(array, place, grid.axes)
    if not place.matches(grid, tolerance=_SAME_PLACE):
        raise EngineFailure(
            "broke",
            f"the program's mask lies on another grid: {place.shape} voxels of {_mm(place)} mm; "
            f"the series has {grid.shape} of {_mm(grid)} mm, or lies elsewhere",
        )
    if turned.dtype == np.uint8:
        return turned
    least, most = turned.min(), turned.max()
    if not (least >= 0 and most <= 255) or not np.array_equal(turned, np.rint(turned)):
        raise EngineFailure("broke", "the program's mask holds values that are no labels (whole numbers, 0 to 255)")
    return turned.astype(np.uint8)


def _mm(grid: Grid) -> str:
    return " x ".join(f"{one:.3g}" for one in grid.spacing_mm)


#: JSON's numbers alone: no text that looks like one, and neither true nor false.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
#: As with a model that the node runs itself, a rounding step beyond 0 to 1 is none.
Probability = Annotated[Number, Field(ge=-1e-5, le=1 + 1e-5), AfterValidator(lambda one: min(max(one, 0.0), 1.0))]


class _Said(Strict):
    name: str
    image: str | None = None


class _SaidClass(_Said):
    probability: Probability


class _SaidValue(_Said):
    value: Number


class _SaidBox(_Said):
    probability: Probability
    box: tuple[Number, Number, Number, Number]


class _SaidNothing(Strict):
    reason: str


class Answer(Strict):
    """What a program may say in JSON; everything else is refused."""

    classifications: tuple[_SaidClass, ...] | None = None
    measurements: tuple[_SaidValue, ...] | None = None
    detections: tuple[_SaidBox, ...] | None = None
    not_analysed: _SaidNothing | None = None


def read_json(card: Card, path: Path, images: Images) -> Findings:
    """Return what a program says in JSON, by the outputs that its card names.

    Raises
    ------
    EngineFailure
        ``broke``, if it is not what docs/models.md describes.
    """
    if path.stat().st_size > _MOST_JSON:
        raise EngineFailure("broke", f"the program's answer is longer than {_MOST_JSON >> 20} MB")
    said = _parsed(path.read_bytes())
    everything = tuple(images.true.values())
    wanted = {"classification": said.classifications, "measurement": said.measurements, "detection": said.detections}
    if said.not_analysed is not None:
        if any(wanted.values()):
            raise EngineFailure("broke", "the program says that it did not analyse, and what it found beside that")
        return Findings(images=everything, not_analysed=statement(card, said.not_analysed.reason))
    strange = [kind for kind, given in wanted.items() if given and kind != card.task]
    if strange:
        raise EngineFailure("broke", f"the program answered a {strange[0]}; its card says {card.task}")
    # An empty list of boxes says that nothing was found; no list says nothing at all.
    if wanted[card.task] is None or (not wanted[card.task] and card.task != "detection"):
        raise EngineFailure("broke", f"the program answered no {card.task}, and no reason why")
    findings = Findings(
        images=everything,
        classifications=tuple(
            classification(output_of(card, one.name), one.probability, images.named(one.image))
            for one in said.classifications or ()
        ),
        measurements=tuple(
            measurement(output_of(card, one.name), one.value, images.named(one.image))
            for one in said.measurements or ()
        ),
        detections=tuple(
            found
            for one in said.detections or ()
            for found in (_detection(output_of(card, one.name), one, images.named(one.image), images.sizes),)
            # As with a detector that the node runs itself: what does not reach its threshold is not found.
            if found.probability >= found.threshold
        ),
    )
    return findings if card.task == "detection" else whole(card, findings)


def _parsed(data: bytes) -> Answer:
    """Return what a program says; a key that stands twice says two things, and parsers take either."""
    try:
        json.loads(data, object_pairs_hook=_once)
        return Answer.model_validate_json(data)
    except ValidationError as problem:
        first = problem.errors(include_input=False, include_url=False)[0]
        told = ".".join(str(part) for part in first["loc"])[:100] + f": {first['msg']}"[:200]
    except _TwiceError:
        told = "a key stands twice"
    except (ValueError, RecursionError):
        told = "no JSON"
    raise EngineFailure("broke", f"the program's answer is not what is expected: {told}")


class _TwiceError(Exception):
    """A key of an object stands twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError
    return found


def whole(card: Card, findings: Findings) -> Findings:
    """Return classifications or values that say one thing of each output for each image that they are about.

    Images of which nothing was said were not read, as far as anybody knows: they are left out of ``images``, and
    counted in a warning. A series is read as one, whichever of its images the program names.

    Raises
    ------
    EngineFailure
        ``broke``, if an output of the card has no answer for such an image, or several.
    """
    counts = Counter((one.image, one.name) for one in findings.classifications)
    counts.update((one.image, one.name) for one in findings.measurements)
    spoken = {image for image, _ in counts}
    for output in card.outputs:
        for image in spoken:
            if counts[image, output.name] != 1:
                how = f"{counts[image, output.name]} times" if counts[image, output.name] else "not at all"
                raise EngineFailure(
                    "broke", f"the program answered {output.name} {how} for an image; once is what its card means"
                )
    if card.inputs[0].kind == "volume":
        return findings
    read = tuple(image for image in findings.images if image in spoken)
    left = len(findings.images) - len(read)
    words = f"Not analysed, {left} of {len(findings.images)} images: the program said nothing of them."
    return replace(findings, images=read, warnings=(*findings.warnings, words) if left else findings.warnings)


def statement(card: Card, reason: str) -> NotAnalysed:
    """Return the card's own words for why there is no finding; a program's own might name anybody."""
    known = card.not_analysed.get(reason)
    if known is None:
        raise EngineFailure("broke", "the program gives a reason that does not stand under not_analysed in its card")
    return NotAnalysed(reason=reason, text=known.meaning, code=known.code)


def output_of(card: Card, name: str) -> Output:
    """Return the output of a name."""
    for output in card.outputs:
        if output.name == name:
            return output
    known = ", ".join(repr(output.name) for output in card.outputs)[:400]
    raise EngineFailure("broke", f"the program answered {name[:64]!r}, which its card does not name; it has {known}")


def classification(output: Output, probability: float, image: str) -> Classification:
    """Return one classification by the card's code and threshold."""
    assert output.threshold is not None
    return Classification(
        name=output.name, code=output.code, probability=probability, threshold=output.threshold, image=image
    )


def measurement(output: Output, value: float, image: str) -> Measurement:
    """Return one measurement by the card's code and unit."""
    assert output.unit is not None
    if not math.isfinite(value):
        raise EngineFailure("broke", f"the program measured {output.name} as no number")
    return Measurement(name=output.name, code=output.code, value=value, unit=output.unit, image=image)


def _detection(output: Output, said: _SaidBox, image: str, sizes: Mapping[str, tuple[int, int]]) -> Detection:
    assert output.threshold is not None
    top, left, bottom, right = said.box
    rows, columns = sizes[image]
    if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
        raise EngineFailure(
            "broke", f"the program found {output.name} in a box that does not lie in its image of {rows} x {columns}"
        )
    return Detection(
        name=output.name,
        code=output.code,
        probability=said.probability,
        threshold=output.threshold,
        image=image,
        box=(top, left, bottom, right),
    )
