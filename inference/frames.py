"""The planes of image files: one a single-frame image, one a frame of an enhanced multi-frame image, and where it lies.

What says where a frame lies, what its values mean and which acquisition or phase it belongs to stands in the image's
own attributes where it has one frame, and in functional groups, shared or of each frame, where it has many (PS3.3
C.7.6.16). Everything is LPS in mm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import InputRefused
from inference.imagefile import (
    ModalityValues,
    count_of,
    modality_values,
    open_image,
    require_pixels,
    texts_of,
    value_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = ["MARKS", "Mark", "Plane", "read_planes"]

#: Direction cosines are unit vectors at right angles within this.
COSINE_TOLERANCE = 0.01
#: Distances between pixels (mm) that a scanner can give, of a microscope's to a mistake in units.
_PIXEL_SPACING_MM = (0.001, 100.0)
#: No first pixel lies further from the origin of its frame of reference, mm: a table is a few metres long.
_FURTHEST_MM = 1e5
#: Frames of one image beyond this are not read: each costs memory before it is looked at.
_MOST_FRAMES = 20_000


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells volumes apart that lie in one place: an attribute, and the functional group's where there is one."""

    keyword: str
    group: str
    group_keyword: str
    reason: str
    words: str


#: In the order in which they are asked. The last are times, which differ between slices of one volume as well.
MARKS = (
    Mark("StackID", "FrameContentSequence", "StackID", "several-stacks", "stacks"),
    Mark("EchoTime", "MREchoSequence", "EffectiveEchoTime", "several-echoes", "echo times"),
    Mark("EchoNumbers", "", "", "several-echoes", "echoes"),
    Mark("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue", "several-diffusion-weightings", "b-values"),
    Mark("InversionTime", "MRModifierSequence", "InversionTimes", "several-inversion-times", "inversion times"),
    Mark("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex", "several-phases", "times"),
    Mark(
        "TriggerTime",
        "CardiacSynchronizationSequence",
        "NominalCardiacTriggerDelayTime",
        "several-phases",
        "delays from the trigger",
    ),
    Mark(
        "NominalPercentageOfCardiacPhase",
        "CardiacSynchronizationSequence",
        "NominalPercentageOfCardiacPhase",
        "several-phases",
        "phases of the heart",
    ),
    Mark(
        "NominalPercentageOfRespiratoryPhase",
        "RespiratorySynchronizationSequence",
        "NominalPercentageOfRespiratoryPhase",
        "several-phases",
        "phases of breathing",
    ),
    Mark("ContrastBolusAgent", "ContrastBolusUsageSequence", "ContrastBolusAgentPhase", "several-phases", "contrasts"),
    Mark("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel", "several-reconstructions", "kernels"),
    Mark("KVP", "CTXRayDetailsSequence", "KVP", "several-energies", "tube voltages"),
    Mark("ImageType", "", "FrameType", "several-image-types", "image types"),
    Mark("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber", "several-acquisitions", "acquisitions"),
    Mark(
        "AcquisitionTime",
        "FrameContentSequence",
        "FrameAcquisitionDateTime",
        "several-acquisitions",
        "acquisition times",
    ),
)
_FRAME_TYPES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence", "PETFrameTypeSequence")


@dataclass(slots=True)
class Plane:
    """One frame and where it lies.

    Attributes
    ----------
    index, key
        Of its file, among those given.
    frame
        Its number within the image, from 1; 0 where the image is a single-frame one.
    groups
        Where its attributes stand: its own functional groups, the shared ones, last the image's own dataset. Let go
        once the frame is decoded.
    position, orientation
        LPS, mm (PS3.3 C.7.6.2.1.1): the centre of the first pixel; the directions of a row and of a column.
    pixel_spacing
        (between rows, between columns), mm.
    """

    index: int
    key: str
    frame: int
    groups: tuple[Dataset, ...]
    modality: str
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    matrix: tuple[int, int]
    values: ModalityValues
    localizer: bool
    frame_of_reference: str

    def mark(self, mark: Mark) -> str:
        """Return its value of a mark, or "" where it has none."""
        if mark.group_keyword == "FrameType":
            return "\\".join(_image_type(self.groups))
        holder = _holder(self.groups, mark.group) if mark.group and len(self.groups) > 1 else self.groups[-1]
        return "\\".join(texts_of(holder, mark.keyword if holder is self.groups[-1] else mark.group_keyword))


