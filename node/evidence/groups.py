"""The groups of an SR's Imaging Measurements (TID 1500): one for each thing that a model says, or why it says none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.evidence import codes
from node.evidence.codes import concept
from node.evidence.provenance import Context
from node.evidence.segmentation import tracking_identifier

if TYPE_CHECKING:
    from inference.findings import Classification, Code, Detection, Findings, Measurement, NotAnalysed, Segment
    from node.evidence.segmentation import WrittenSegmentation

__all__ = ["comment", "groups_of"]


def groups_of(findings: Findings, segmentation: WrittenSegmentation | None, context: Context) -> list[Any]:
    """Return the groups of what was found; what was looked for and not found is said as absent."""
    if findings.not_analysed is not None:
        return list(_not_analysed(findings.not_analysed, context))
    groups: list[Any] = []
    for one in findings.classifications:
        groups.extend(_classification(one, context))
    for value in findings.measurements:
        groups.extend(_measurement(value, context))
    for number, found in enumerate(findings.detections, 1):
        groups.extend(_detection(found, number, context))
    for code in context.model.sought:
        if code not in {found.code for found in findings.detections}:
            groups.extend(_absent(code, findings, context))
    if findings.segmentation is not None:
        for segment in findings.segmentation.segments:
            groups.extend(_segment(segment, findings.segmentation.images[0], segmentation, context))
    return groups


def _algorithm(context: Context, *parameters: str) -> Any:
    """TID 4019, at the level of the group: viewers lose the group's label where it hangs under a measurement."""
    from highdicom.sr import AlgorithmIdentification

    said = [*parameters, *(["demonstration, trained on synthetic images"] if context.model.demonstration else [])]
    return AlgorithmIdentification(
        name=context.model.name,
        version=context.model.version,
        parameters=said or None,
        family=concept(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=context.model.manufacturer,
    )


def _tracking(identifier: str, what: str, context: Context) -> Any:
    from highdicom.sr import TrackingIdentifier

    return TrackingIdentifier(uid=context.tracking_uid(what), identifier=identifier)


def _classification(one: Classification, context: Context) -> Any:
    """TID 1501: the finding is the question, Present or Absent the answer; nothing points at an invented place."""
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
    )

    image = context.source.by_uid[one.image]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(one.name, f"finding {one.name} {one.image}", context),
        algorithm_id=_algorithm(context, f"threshold = {one.threshold:.6g}"),
        measurements=[
            Measurement(name=concept(codes.PROBABILITY), value=round(one.probability, 4), unit=concept(codes.NO_UNITS))
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(name=concept(one.code), value=concept(codes.PRESENT if one.present else codes.ABSENT))
        ],
        source_images=[
            SourceImageForMeasurementGroup(
                referenced_sop_class_uid=image.sop_class_uid, referenced_sop_instance_uid=image.sop_instance_uid
            )
        ],
    )


def _measurement(one: Measurement, context: Context) -> Any:
    """TID 1501: one value in its UCUM unit, of one image."""
    from highdicom.sr import Measurement as Value
    from highdicom.sr import MeasurementsAndQualitativeEvaluations

    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(one.name, f"value {one.name} {one.image}", context),
        algorithm_id=_algorithm(context),
        # No more digits than a model's floats have.
        measurements=[Value(name=concept(one.code), value=float(f"{one.value:.7g}"), unit=concept(one.unit))],
        source_images=[_source(one.image, context)],
    )


def _detection(one: Detection, number: int, context: Context) -> Any:
    """TID 1410: a closed polyline around the box, in the pixels of its image (PS3.3 C.18.6.1), with its probability."""
    import numpy as np
    from highdicom.sr import (
        ImageRegion,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
    )
    from highdicom.sr import Measurement as Value

    image = context.source.by_uid[one.image]
    top, left, bottom, right = one.box
    # (column, row); 0 is the outer edge of the first pixel, as it is in the box.
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(f"{one.name} {number}"[:64], f"box {one.name} {one.image} {one.box}", context),
        referenced_region=ImageRegion(
            graphic_type="POLYLINE",
            graphic_data=corners,
            source_image=SourceImageForRegion(
                referenced_sop_class_uid=image.sop_class_uid, referenced_sop_instance_uid=image.sop_instance_uid
            ),
        ),
        algorithm_id=_algorithm(context, f"threshold = {one.threshold:.6g}"),
        finding_type=concept(one.code),
        measurements=[
            Value(name=concept(codes.PROBABILITY), value=round(one.probability, 4), unit=concept(codes.NO_UNITS))
        ],
    )


