"""Which SOP Classes each service of the node consists of; by them a presentation context finds its service."""

from __future__ import annotations

from functools import cache

from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.peers import Service

__all__ = ["STORAGE_SOP_CLASSES", "service_of"]

#: Retired Storage SOP Classes that archives still hold (PS3.6 Annex A; PS3.4 B.5 lists only the living ones).
_RETIRED = (
    "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image
    "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.8",  # Standalone Overlay
    "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve
    "1.2.840.10008.5.1.4.1.1.10",  # Standalone Modality LUT
    "1.2.840.10008.5.1.4.1.1.11",  # Standalone VOI LUT
    "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image
    "1.2.840.10008.5.1.4.1.1.77.1",  # VL Image, trial
    "1.2.840.10008.5.1.4.1.1.77.2",  # VL Multi-frame Image, trial
    "1.2.840.10008.5.1.4.1.1.88.1",  # Text SR, trial
    "1.2.840.10008.5.1.4.1.1.88.2",  # Audio SR, trial
    "1.2.840.10008.5.1.4.1.1.88.3",  # Detail SR, trial
    "1.2.840.10008.5.1.4.1.1.88.4",  # Comprehensive SR, trial
    "1.2.840.10008.5.1.4.1.1.129",  # Standalone PET Curve
)

STORAGE_SOP_CLASSES: frozenset[str] = frozenset(
    {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | set(_RETIRED)
)

#: What is no storage.
_OTHERS: dict[str, Service] = {
    str(Verification): Service.ECHO,
}


@cache
def service_of(sop_class_uid: str) -> Service | None:
    """Return the service that an abstract syntax belongs to; None where the node has none for it."""
    if sop_class_uid in STORAGE_SOP_CLASSES:
        return Service.STORE
    return _OTHERS.get(sop_class_uid)
