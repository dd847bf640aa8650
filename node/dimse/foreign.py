"""Which DIMSE operations each service has, and what answers one that is none of its own (PS3.7 Annex C: 0211)."""

from __future__ import annotations

from typing import Any

from pynetdicom.dimse_primitives import (
    C_ECHO,
    C_FIND,
    C_GET,
    C_MOVE,
    C_STORE,
    N_ACTION,
    N_CREATE,
    N_DELETE,
    N_EVENT_REPORT,
    N_GET,
    N_SET,
)

from node.dimse.services import service_of
from node.peers import Service

__all__ = ["belongs", "unrecognized"]

_UNRECOGNIZED_OPERATION = 0x0211
_REQUESTS = (C_ECHO, C_FIND, C_GET, C_MOVE, C_STORE, N_ACTION, N_CREATE, N_DELETE, N_EVENT_REPORT, N_GET, N_SET)
_OPERATIONS: dict[Service, tuple[type, ...]] = {
    Service.ECHO: (C_ECHO,),
    Service.STORE: (C_STORE,),
    Service.FIND: (C_FIND,),
    Service.MOVE: (C_MOVE,),
    Service.GET: (C_GET,),
    Service.COMMIT: (N_ACTION, N_EVENT_REPORT),
    Service.MPPS: (N_CREATE, N_SET),
}


def belongs(operation: type, abstract_syntax: str) -> bool:
    """Whether an operation is one of the service that a presentation context was accepted for.

    A context that belongs to no service known by name was accepted for a maker's own Storage SOP Class.
    """
    return operation in _OPERATIONS[service_of(abstract_syntax) or Service.STORE]


def unrecognized(request: Any) -> Any:
    """Return the response that an operation of another service gets; None for what is no request."""
    if not isinstance(request, _REQUESTS) or not request.is_valid_request:
        return None
    response = type(request)()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.AffectedSOPClassUID = getattr(request, "AffectedSOPClassUID", None) or getattr(
        request, "RequestedSOPClassUID", None
    )
    response.Status = _UNRECOGNIZED_OPERATION
    return response
