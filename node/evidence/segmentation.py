"""Writes a mask as a DICOM Segmentation (PS3.3 A.51), BINARY, on the planes of its source images."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from inference.marking import places_of
from node.errors import EvidenceError, kind_and_place
from node.evidence import codes
from node.evidence.provenance import (
    Context,
    finish,
    new_uid,
    reference_to,
    series_description,
    series_number,
)
from node.evidence.structures import Structures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from inference.findings import Coverage, Segment, Segmentation
    from node.evidence.source import SourceImage

#: CIELab colours (PS3.3 C.10.7.1.1) told apart by the colour-blind, in the order of the segments.
_COLOURS = ((60.0, 0.0, -45.0), (75.0, 25.0, 70.0), (60.0, -45.0, 30.0), (55.0, 60.0, 20.0), (85.0, -10.0, 60.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSegmentation:
    """A SEG as written: its bytes, its identity and which segment number each label got."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    data: bytes
    segment_numbers: dict[int, int]


def tracking_identifier(segment: Segment) -> str:
    """Return the name under which SR and SEG follow one segment."""
    return segment.name[:64]


def write_segmentation(
    segmentation: Segmentation, coverage: Coverage | None, context: Context
) -> WrittenSegmentation | None:
    """Write the segments that hold at least one voxel; None when all are empty.

    BINARY, since viewers show LABELMAP in the wrong colours. Segments are numbered from 1 in their given order. Empty
    frames are left out: each frame carries its own position (LPS, mm) and the image that it was derived from.

    Raises
    ------
    EvidenceError
        The mask does not fit the images, holds an undescribed label, or an image lacks what places it in the patient.
    """
    import highdicom as hd
    from highdicom.seg import Segmentation as HighdicomSegmentation
    from highdicom.seg import SegmentDescription

    by_uid = context.source.by_uid
    images = [by_uid[uid] for uid in segmentation.images]
    labels = _checked(segmentation, images)
    values = _values_in(labels)
    overlapping = any(value in segmentation.together for value in values)
    present = {label for value in values for label in segmentation.together.get(value, (value,))}
    segments = [segment for segment in segmentation.segments if segment.label in present]
    if present - {segment.label for segment in segments}:
        raise EvidenceError("the mask holds a label that no segment describes")
    if not segments:
        return None
    numbers = {segment.label: number for number, segment in enumerate(segments, start=1)}
    algorithm = hd.AlgorithmIdentificationSequence(
        name=context.model.name,
        family=codes.concept(codes.ARTIFICIAL_INTELLIGENCE),
        version=context.model.version,
        source=context.model.manufacturer,
    )
    descriptions = [
        SegmentDescription(
            segment_number=numbers[segment.label],
            segment_label=segment.name[:64],
            segmented_property_category=codes.concept(segment.category),
            segmented_property_type=codes.concept(segment.code),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=context.tracking_uid(f"segment {segment.label}"),
            tracking_id=tracking_identifier(segment),
            display_color=hd.color.CIELabColor(*_COLOURS[index % len(_COLOURS)]),
        )
        for index, segment in enumerate(segments)
    ]
    series_uid, instance_uid = new_uid(), new_uid()
    planes = _planes_by_place(segmentation)
    firsts = [numbers_of[0] for numbers_of in planes.values()]
    frames = [segmentation.frames[first] for first in firsts] if segmentation.frames else ()
    references = _reference_images([images[first] for first in firsts], frames, coverage, context)
    try:
        document = HighdicomSegmentation(
            source_images=[reference for _, reference in references],
            pixel_array=_renumbered(labels, numbers)
            if len(planes) == len(labels) and not overlapping
            else cast("npt.NDArray[np.uint8]", Structures(segmentation, list(numbers), list(planes.values()))),
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            series_instance_uid=series_uid,
            series_number=series_number(context.revision, 1),
            sop_instance_uid=instance_uid,
            instance_number=1,
            manufacturer=context.node.manufacturer,
            manufacturer_model_name=context.node.model_name,
            software_versions=context.node.software_version,
            device_serial_number=context.node.device_uid,
            content_label="AI_SEGMENTATION",
            content_description=(
                "Demonstration, trained on synthetic images" if context.model.demonstration else context.model.title
            )[:64],
            series_description=series_description(context.model, "SEG"),
            specific_character_set=None,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # Their texts quote values, which may be the patient's: the kind and the place are enough to find it.
        raise EvidenceError(f"no SEG can be written on these images: {kind_and_place(error)}") from None
    if "FrameOfReferenceUID" not in document:
        # Nothing else says how an image without a plane in the patient is turned (PS3.3 C.7.6.1.1.1), and so its mask.
        document.PatientOrientation = list(images[0].patient_orientation or ()) or None
    _say_in_each_frame(document)
    _name_frames(document, {str(reference.SOPInstanceUID): frame for frame, reference in references if frame})
    return WrittenSegmentation(
        sop_class_uid=str(document.SOPClassUID),
        sop_instance_uid=instance_uid,
        series_instance_uid=series_uid,
        data=finish(document, context),
        segment_numbers=numbers,
    )


def _planes_by_place(segmentation: Segmentation) -> dict[tuple[str, int], list[int]]:
    """Return the planes of the mask that lie on each image or frame: of a radiograph one for each structure."""
    places: dict[tuple[str, int], list[int]] = {}
    for plane, place in enumerate(places_of(segmentation)):
        places.setdefault(place, []).append(plane)
    return places


def _say_in_each_frame(document: Dataset) -> None:
    """Move what highdicom found equal in all frames back into each of them (PS3.3 C.7.6.16.1.2 allows both).

    With one segment that is the segment's number, and readers that look for it frame by frame would not find it.
    """
    shared = document.SharedFunctionalGroupsSequence[0]
    for keyword in ("SegmentIdentificationSequence", "PlanePositionSequence", "DerivationImageSequence"):
        if keyword in shared:
            for frame in document.PerFrameFunctionalGroupsSequence:
                setattr(frame, keyword, list(shared[keyword].value))
            delattr(shared, keyword)


def _checked(segmentation: Segmentation, images: list[SourceImage]) -> npt.NDArray[np.uint8]:
    labels = np.asarray(segmentation.labels)
    if labels.ndim != 3 or labels.dtype != np.uint8 or len(labels) != len(images):
        raise EvidenceError(
            f"expected one plane of uint8 labels for each of {len(images)} images, got {labels.shape} of {labels.dtype}"
        )
    for image in images:
        if (image.rows, image.columns) != labels.shape[1:]:
            raise EvidenceError(
                f"image {image.sop_instance_uid} has {image.rows} x {image.columns} pixels, its mask {labels.shape[1:]}"
            )
    if len({image.series_instance_uid for image in images}) != 1:
        raise EvidenceError("one SEG covers the images of one series, and these are of several")
    return labels


def _values_in(labels: npt.NDArray[np.uint8]) -> set[int]:
    seen = np.zeros(256, bool)
    for plane in labels:  # plane by plane: indexing the whole volume at once would take eight times its memory
        if plane.any():
            seen[plane] = True
    return set(np.flatnonzero(seen).tolist()) - {0}


def _renumbered(labels: npt.NDArray[np.uint8], numbers: dict[int, int]) -> npt.NDArray[np.uint8]:
    if all(label == number for label, number in numbers.items()):
        return labels
    table = np.zeros(256, np.uint8)
    for label, number in numbers.items():
        table[label] = number
    return table[labels]


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame of a multi-frame image."""

    sop_class_uid: str
    sop_instance_uid: str
    number: int

    def name(self, item: Dataset) -> None:
        """Let an item refer to the frame's image."""
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.sop_class_uid, self.sop_instance_uid


def _reference_images(
    images: list[SourceImage], frames: Sequence[int], coverage: Coverage | None, context: Context
) -> list[tuple[_Frame | None, Dataset]]:
    """Return the least that highdicom needs of each image, with nothing in it that it would copy unseen.

    It knows of one multi-frame source at most, of which it wants every frame. So each frame goes to it as a
    single-frame image with a UID of its own, and :func:`_name_frames` puts the true one in its place.
    """
    numbers = frames or (0,) * len(images)
    try:
        places = [
            image.frames[number - 1] if number else image.place for image, number in zip(images, numbers, strict=True)
        ]
    except (IndexError, ValueError):
        raise EvidenceError("the mask lies on frames that its images do not have") from None
    placed = [bool(one.position and one.orientation and one.pixel_spacing) for one in places]
    if len(images) > 1 and not all(placed):
        lacking = images[placed.index(False)]
        raise EvidenceError(
            f"image {lacking.sop_instance_uid} has no position, orientation or pixel spacing: no mask can be placed"
        )
    spacing = coverage.spacing_mm if coverage and coverage.images > 1 else None
    # A series that names no frame of reference gets one of its own, the same for every document about it.
    series = images[0].series_instance_uid
    own_frame = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'frame of reference of {series}').int}"
    references: list[tuple[_Frame | None, Dataset]] = []
    for image, number, place in zip(images, numbers, places, strict=True):
        uid = new_uid() if number else image.sop_instance_uid
        sop_class = CTImageStorage if number else image.sop_class_uid
        item = reference_to(context.source, sop_class, uid, image.series_instance_uid)
        item.Modality = image.modality or "OT"
        item.Rows, item.Columns = image.rows, image.columns
        if place.position and place.orientation and place.pixel_spacing:
            item.FrameOfReferenceUID = images[0].frame_of_reference_uid or own_frame
            item.PositionReferenceIndicator = None
            item.ImagePositionPatient = _ds(place.position)
            # One orientation for all: the reader of the volume has refused any that differ by more than rounding.
            item.ImageOrientationPatient = _ds(places[0].orientation or ())
            item.PixelSpacing = _ds(places[0].pixel_spacing or ())
            thickness = places[0].slice_thickness or spacing
            if thickness:
                item.SliceThickness = _ds((thickness,))[0]
            if spacing:
                item.SpacingBetweenSlices = _ds((spacing,))[0]
        if image.lossy:
            item.LossyImageCompression = image.lossy[0]
            for keyword, value in zip(
                ("LossyImageCompressionRatio", "LossyImageCompressionMethod"), image.lossy[1:], strict=True
            ):
                if value:
                    setattr(item, keyword, value)
        frame = _Frame(image.sop_class_uid, image.sop_instance_uid, number) if number else None
        references.append((frame, item))
    return references


def _name_frames(document: Dataset, frames: dict[str, _Frame]) -> None:
    """Put image and frame number (0008,1160) in the place of the UIDs that stood for frames; list each image once."""
    if not frames:
        return
    for groups in document.PerFrameFunctionalGroupsSequence:
        for derivation in groups.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                frame = frames.get(item.ReferencedSOPInstanceUID)
                if frame is not None:
                    frame.name(item)
                    item.ReferencedFrameNumber = frame.number
    for series in document.ReferencedSeriesSequence:
        listed: dict[str, Dataset] = {}
        for item in series.ReferencedInstanceSequence:
            frame = frames.get(item.ReferencedSOPInstanceUID)
            if frame is not None:
                frame.name(item)
            listed.setdefault(item.ReferencedSOPInstanceUID, item)
        series.ReferencedInstanceSequence = list(listed.values())


def _ds(numbers: Any) -> list[str]:
    return [format_number_as_ds(float(number)) for number in numbers]
