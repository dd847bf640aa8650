"""Which presentation contexts the node accepts, and which transfer syntax it picks of those that are proposed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

__all__ = ["STORAGE_SOP_CLASSES", "TRANSFER_SYNTAXES", "accepted_contexts", "preferred"]

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
#: Beside what pynetdicom knows, the retired JPEG processes (PS3.6 Annex A): old archives hold them.
TRANSFER_SYNTAXES: tuple[str, ...] = (
    *ALL_TRANSFER_SYNTAXES,
    *(f"1.2.840.10008.1.2.4.{process}" for process in (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66)),
)

_KNOWN = frozenset(TRANSFER_SYNTAXES)
_NATIVE = frozenset(TRANSFER_SYNTAXES[:4])


def accepted_contexts(proposed: Iterable[PresentationContext]) -> list[PresentationContext]:
    """Return what the node supports of a proposal, one context an abstract syntax, the preferred syntax first.

    Only what was proposed is built: the whole product of SOP Classes and transfer syntaxes is some 8,000 pairs.
    """
    wanted: dict[str, list[str]] = {}
    for context in proposed:
        abstract = str(context.abstract_syntax)
        if abstract in STORAGE_SOP_CLASSES:
            known = _KNOWN
        elif abstract == Verification:
            known = _NATIVE
        else:
            continue
        order = wanted.setdefault(abstract, [])
        order.extend(
            one for one in preferred([str(uid) for uid in context.transfer_syntax]) if one in known and one not in order
        )
    return [_context(abstract, tuple(syntaxes)) for abstract, syntaxes in wanted.items() if syntaxes]


def preferred(proposed: Sequence[str]) -> list[str]:
    """Put the transfer syntaxes of one context in the order in which the node would take them.

    The sender's own order stands, since it names first what it holds, and so its bytes stay as they are; only
    Implicit VR gives way to Explicit VR Little Endian, which keeps the VR of private elements (PS3.5 6.2.2).
    """
    order = list(proposed)
    if order and order[0] == ImplicitVRLittleEndian and str(ExplicitVRLittleEndian) in order:
        order.remove(str(ExplicitVRLittleEndian))
        order.insert(0, str(ExplicitVRLittleEndian))
    return order


@cache
def _context(abstract: str, syntaxes: tuple[str, ...]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = abstract
    context.transfer_syntax = list(syntaxes)
    return context
