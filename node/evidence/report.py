"""Writes findings as a Comprehensive 3D SR (PS3.3 A.35.13) by TID 1500 "Measurement Report" (PS3.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.uid import CTImageStorage

from inference.findings import Code
from node.evidence import codes
from node.evidence.codes import concept
from node.evidence.groups import comment, groups_of
from node.evidence.provenance import (
    Context,
    finish,
    new_uid,
    reference_to,
    series_description,
    series_number,
    statements,
)

if TYPE_CHECKING:
    from inference.findings import Coverage, Findings
    from node.evidence.segmentation import WrittenSegmentation
    from node.evidence.source import SourceImage

COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"


def write_report(
    findings: Findings, segmentation: WrittenSegmentation | None, context: Context
) -> tuple[str, str, bytes]:
    """Write the SR of ``findings``, referring to their SEG.

    Returns
    -------
    tuple
        Series Instance UID, SOP Instance UID and the bytes of the Part 10 file.
    """
    from highdicom.sr import Comprehensive3DSR

    series_uid, instance_uid = new_uid(), new_uid()
    document = Comprehensive3DSR(
        evidence=_evidence(segmentation, context),
        content=_content(findings, segmentation, context),
        series_instance_uid=series_uid,
        series_number=series_number(context.revision, 2),
        sop_instance_uid=instance_uid,
        instance_number=1,
        manufacturer=context.node.manufacturer,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=_predecessors(context) or None,
        series_description=series_description(context.model, "SR"),
        specific_character_set=None,
    )
    _true_classes(document, segmentation, context)
    return series_uid, instance_uid, finish(document, context)


def _evidence(segmentation: WrittenSegmentation | None, context: Context) -> list[Dataset]:
    """Every image that was read, and the SEG: all are listed in Current Requested Procedure Evidence.

    As CT images, since highdicom looks their class up among those it knows; :func:`_true_classes` mends that.
    """
    made: tuple[SourceImage | WrittenSegmentation, ...] = (segmentation,) if segmentation is not None else ()
    return [
        reference_to(context.source, CTImageStorage, one.sop_instance_uid, one.series_instance_uid)
        for one in [*context.source.images, *made]
    ]


def _true_classes(document: Dataset, segmentation: WrittenSegmentation | None, context: Context) -> None:
    """Give each listed instance the SOP Class that it has, also one that no dictionary knows."""
    classes = {image.sop_instance_uid: image.sop_class_uid for image in context.source.images}
    if segmentation is not None:
        classes[segmentation.sop_instance_uid] = segmentation.sop_class_uid
    for study in document.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                item.ReferencedSOPClassUID = classes[item.ReferencedSOPInstanceUID]


def _predecessors(context: Context) -> list[Dataset]:
    items = []
    for one in context.predecessors:
        item = Dataset()
        item.StudyInstanceUID, item.SeriesInstanceUID = one.study_instance_uid, one.series_instance_uid
        item.SOPClassUID, item.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
        items.append(item)
    return items


def _content(findings: Findings, segmentation: WrittenSegmentation | None, context: Context) -> Any:
    """Return the root container of TID 1500.

    highdicom's own needs attributes that real images lack, and has no place for document-level evaluations.
    """
    from highdicom.sr import (
        CodeContentItem,
        ContainerContentItem,
        ContentSequence,
        LanguageOfContentItemAndDescendants,
        RelationshipTypeValues,
    )

    root = ContainerContentItem(name=concept(codes.REPORT_TITLE), template_id="1500")
    items = ContentSequence()
    items.extend(LanguageOfContentItemAndDescendants(_english()))
    items.extend(_observer(context))
    items.extend(
        CodeContentItem(
            name=concept(codes.PROCEDURE_REPORTED),
            value=concept(procedure),
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
        for procedure in _procedures(context)
    )
    items.append(_image_library(findings.coverage, context))
    items.append(_container(codes.IMAGING_MEASUREMENTS, groups_of(findings, segmentation, context)))
    items.append(_container(codes.QUALITATIVE_EVALUATIONS, _evaluations(findings, context)))
    root.ContentSequence = items
    return root


def _english() -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept("en-US", "RFC5646", "English (United States)")


def _observer(context: Context) -> Any:
    """The observer is a device: the algorithm (TID 1002, TID 1004)."""
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext

    return ObserverContext(
        observer_type=concept(codes.DEVICE),
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=context.model.device_uid,
            name=context.model.name,
            manufacturer_name=context.model.manufacturer,
            model_name=context.model.title,
            serial_number=context.model.version,
        ),
    )


def _procedures(context: Context) -> list[Any]:
    if context.source.procedures:
        return list(context.source.procedures)
    modality = context.source.images[0].modality
    return [codes.GENERIC_PROCEDURES.get(modality, codes.IMAGING_PROCEDURE)]


def _container(name: Any, items: list[Any]) -> Any:
    from highdicom.sr import ContainerContentItem, ContentSequence, RelationshipTypeValues

    container = ContainerContentItem(name=concept(name), relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


def _image_library(coverage: Coverage | None, context: Context) -> Any:
    """TID 1600: one group a series, with what its images have in common."""
    from highdicom.sr import (
        CodeContentItem,
        ImageContentItem,
        NumContentItem,
        RelationshipTypeValues,
        UIDRefContentItem,
    )

    acquired = RelationshipTypeValues.HAS_ACQ_CONTEXT
    groups: list[Any] = []
    for series in dict.fromkeys(image.series_instance_uid for image in context.source.images):
        images = [image for image in context.source.images if image.series_instance_uid == series]
        first = images[0]
        shared: list[Any] = []
        if first.modality in codes.MODALITIES:
            modality = Code(value=first.modality, scheme="DCM", meaning=codes.MODALITIES[first.modality])
            shared.append(
                CodeContentItem(name=concept(codes.MODALITY), value=concept(modality), relationship_type=acquired)
            )
        if first.frame_of_reference_uid:
            shared.append(
                UIDRefContentItem(
                    name=concept(codes.FRAME_OF_REFERENCE),
                    value=first.frame_of_reference_uid,
                    relationship_type=acquired,
                )
            )
        # What was covered is told of the series whose grid the findings lie on: the first.
        if coverage is not None and coverage.images > 1 and not groups:
            shared.append(
                NumContentItem(
                    name=concept(codes.SPACING_BETWEEN_SLICES),
                    value=round(coverage.spacing_mm, 6),
                    unit=concept(codes.MILLIMETER),
                    relationship_type=acquired,
                )
            )
        entries = [
            ImageContentItem(
                name=concept(codes.SOURCE),
                referenced_sop_class_uid=image.sop_class_uid,
                referenced_sop_instance_uid=image.sop_instance_uid,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
            for image in images
        ]
        groups.append(_container(codes.IMAGE_LIBRARY_GROUP, [*shared, *entries]))
    return _container(codes.IMAGE_LIBRARY, groups)


def _evaluations(findings: Findings, context: Context) -> list[Any]:
    """What holds for the whole document: whether it was analysed at all, what was covered, and what the document is."""
    from highdicom.sr import CodeContentItem, RelationshipTypeValues

    said = []
    if findings.not_analysed is not None:
        said.append(f"Not analysed: {findings.not_analysed.text} ({findings.not_analysed.reason})")
    elif findings.classifications and not any(one.present for one in findings.classifications):
        said.append("Analysed; none of the findings above reached its threshold.")
    elif context.model.task == "detection" and not findings.detections:
        said.append("Analysed; nothing that the model looks for was found at its thresholds.")
    said.extend(findings.warnings)
    if findings.coverage is not None:
        said.append(coverage_statement(findings.coverage))
    said.extend(statements(context.model))
    if context.model.intended_use.strip():
        said.append(f"Intended use: {context.model.intended_use.strip()}")
    outcome = codes.NOT_ATTEMPTED if findings.not_analysed is not None else codes.SUCCEEDED
    return [
        CodeContentItem(
            name=concept(codes.SUMMARY_OF_ANALYSES),
            value=concept(outcome),
            relationship_type=RelationshipTypeValues.CONTAINS,
        ),
        *(comment(words) for words in said),
    ]


def coverage_statement(coverage: Coverage) -> str:
    """Say in words what was looked at, and what cannot be known about it."""
    return (
        f"Coverage: {coverage.images} images, {coverage.spacing_mm:.3f} mm apart, {coverage.extent_mm:.1f} mm along "
        "their normal. Nothing outside was analysed; a missing slice at either end of the series cannot be seen."
    )
