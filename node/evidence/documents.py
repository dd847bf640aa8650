"""Turns findings into DICOM evidence documents in the source study, checked and ready to be stored and sent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from node.errors import EvidenceError
from node.evidence.check import check_documents
from node.evidence.provenance import Context, Model, NodeIdentity, Predecessor, local_time
from node.evidence.report import COMPREHENSIVE_3D_SR, write_report
from node.evidence.segmentation import write_segmentation
from node.evidence.source import read_sources
from storage.index import MANUFACTURER

if TYPE_CHECKING:
    from inference.card import Card
    from inference.findings import Findings

__all__ = [
    "EvidenceDocument",
    "Model",
    "NodeIdentity",
    "Predecessor",
    "make_documents",
    "model_of",
    "node_identity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceDocument:
    """One document: its identity, and a whole DICOM Part 10 file in Explicit VR Little Endian."""

    kind: Literal["SR", "SEG"]
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    data: bytes


def model_of(card: Card) -> Model:
    """Return what a card tells about its model."""
    return Model(
        name=card.name,
        version=card.version,
        title=card.title,
        manufacturer=card.manufacturer or MANUFACTURER,
        device_uid=card.device_uid,
        demonstration=card.demonstration,
        intended_use=_plain(card.intended_use),
        task=card.task,
        sought=tuple(output.code for output in card.outputs) if card.task == "detection" else (),
    )


def _plain(text: object) -> str:
    """Return a card's text, list of points or table as one line."""
    if isinstance(text, dict):
        return "; ".join(f"{key}: {_plain(value)}" for key, value in text.items())
    if isinstance(text, list):
        return "; ".join(_plain(one) for one in text)
    return " ".join(str(text).split())


def node_identity(*, device_uid: str, ae_title: str) -> NodeIdentity:
    """Return this node's identity, with the version that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("overread")
    except PackageNotFoundError:
        installed = "unknown"
    return NodeIdentity(
        manufacturer=MANUFACTURER,
        model_name="Overread",
        software_version=installed,
        device_uid=device_uid,
        ae_title=ae_title,
    )


def make_documents(
    findings: Findings,
    model: Model,
    sources: Sequence[Path],
    *,
    node: NodeIdentity,
    revision: int,
    predecessors: Sequence[Predecessor] = (),
    now: datetime,
) -> tuple[EvidenceDocument, ...]:
    """Make the documents of one input set's findings: the SEG first where there is a mask, then the SR that cites it.

    Not analysed: an SR alone, which says so in code and words. New series each, in the source's study.

    Parameters
    ----------
    sources
        The Part 10 files of the images read, in any order; they are matched by SOP Instance UID.
    revision
        The study's revision; later ones get higher Series Numbers.
    predecessors
        The documents of an earlier revision, named in the SR's Predecessor Documents Sequence.
    now
        With its offset from UTC.

    Raises
    ------
    EvidenceError
        A source is missing or unreadable, the mask does not fit, or a document fails the check before leaving.
    """
    anything = findings.classifications or findings.measurements or findings.detections or model.task == "detection"
    if findings.not_analysed is None and findings.segmentation is None and not anything:
        raise EvidenceError("findings that neither say anything nor why they do not")
    spoken_of = {one.image for one in findings.classifications}
    spoken_of |= {one.image for one in findings.measurements} | {one.image for one in findings.detections}
    spoken_of |= set(findings.segmentation.images) if findings.segmentation else set()
    if not spoken_of <= set(findings.images):
        raise EvidenceError("findings about an image that is not among those read")
    with warnings.catch_warnings():
        # A source's own invalid identifiers are kept on purpose, and pydicom warns of each.
        warnings.simplefilter("ignore")
        study = read_sources(sources, findings.images)
        context = Context(
            source=study,
            model=model,
            node=node,
            revision=revision,
            predecessors=tuple(predecessors),
            now=local_time(now, study.timezone),
        )
        documents = _write(findings, context)
        check_documents(documents, context)
    return tuple(documents)


def _write(findings: Findings, context: Context) -> list[EvidenceDocument]:
    documents: list[EvidenceDocument] = []
    written = None
    if findings.segmentation is not None and findings.not_analysed is None:
        written = write_segmentation(findings.segmentation, findings.coverage, context)
        if written is not None:
            documents.append(
                EvidenceDocument(
                    kind="SEG",
                    sop_class_uid=written.sop_class_uid,
                    sop_instance_uid=written.sop_instance_uid,
                    series_instance_uid=written.series_instance_uid,
                    data=written.data,
                )
            )
    series_uid, instance_uid, data = write_report(findings, written, context)
    documents.append(
        EvidenceDocument(
            kind="SR",
            sop_class_uid=COMPREHENSIVE_3D_SR,
            sop_instance_uid=instance_uid,
            series_instance_uid=series_uid,
            data=data,
        )
    )
    return documents
