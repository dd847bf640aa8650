"""What a program says as DICOM: a SEG on the planes of its images, or the measurements of an SR by TID 1500."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.engines.command_outputs import Images, classification, measurement, whole
from inference.errors import EngineFailure
from inference.findings import Classification, Findings, Measurement

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.card import Card, Output
    from inference.deidentify import Pseudonyms
    from inference.marking import Marking

    Labels = npt.NDArray[np.uint8]

__all__ = ["Plane", "labels_of_seg", "planes_of", "read_sr"]

_SEG: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_SR: Final = "1.2.840.10008.5.1.4.1.1.88."
_MOST_SR: Final = 32 << 20
_MOST_ITEMS: Final = 100_000
#: A frame lies on an image when no coordinate differs by more, in mm, and no direction cosine by more than the second.
_SAME_PLACE, _SAME_DIRECTION = 0.1, 0.01
_PRESENT, _ABSENT = ("52101004", "SCT"), ("272519000", "SCT")
_PROBABILITY = ("122157", "DCM")


@dataclass(frozen=True, slots=True)
class Plane:
    """One image, or frame of one, as the program got it: where its pixels lie (LPS, mm)."""

    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


def planes_of(dataset: Dataset, size: tuple[int, int]) -> Iterator[tuple[int, Plane]]:
    """Yield the number of each frame, from 1, and its plane; 0 for a single-frame image."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    wanted = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    )
    if not frames:
        geometry = [tuple(float(one) for one in dataset.get(keyword) or ()) for _, keyword in wanted]
        yield 0, Plane(size, *geometry)
        return
    for number, groups in enumerate(frames, start=1):
        found = []
        for sequence, keyword in wanted:
            items = groups.get(sequence) or shared.get(sequence)
            found.append(tuple(float(one) for one in items[0].get(keyword) or ()) if items else ())
        yield number, Plane(size, *found)


def broke(text: str) -> EngineFailure:
    """Return the failure of a program whose answer cannot be believed."""
    return EngineFailure("broke", text)


def labels_of_seg(
    card: Card, path: Path, planes: Mapping[tuple[str, int], Plane], ours: Pseudonyms, marking: Marking
) -> Labels:
    """Return a mask on the images' own pixels from a SEG.

    Parameters
    ----------
    planes
        By true key and frame, the images that may be segmented, in the order of the answer.
    marking
        What writes the labels, and knows afterwards which values stand for several of them.

    Returns
    -------
    numpy.ndarray
        uint8, (images, rows, columns).

    Raises
    ------
    EngineFailure
        ``broke``: no SEG, another patient's, on another grid, or a segment that the card does not name.
    """
    dataset = _read(path, ours)
    if str(dataset.get("SOPClassUID", "")) not in _SEG:
        raise broke("the program's answer is no DICOM Segmentation")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Seg(card, dataset, planes, ours, marking).labels()
    except (EngineFailure, MemoryError):
        raise
    except Exception as problem:  # hostile bytes fail in every way that a parser has
        raise broke(f"the program's SEG cannot be read ({type(problem).__name__})") from problem


def _read(path: Path, ours: Pseudonyms) -> Dataset:
    """Parse a program's object, which has to be about the patient that the program was given."""
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, defer_size=4096)
            patient, study = str(dataset.get("PatientID", "")), str(dataset.get("StudyInstanceUID", ""))
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # hostile bytes fail in every way that a parser has
        raise broke(f"the program's answer is no DICOM object ({type(problem).__name__})") from problem
    if patient not in ("", ours.patient) or study not in ours:
        raise broke("the program's answer is about another patient or study than it was given")
    return dataset


