"""Which presentation contexts the node accepts, in which transfer syntax, and in which roles.

pynetdicom's own negotiation knows only a list of abstract syntaxes made beforehand: it can neither tell "not
supported" from "not allowed", nor choose a transfer syntax for a private SOP Class, nor heed the order of each of
several contexts of one SOP Class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import PresentationContext

from node.dimse.services import STORAGE_SERVICE_CLASS, is_private, service_of
from node.peers import Service
from node.transcoding import UNCOMPRESSED

__all__ = ["ACCEPTED", "TRANSFER_SYNTAXES", "Proposal", "Related", "Roles", "Rules", "agree", "preferred"]

#: Beside what pynetdicom knows: Encapsulated Uncompressed, and the retired JPEG processes (PS3.6 Annex A), which old
#: archives hold.
TRANSFER_SYNTAXES: tuple[str, ...] = (
    *ALL_TRANSFER_SYNTAXES,
    "1.2.840.10008.1.2.1.98",
    *(f"1.2.840.10008.1.2.4.{process}" for process in (52, 53, 54, 55, 56, 58, 59, 60, 61, 62, 63, 64, 65, 66)),
)

_KNOWN = frozenset(TRANSFER_SYNTAXES)
_NATIVE = frozenset(TRANSFER_SYNTAXES[:4])

#: Result of one context (PS3.8 Table 9-18).
ACCEPTED = 0
_USER_REJECTION = 1
_ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
_TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the configuration says of presentation contexts.

    ``transfer_syntaxes`` come before all others, in this order; ``private`` as in
    :func:`node.dimse.services.is_private`.
    """

    transfer_syntaxes: tuple[str, ...] = ()
    private: bool | tuple[str, ...] = True


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that a requestor proposes for itself, or is granted (PS3.7 D.3.3.4)."""

    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class Related:
    """What a requestor says of a SOP Class (SOP Class Common Extended Negotiation, PS3.7 D.3.3.6)."""

    service_class: str
    general_sop_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What of A-ASSOCIATE-RQ the contexts depend on."""

    contexts: Sequence[PresentationContext]
    roles: Mapping[str, Roles] = field(default_factory=dict)
    related: Mapping[str, Related] = field(default_factory=dict)


#: In which services a requestor may also, or instead, be the SCP: it takes the objects that it gets by C-GET, and
#: reports of Storage Commitment come on associations of the other side's own (PS3.4 C.5.3, J.3.3).
_SCP_BY: dict[Service, Service] = {Service.STORE: Service.GET, Service.COMMIT: Service.COMMIT}


def agree(
    proposal: Proposal, services: Collection[Service], rules: Rules
) -> tuple[list[PresentationContext], dict[str, Roles]]:
    """Answer every proposed context.

    Parameters
    ----------
    proposal
        As it came.
    services
        What this requestor may ask of the node.
    rules
        Of the configuration.

    Returns
    -------
    contexts
        One for each that was proposed, in the order of their ids, with its result and, where accepted, the one
        transfer syntax.
    roles
        The answer to each role selection of an accepted SOP Class.
    """
    answers: list[PresentationContext] = []
    granted: dict[str, Roles] = {}
    for context in proposal.contexts:
        abstract = str(context.abstract_syntax or "")
        proposed = [str(uid) for uid in context.transfer_syntax]
        service = _service(abstract, proposal.related, rules)
        roles = proposal.roles.get(abstract)
        if service is None:
            answers.append(_answer(context, _ABSTRACT_SYNTAX_NOT_SUPPORTED))
            continue
        may = _granted(service, services, roles)
        if not (may.scu or may.scp):
            answers.append(_answer(context, _USER_REJECTION))
            continue
        known = _KNOWN if service is Service.STORE else _NATIVE
        first = UNCOMPRESSED if may.scp and not may.scu else rules.transfer_syntaxes
        chosen = next((uid for uid in preferred(proposed, first) if uid in known), None)
        if chosen is None:
            answers.append(_answer(context, _TRANSFER_SYNTAXES_NOT_SUPPORTED))
            continue
        answers.append(_answer(context, ACCEPTED, chosen, may))
        if roles is not None:
            granted[abstract] = may
    return sorted(answers, key=lambda one: one.context_id or 0), granted


def preferred(proposed: Iterable[str], first: Sequence[str] = ()) -> list[str]:
    """Put the transfer syntaxes of one context in the order in which the node would take them.

    Those of the configuration come first, in its order. Else the sender's own order stands, since it names first what
    it holds, and so its bytes stay as they are; only Implicit VR gives way to Explicit VR Little Endian, which keeps
    the VR of private elements (PS3.5 6.2.2). A requestor that only takes objects in a context gets an uncompressed
    one where it proposes any: that is what every object can be put into, and what is compressed alike has its own
    context where the requestor wants it as it is.
    """
    order = list(proposed)
    if order and order[0] == ImplicitVRLittleEndian and str(ExplicitVRLittleEndian) in order:
        order.remove(str(ExplicitVRLittleEndian))
        order.insert(0, str(ExplicitVRLittleEndian))
    return [uid for uid in first if uid in order] + [uid for uid in order if uid not in first]


def _service(abstract: str, related: Mapping[str, Related], rules: Rules) -> Service | None:
    service = service_of(abstract)
    if service is not None:
        return service
    said = related.get(abstract)
    if said is not None and (
        said.service_class == STORAGE_SERVICE_CLASS
        or any(service_of(uid) is Service.STORE for uid in said.general_sop_classes)
    ):
        return Service.STORE
    return Service.STORE if is_private(abstract, rules.private) else None


def _granted(service: Service, services: Collection[Service], proposed: Roles | None) -> Roles:
    """Return the roles that the requestor may have: only what it proposes; without a word, SCU."""
    if proposed is None:
        proposed = Roles(scu=True, scp=False)
    as_scp = service in _SCP_BY and _SCP_BY[service] in services
    return Roles(scu=proposed.scu and service in services, scp=proposed.scp and as_scp)


def _answer(
    proposed: PresentationContext, result: int, transfer_syntax: str | None = None, roles: Roles | None = None
) -> PresentationContext:
    answer = PresentationContext()
    answer.context_id = proposed.context_id
    answer.abstract_syntax = proposed.abstract_syntax
    # Where it is refused the value has no meaning (PS3.8 Table 9-18), but has to be there.
    uid = transfer_syntax or (str(proposed.transfer_syntax[0]) if proposed.transfer_syntax else ImplicitVRLittleEndian)
    answer.transfer_syntax = [uid]
    answer.result = result
    # pynetdicom reads these as what the acceptor may be.
    answer._as_scp = roles is not None and roles.scu
    answer._as_scu = roles is not None and roles.scp
    return answer
