"""Which SOP Classes each service of the node consists of; by them a presentation context finds its service."""

from __future__ import annotations

from collections.abc import Collection

from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityPerformedProcedureStep,
    StorageCommitmentPushModel,
    Verification,
)

from node.dimse.models import FIND_MODELS
from node.peers import Service

__all__ = [
    "NON_PATIENT_OBJECTS",
    "OTHER_SOP_CLASSES",
    "STORAGE_SERVICE_CLASS",
    "STORAGE_SOP_CLASSES",
    "is_private",
    "service_of",
]

#: The Service Class that SOP Class Common Extended Negotiation names for storage (PS3.7 D.3.3.6, PS3.6 Annex A).
STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"

#: Retired Storage SOP Classes that archives still hold (PS3.6 Annex A; PS3.4 B.5 lists only the living ones).
_RETIRED = (
    "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image
    "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image
    "1.2.840.10008.5.1.1.27",  # Stored Print
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.8",  # Standalone Overlay
    "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve
    "1.2.840.10008.5.1.4.1.1.9.1",  # Waveform, trial
    "1.2.840.10008.5.1.4.1.1.10",  # Standalone Modality LUT
    "1.2.840.10008.5.1.4.1.1.11",  # Standalone VOI LUT
    "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image
    "1.2.840.10008.5.1.4.1.1.12.77",  # listed without a name
    "1.2.840.10008.5.1.4.1.1.40",  # listed without a name
    "1.2.840.10008.5.1.4.1.1.77.1",  # VL Image, trial
    "1.2.840.10008.5.1.4.1.1.77.2",  # VL Multi-frame Image, trial
    "1.2.840.10008.5.1.4.1.1.88.1",  # Text SR, trial
    "1.2.840.10008.5.1.4.1.1.88.2",  # Audio SR, trial
    "1.2.840.10008.5.1.4.1.1.88.3",  # Detail SR, trial
    "1.2.840.10008.5.1.4.1.1.88.4",  # Comprehensive SR, trial
    "1.2.840.10008.5.1.4.1.1.129",  # Standalone PET Curve
    "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction, trial
)

#: Those of security and of non-destructive testing, which share DICOM's root (PS3.6 Annex A).
_OTHER_FIELDS = (
    "1.2.840.10008.5.1.4.1.1.501.1",  # DICOS CT Image
    "1.2.840.10008.5.1.4.1.1.501.2.1",  # DICOS Digital X-Ray Image, for presentation
    "1.2.840.10008.5.1.4.1.1.501.2.2",  # DICOS Digital X-Ray Image, for processing
    "1.2.840.10008.5.1.4.1.1.501.3",  # DICOS Threat Detection Report
    "1.2.840.10008.5.1.4.1.1.501.4",  # DICOS 2D AIT
    "1.2.840.10008.5.1.4.1.1.501.5",  # DICOS 3D AIT
    "1.2.840.10008.5.1.4.1.1.501.6",  # DICOS Quadrupole Resonance
    "1.2.840.10008.5.1.4.1.1.601.1",  # Eddy Current Image
    "1.2.840.10008.5.1.4.1.1.601.2",  # Eddy Current Multi-frame Image
)

STORAGE_SOP_CLASSES: frozenset[str] = frozenset(
    {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | {*_RETIRED, *_OTHER_FIELDS}
)

#: Another service class (PS3.4 Annex GG): these objects belong to no study, and the node does not take them.
NON_PATIENT_OBJECTS: frozenset[str] = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.200.1",  # CT Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.200.3",  # Protocol Approval
        "1.2.840.10008.5.1.4.1.1.200.7",  # XA Defined Procedure Protocol
        "1.2.840.10008.5.1.4.1.1.201.1",  # Inventory
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol
        "1.2.840.10008.5.1.4.39.1",  # Color Palette
        "1.2.840.10008.5.1.4.43.1",  # Generic Implant Template
        "1.2.840.10008.5.1.4.44.1",  # Implant Assembly Template
        "1.2.840.10008.5.1.4.45.1",  # Implant Template Group
    }
)

_DICOM_ROOT = "1.2.840.10008."
#: Storage SOP Classes are numbered below this one; what the list at hand does not name yet is of a later edition.
_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."

#: What is no storage.
OTHER_SOP_CLASSES: dict[str, Service] = {
    str(Verification): Service.ECHO,
    **dict.fromkeys(FIND_MODELS, Service.FIND),
    "1.2.840.10008.5.1.4.1.2.1.2": Service.MOVE,  # Patient Root
    "1.2.840.10008.5.1.4.1.2.2.2": Service.MOVE,  # Study Root
    "1.2.840.10008.5.1.4.1.2.3.2": Service.MOVE,  # Patient/Study Only, retired
    "1.2.840.10008.5.1.4.1.2.1.3": Service.GET,
    "1.2.840.10008.5.1.4.1.2.2.3": Service.GET,
    "1.2.840.10008.5.1.4.1.2.3.3": Service.GET,
    str(StorageCommitmentPushModel): Service.COMMIT,
    str(ModalityPerformedProcedureStep): Service.MPPS,
}


def service_of(sop_class_uid: str) -> Service | None:
    """Return the service that an abstract syntax belongs to; None where the node has none for it."""
    if sop_class_uid in STORAGE_SOP_CLASSES:
        return Service.STORE
    if sop_class_uid.startswith(_STORAGE_ROOT) and sop_class_uid not in UID_dictionary:
        return Service.STORE
    return OTHER_SOP_CLASSES.get(sop_class_uid)


def is_private(sop_class_uid: str, allowed: bool | Collection[str]) -> bool:
    """Whether an abstract syntax is not DICOM's own and may be taken for a maker's Storage SOP Class.

    Parameters
    ----------
    sop_class_uid
        What was proposed.
    allowed
        All of them, none, or those that are listed; a listed UID that ends with a dot allows everything below it.
    """
    if sop_class_uid.startswith(_DICOM_ROOT) or not sop_class_uid:
        return False
    if isinstance(allowed, bool):
        return allowed
    return any(sop_class_uid.startswith(one) if one.endswith(".") else sop_class_uid == one for one in allowed)
