"""Which presentation contexts the node accepts, and which transfer syntax it picks of those that are proposed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cache

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import PresentationContext

from node.dimse.services import service_of
from node.peers import Service

__all__ = ["TRANSFER_SYNTAXES", "accepted_contexts", "preferred"]

#: Beside what pynetdicom knows, the retired JPEG processes (PS3.6 Annex A): old archives hold them.
TRANSFER_SYNTAXES: tuple[str, ...] = (
    *ALL_TRANSFER_SYNTAXES,
    *(f"1.2.840.10008.1.2.4.{process}" for process in (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66)),
)

_KNOWN = frozenset(TRANSFER_SYNTAXES)
_NATIVE = frozenset(TRANSFER_SYNTAXES[:4])


def accepted_contexts(
    proposed: Iterable[PresentationContext], services: Collection[Service]
) -> list[PresentationContext]:
    """Return what of a proposal these services support, one context an abstract syntax, the preferred syntax first.

    Only what was proposed is built: the whole product of SOP Classes and transfer syntaxes is some 8,000 pairs.
    """
    wanted: dict[str, list[str]] = {}
    for context in proposed:
        abstract = str(context.abstract_syntax)
        service = service_of(abstract)
        if service not in services:
            continue
        known = _KNOWN if service is Service.STORE else _NATIVE
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