def read_planes(index: int, file: ImageFile) -> list[Plane]:
    """Read the attributes of an image's frames; no pixel is decoded.

    Raises
    ------
    InputRefused
        ``unreadable``, ``no-pixels``, ``multi-sample``, ``unsupported-photometric``, ``unsupported-bits``,
        ``multi-frame``, ``missing-geometry``, ``missing-rescale`` or ``not-hounsfield``.
    """
    dataset = open_image(file)
    matrix = require_pixels(dataset)
    modality = "".join(texts_of(dataset, "Modality")[:1])
    frames = count_of(dataset, "NumberOfFrames", default=1)
    planes = []
    for frame, groups in _frames(dataset, frames):
        spacing = _numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
        orientation = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        row, column = orientation[:3], orientation[3:]
        lengths_off = max(abs(float(np.linalg.norm(row)) - 1), abs(float(np.linalg.norm(column)) - 1))
        if lengths_off > COSINE_TOLERANCE or abs(float(row @ column)) > COSINE_TOLERANCE:
            raise InputRefused(
                "missing-geometry", "Image Orientation (Patient) is not two unit vectors at right angles to each other"
            )
        if not ((spacing >= _PIXEL_SPACING_MM[0]) & (spacing <= _PIXEL_SPACING_MM[1])).all():
            raise InputRefused(
                "missing-geometry",
                "Pixel Spacing is not between {:g} and {:g} mm".format(*_PIXEL_SPACING_MM),
            )
        position = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
        if np.abs(position).max() > _FURTHEST_MM:
            raise InputRefused(
                "missing-geometry", f"Image Position (Patient) lies further than {_FURTHEST_MM:g} mm from its origin"
            )
        planes.append(
            Plane(
                index=index,
                key=file.key,
                frame=frame,
                groups=groups,
                modality=modality,
                position=position,
                orientation=orientation,
                pixel_spacing=(float(spacing[0]), float(spacing[1])),
                matrix=matrix,
                values=_values(groups, modality),
                localizer="LOCALIZER" in _image_type(groups),
                frame_of_reference="".join(texts_of(dataset, "FrameOfReferenceUID")),
            )
        )
    return planes


def _frames(dataset: Dataset, frames: int) -> Iterator[tuple[int, tuple[Dataset, ...]]]:
    """Yield each frame's number and where its attributes stand: its own groups, the shared ones, the image's own."""
    if "PerFrameFunctionalGroupsSequence" not in dataset and "SharedFunctionalGroupsSequence" not in dataset:
        if frames > 1:
            raise InputRefused(
                "multi-frame", "an image of many frames has no functional groups that say where each of them lies"
            )
        yield 0, (dataset,)
        return
    own = value_of(dataset, "PerFrameFunctionalGroupsSequence") or ()
    shared = value_of(dataset, "SharedFunctionalGroupsSequence") or ()
    if not 1 <= frames <= _MOST_FRAMES or len(own) != frames:
        raise InputRefused("multi-frame", f"an image of {frames} frames has functional groups for {len(own)}")
    for number, groups in enumerate(own, start=1):
        yield number, (groups, *shared[:1], dataset)


def _holder(groups: Sequence[Dataset], sequence: str) -> Dataset:
    """Return what holds a functional group's attributes for a frame: the group's item, else the image itself."""
    for holder in groups[:-1]:
        items = value_of(holder, sequence)
        if items:
            item: Dataset = items[0]
            return item
    return groups[-1]


def _numbers(groups: Sequence[Dataset], sequence: str, keyword: str, count: int) -> npt.NDArray[np.float64]:
    try:
        values = np.array([float(value) for value in value_of(_holder(groups, sequence), keyword)], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("missing-geometry", f"{keyword} is absent or is not {count} numbers") from problem
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputRefused("missing-geometry", f"{keyword} is absent or is not {count} numbers")
    return values


def _values(groups: Sequence[Dataset], modality: str) -> ModalityValues:
    values = modality_values(_holder(groups, "PixelValueTransformationSequence"), modality)
    units = texts_of(groups[-1], "Units") if modality == "PT" else ()
    return replace(values, unit=units[0]) if units else values


def _image_type(groups: Sequence[Dataset]) -> tuple[str, ...]:
    for sequence in _FRAME_TYPES if len(groups) > 1 else ():
        holder = _holder(groups, sequence)
        if holder is not groups[-1]:
            return texts_of(holder, "FrameType")
    return texts_of(groups[-1], "ImageType")
