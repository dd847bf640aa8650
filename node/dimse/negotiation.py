"""The acceptor's part of association negotiation (PS3.7 Annex D, PS3.8 7.1): one answer to one request.

Everything that a request asks for is decided here, in this order: who may associate, whether there is room, and then
each item of the user information. pynetdicom's own procedure is passed over, since it answers neither a verified user
name, nor in the right order of reasons, and cannot choose contexts by rule (:mod:`node.dimse.contexts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from pynetdicom import evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from node.dimse.access import Admitted, Identity, Rejected, Request
from node.dimse.contexts import ACCEPTED, Proposal, Related, Roles, Rules, agree
from node.dimse.models import FIND_OPTIONS
from node.dimse.services import service_of
from node.peers import Service

__all__ = ["LOCAL_LIMIT_EXCEEDED", "TEMPORARY_CONGESTION", "Answerer", "Negotiation"]

#: Rejected-transient by the service-provider, presentation related (PS3.8 Table 9-21).
TEMPORARY_CONGESTION = (0x02, 0x03, 0x01)
LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)

#: Storage (PS3.4 B.3.1.1): level 2, every element is kept; signature level 3, bits stay as they are; no coercion.
_STORAGE_SUPPORT = bytes([2, 0, 3, 0, 0, 0])
#: Query/Retrieve (PS3.4 C.5.1.1.1): which of the options there are, in their order; what is longer gets 0.
_OPTIONS: dict[Service, bytes] = {
    Service.FIND: FIND_OPTIONS,
    Service.MOVE: bytes([1, 0]),
    Service.GET: bytes([1, 0]),
}


class Answerer(Protocol):
    """What an association lends to its negotiation."""

    def admit(self, request: Request) -> Admitted | Rejected:
        """Decide who may associate, and take a place for it; a refusal has taken none."""

    @property
    def certificate(self) -> frozenset[str] | None:
        """The names of the certificate that the peer has shown."""

    @property
    def rules(self) -> Rules:
        """What the configuration says of contexts."""


class Negotiation(ACSE):
    """Answers an association request.

    Parameters
    ----------
    association
        Its owner.
    answerer
        Who knows the rules.
    refused
        Told of every refusal.
    """

    def __init__(self, association: Association, answerer: Answerer, refused: Callable[[Rejected], None]) -> None:
        super().__init__(association)
        self._answerer = answerer
        self._refused = refused

    def _negotiate_as_acceptor(self) -> None:
        asked = cast(A_ASSOCIATE, self.requestor.primitive)
        self.requestor.ae_title = asked.calling_ae_title
        admitted = self._answerer.admit(self._request(asked))
        if isinstance(admitted, Rejected):
            self._refused(admitted)
            self.send_reject(*admitted.diagnostic)
            evt.trigger(self.assoc, evt.EVT_REJECTED, {})
            self.assoc.kill()
            return
        self._answer_user_information(admitted)
        contexts, roles = agree(self._proposal(asked), admitted.services, self._answerer.rules)
        self.assoc._accepted_cx = {cast(int, one.context_id): one for one in contexts if one.result == ACCEPTED}
        self.assoc._rejected_cx = [one for one in contexts if one.result != ACCEPTED]
        for uid, granted in roles.items():
            self.acceptor.add_negotiation_item(_role(uid, granted))
        self.send_accept()
        evt.trigger(self.assoc, evt.EVT_ACCEPTED, {})
        self.assoc.is_established = True
        evt.trigger(self.assoc, evt.EVT_ESTABLISHED, {})

    def _request(self, asked: A_ASSOCIATE) -> Request:
        assert self.requestor.address_info is not None
        user = self.requestor.user_identity
        return Request(
            called=str(asked.called_ae_title),
            calling=str(asked.calling_ae_title),
            host=self.requestor.address_info.address,
            application_context=str(asked.application_context_name or ""),
            identity=None
            if user is None
            else Identity(
                kind=user.user_identity_type or 0,
                primary=user.primary_field or b"",
                secondary=user.secondary_field or b"",
                wants_answer=user.positive_response_requested,
            ),
            certificate=self._answerer.certificate,
        )

    def _proposal(self, asked: A_ASSOCIATE) -> Proposal:
        return Proposal(
            contexts=asked.presentation_context_definition_list,
            roles={
                str(uid): Roles(scu=bool(one.scu_role), scp=bool(one.scp_role))
                for uid, one in self.requestor.role_selection.items()
            },
            related={
                str(uid): Related(
                    str(one.service_class_uid or ""),
                    tuple(str(general) for general in one.related_general_sop_class_identification),
                )
                for uid, one in self.requestor.sop_class_common_extended.items()
            },
        )

    def _answer_user_information(self, admitted: Admitted) -> None:
        user = self.requestor.user_identity
        if user is not None and user.positive_response_requested and admitted.identified:
            # Empty for a user name (PS3.7 Table D.3-15): that it is there is the answer.
            verified = UserIdentityNegotiation()
            verified.server_response = b""
            self.acceptor.add_negotiation_item(verified)
        if any(isinstance(one, AsynchronousOperationsWindowNegotiation) for one in self.requestor.user_information):
            window = AsynchronousOperationsWindowNegotiation()
            window.maximum_number_operations_invoked = 1
            window.maximum_number_operations_performed = 1
            self.acceptor.add_negotiation_item(window)
        for uid, asked in self.requestor.sop_class_extended.items():
            answer = _extended(str(uid), asked, admitted)
            if answer is not None:
                item = SOPClassExtendedNegotiation()
                item.sop_class_uid = uid
                item.service_class_application_information = answer
                self.acceptor.add_negotiation_item(item)


def _extended(uid: str, asked: bytes, admitted: Admitted) -> bytes | None:
    """Answer SOP Class Extended Negotiation; None where there is nothing to say."""
    service = service_of(uid)
    if service is None or service not in admitted.services:
        return None
    if service is Service.STORE:
        return _STORAGE_SUPPORT
    options = _OPTIONS.get(service)
    if options is None:
        return None
    # As long as the question, and only what was asked for.
    ours = options[: len(asked)].ljust(len(asked), b"\0")
    return bytes(one & other for one, other in zip(asked, ours, strict=True))


def _role(uid: str, granted: Roles) -> SCP_SCU_RoleSelectionNegotiation:
    item = SCP_SCU_RoleSelectionNegotiation()
    item.sop_class_uid = uid
    item.scu_role = granted.scu
    item.scp_role = granted.scp
    return item