def _absent(code: Code, findings: Findings, context: Context) -> Any:
    """TID 1501: a detector has looked for this in all of the images, and found none that reached its threshold."""
    from highdicom.sr import MeasurementsAndQualitativeEvaluations, QualitativeEvaluation

    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(code.meaning[:64], f"absent {code.value} {code.scheme}", context),
        algorithm_id=_algorithm(context),
        qualitative_evaluations=[QualitativeEvaluation(name=concept(code), value=concept(codes.ABSENT))],
        source_images=[_source(image, context) for image in findings.images],
    )


def _source(uid: str, context: Context) -> Any:
    from highdicom.sr import SourceImageForMeasurementGroup

    image = context.source.by_uid[uid]
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=image.sop_class_uid, referenced_sop_instance_uid=image.sop_instance_uid
    )


def _segment(segment: Segment, image: str, written: WrittenSegmentation | None, context: Context) -> Any:
    """TID 1411 by reference to the SEG, TID 1410 on a radiograph; a segment without a voxel is in no SEG: TID 1501."""
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    common = {
        "tracking_identifier": _tracking(tracking_identifier(segment), f"segment {segment.label}", context),
        "algorithm_id": _algorithm(context),
        "finding_category": concept(segment.category),
        "finding_type": concept(segment.code),
        "measurements": _sizes(segment),
    }
    if written is None or segment.label not in written.segment_numbers:
        group = MeasurementsAndQualitativeEvaluations(**common)
        if segment.pixels is not None:
            group[0].ContentSequence.append(comment("Not marked in the image."))
        return group
    if segment.pixels is not None:
        return _planar(segment, image, written, common, context)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        **common,
        referenced_segment=ReferencedSegment(
            sop_class_uid=written.sop_class_uid,
            sop_instance_uid=written.sop_instance_uid,
            segment_number=written.segment_numbers[segment.label],
            source_series=SourceSeriesForSegmentation(context.source.images[0].series_instance_uid),
        ),
    )


def _sizes(segment: Segment) -> list[Any] | None:
    """Return what is measured of a segment: a volume, or an area with the plane where it holds; None for neither."""
    from highdicom.sr import Measurement

    if segment.volume_ml is not None:
        name, value, unit, method = codes.VOLUME, segment.volume_ml, codes.MILLILITER, codes.SEGMENTED_VOXELS
    elif segment.area_mm2 is not None and segment.plane is not None:
        name, value, unit = codes.AREA, segment.area_mm2, codes.SQUARE_MILLIMETER
        method = codes.AREA_METHODS[segment.plane]
    else:
        return None
    return [Measurement(name=concept(name), value=round(value, 3), unit=concept(unit), method=concept(method))]


def _planar(
    segment: Segment, image: str, written: WrittenSegmentation, common: dict[str, Any], context: Context
) -> Any:
    """TID 1410 by reference to the SEG's segment, whose only frame lies on the radiograph."""
    from highdicom.sr import (
        PlanarROIMeasurementsAndQualitativeEvaluations,
        ReferencedSegmentationFrame,
        SourceImageForSegmentation,
    )

    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        **common,
        referenced_segment=ReferencedSegmentationFrame(
            sop_class_uid=written.sop_class_uid,
            sop_instance_uid=written.sop_instance_uid,
            frame_number=1,
            segment_number=written.segment_numbers[segment.label],
            source_image=SourceImageForSegmentation(
                referenced_sop_class_uid=context.source.by_uid[image].sop_class_uid, referenced_sop_instance_uid=image
            ),
        ),
    )
    for item in group[0].ContentSequence:
        for reference in item.get("ReferencedSOPSequence", ()):
            # The segment says it all; both together are not allowed (PS3.3 Table 10-3).
            if "ReferencedSegmentNumber" in reference:
                del reference.ReferencedFrameNumber
    return group


def _not_analysed(verdict: NotAnalysed, context: Context) -> Any:
    """A group that says that nothing was analysed and why; it holds no finding that could be read as absent."""
    from highdicom.sr import MeasurementsAndQualitativeEvaluations, QualitativeEvaluation

    said = [QualitativeEvaluation(name=concept(codes.SUMMARY_OF_ANALYSES), value=concept(codes.NOT_ATTEMPTED))]
    if verdict.code is not None:
        said.append(QualitativeEvaluation(name=concept(codes.REASON), value=concept(verdict.code)))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking("not analysed", "not analysed", context),
        algorithm_id=_algorithm(context),
        qualitative_evaluations=said,
    )
    group[0].ContentSequence.append(comment(f"Not analysed: {verdict.text} ({verdict.reason})"))
    return group


def comment(words: str) -> Any:
    """Return a Comment (121106, DCM)."""
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return TextContentItem(name=concept(codes.COMMENT), value=words, relationship_type=RelationshipTypeValues.CONTAINS)