class _Seg:
    """A SEG, held against the images."""

    def __init__(
        self,
        card: Card,
        dataset: Dataset,
        planes: Mapping[tuple[str, int], Plane],
        ours: Pseudonyms,
        marking: Marking,
    ) -> None:
        self._marking = marking
        self._dataset, self._planes, self._order, self._ours = dataset, planes, list(planes), ours
        self._shared = dataset.SharedFunctionalGroupsSequence[0]
        self._frames = dataset.PerFrameFunctionalGroupsSequence
        self._type = str(dataset.SegmentationType)
        frame = str(dataset.get("FrameOfReferenceUID", "") or "")
        if frame and frame not in ours:
            raise broke("the program's SEG lies in another frame of reference than its images")
        # Number 0 is the background of a label map (PS3.3 C.8.20.4), where that is described at all.
        described = [item for item in dataset.SegmentSequence if int(item.SegmentNumber) != 0]
        self._labels = {int(item.SegmentNumber): _label(card, item) for item in described}
        # The card's order: where one of those that overlap has the voxel, it is the one that the card names later.
        self._rank = {output.label: rank for rank, output in enumerate(card.outputs)}

    def labels(self) -> Labels:
        """Return the mask."""
        size = next(iter(self._planes.values())).size
        rows, columns, count = int(self._dataset.Rows), int(self._dataset.Columns), len(self._frames)
        if (rows, columns) != size:
            raise broke(f"the program's SEG has {rows} x {columns} pixels; its images have {size[0]} x {size[1]}")
        if count != int(self._dataset.get("NumberOfFrames", 1)) or count > len(self._order) * len(self._labels):
            raise broke(f"the program's SEG has {count} frames, which its images and segments cannot have")
        pixels = self._dataset.pixel_array.reshape(count, rows, columns)
        places = {key: place for place, key in enumerate(self._order)}
        answer: Labels = np.zeros((len(self._order), rows, columns), np.uint8)
        table = np.zeros(1 << 16, np.uint8)
        for number, label in self._labels.items():
            table[number] = label
        known = np.zeros(1 << 16, bool)
        known[[0, *self._labels]] = True
        least = float(self._dataset.get("MaximumFractionalValue", 255)) / 2
        seen: set[tuple[tuple[str, int], int]] = set()
        numbers = [self._number(groups) for groups in self._frames]
        for index in sorted(range(count), key=lambda one: self._rank.get(self._labels.get(numbers[one], 0), 0)):
            frame, number = pixels[index], numbers[index]
            key = self._key(self._frames[index])
            if (key, number) in seen:
                raise broke("the program's SEG has two frames of one segment on one image")
            seen.add((key, number))
            plane = answer[places[key]]
            if self._type == "LABELMAP":
                if not known[frame].all():
                    raise broke("the program's SEG holds a segment that it does not describe")
                plane[:] = table[frame]
            else:
                inside = frame >= least if self._type == "FRACTIONAL" else frame != 0
                self._marking.put(plane, inside, self._labels[number], within=answer)
        return answer

    def _number(self, groups: Dataset) -> int:
        """Return the number of the segment that a frame holds; 0 where it may hold any."""
        if self._type == "LABELMAP":
            return 0
        number = int(self._of(groups, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        if number not in self._labels:
            raise broke("the program's SEG holds a segment that it does not describe")
        return number

    def _key(self, groups: Dataset) -> tuple[str, int]:
        """Return the image that a frame lies on: by its reference and by its place, which have to agree."""
        position = self._of(groups, "PlanePositionSequence", None)
        orientation = self._of(groups, "PlaneOrientationSequence", None)
        measures = self._of(groups, "PixelMeasuresSequence", None)
        referenced = _referenced(self._of(groups, "DerivationImageSequence", None))
        candidates = list(self._order)
        if referenced is not None:
            uid, frames = referenced
            true = self._ours.true(uid)
            candidates = [one for one in candidates if one[0] == true and (not frames or one[1] in (0, *frames))]
            if not candidates:
                raise broke("the program's SEG refers to an image that it was not given")
        if position is not None:
            where = _numbers(position.ImagePositionPatient)
            candidates = [key for key in candidates if np.abs(where - self._planes[key].position).max() <= _SAME_PLACE]
        elif referenced is None:
            candidates = []
        if len(candidates) != 1:
            raise broke("a frame of the program's SEG lies on none of its images")
        plane = self._planes[candidates[0]]
        turned = orientation is not None and (
            np.abs(_numbers(orientation.ImageOrientationPatient) - plane.orientation).max() > _SAME_DIRECTION
        )
        spacing = _numbers(measures.PixelSpacing) if measures is not None and "PixelSpacing" in measures else None
        if turned or (spacing is not None and np.abs(spacing / plane.spacing - 1).max() > _SAME_DIRECTION):
            raise broke("a frame of the program's SEG lies on another grid than its image")
        return candidates[0]

    def _of(self, groups: Dataset, keyword: str, *default: None) -> Any:
        for place in (groups, self._shared):
            if place.get(keyword):
                return place[keyword].value[0]
        if default:
            return None
        raise broke(f"a frame of the program's SEG has no {keyword}")


def _numbers(values: Any) -> npt.NDArray[np.float64]:
    return np.array([float(one) for one in values])


def _referenced(derivation: Any) -> tuple[str, tuple[int, ...]] | None:
    """Return the image that a frame was derived from, and the numbers of its frames where they are given."""
    sources = derivation.get("SourceImageSequence") if derivation is not None else None
    if not sources:
        return None
    numbers = sources[0].get("ReferencedFrameNumber")
    frames = () if numbers is None else (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return str(sources[0].ReferencedSOPInstanceUID), tuple(int(one) for one in frames)


def _label(card: Card, segment: Dataset) -> int:
    """Return the card's label for a segment: by its code, its words, or its number, in this order."""
    kind = segment.get("SegmentedPropertyTypeCodeSequence")
    code = _code(kind[0]) if kind else None
    words = str(segment.get("SegmentLabel", "")).strip().lower()
    number = int(segment.SegmentNumber)
    by_code = [one for one in card.outputs if (one.code.value, one.code.scheme) == code]
    by_words = [one for one in card.outputs if one.name.lower() == words]
    by_number = [one for one in card.outputs if one.label == number]
    for found in (by_code, by_words) if by_code or by_words else (by_number,):
        if len(found) == 1 and found[0].label is not None:
            return found[0].label
    raise broke(f"the program's SEG has a segment ({number}) that its card does not name")


def _code(item: Dataset) -> tuple[str, str]:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return str(value), str(item.get("CodingSchemeDesignator", ""))


def read_sr(card: Card, path: Path, images: Images, ours: Pseudonyms) -> Findings:
    """Return what an SR by TID 1500 says of the outputs that the card names.

    A measurement is a NUM item with an output's code, in that output's unit. A classification is a CODE item whose
    concept is an output's code and whose value is Present or Absent, with a Probability (122157, DCM) in its group.

    Raises
    ------
    EngineFailure
        ``broke``, if it is none, says nothing that the card names, or contradicts itself.
    """
    if path.stat().st_size > _MOST_SR:
        raise broke(f"the program's SR is larger than {_MOST_SR >> 20} MB")
    dataset = _read(path, ours)
    if not str(dataset.get("SOPClassUID", "")).startswith(_SR):
        raise broke("the program's answer is no Structured Report")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = list(_groups(dataset))
            return _said(card, groups, images)
    except (EngineFailure, MemoryError):
        raise
    except Exception as problem:  # hostile bytes fail in every way that a parser has
        raise broke(f"the program's SR cannot be read ({type(problem).__name__})") from problem


def _groups(dataset: Dataset) -> Iterator[list[Dataset]]:
    """Yield each container's own items; measurements are in the one that groups them (TID 1501)."""
    left = _MOST_ITEMS
    front = [dataset]
    while front:
        container = front.pop()
        items = list(container.get("ContentSequence") or ())
        left -= len(items)
        if left < 0:
            raise broke(f"the program's SR has more than {_MOST_ITEMS} items")
        yield items
        front += [item for item in items if item.get("ValueType") == "CONTAINER"]


def _said(card: Card, groups: list[list[Dataset]], images: Images) -> Findings:
    by_code = {(output.code.value, output.code.scheme): output for output in card.outputs}
    measurements: list[Measurement] = []
    classifications: list[Classification] = []
    for items in groups:
        image = _image(items)
        probabilities = [_value(item)[0] for item in items if _concept(item) == _PROBABILITY]
        for item in items:
            output = by_code.get(_concept(item) or ("", ""))
            if output is None:
                continue
            if item.ValueType == "NUM" and card.task == "measurement":
                measurements.append(_measured(output, item, images.named(image)))
            elif item.ValueType == "CODE" and card.task == "classification":
                if len(probabilities) > 1:
                    raise broke(f"the program's SR gives {len(probabilities)} probabilities of {output.name}")
                probability = probabilities[0] if probabilities else None
                classifications.append(_classified(output, item, probability, images.named(image)))
    if not measurements and not classifications:
        raise broke(f"the program's SR holds no {card.task} that its card names")
    findings = Findings(
        images=tuple(images.true.values()),
        measurements=tuple(measurements),
        classifications=tuple(classifications),
    )
    return whole(card, findings)


def _concept(item: Dataset) -> tuple[str, str] | None:
    names = item.get("ConceptNameCodeSequence")
    return _code(names[0]) if names else None


def _value(item: Dataset) -> tuple[float, tuple[str, str]]:
    measured = item.MeasuredValueSequence[0]
    return float(measured.NumericValue), _code(measured.MeasurementUnitsCodeSequence[0])


def _measured(output: Output, item: Dataset, image: str) -> Measurement:
    value, unit = _value(item)
    assert output.unit is not None
    if unit != (output.unit.value, output.unit.scheme):
        raise broke(f"the program measured {output.name} in another unit than its card says ({output.unit.value})")
    return measurement(output, value, image)


def _classified(output: Output, item: Dataset, probability: float | None, image: str) -> Classification:
    answer = _code(item.ConceptCodeSequence[0])
    if answer not in (_PRESENT, _ABSENT):
        raise broke(f"the program says of {output.name} neither that it is present nor that it is absent")
    if probability is None or not 0 <= probability <= 1:
        raise broke(f"the program's SR gives no probability (0 to 1) of {output.name}")
    made = classification(output, probability, image)
    if made.present != (answer == _PRESENT):
        raise broke(f"the program's word about {output.name} contradicts its probability and the card's threshold")
    return made


def _image(items: list[Dataset]) -> str | None:
    """Return the one image that a group refers to, at whatever depth, or None where there is none."""
    found: set[str] = set()
    front = list(items)
    while front:
        item = front.pop()
        if item.get("ValueType") == "CONTAINER":
            continue
        found |= {str(one.ReferencedSOPInstanceUID) for one in item.get("ReferencedSOPSequence") or ()}
        front += list(item.get("ContentSequence") or ())
    if len(found) > 1:
        raise broke("a group of the program's SR is about several images")
    return next(iter(found), None)
