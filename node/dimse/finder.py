"""Query SCU (C-FIND, Study Root, PS3.4 Annex C): asks a peer how many instances it has of a study."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as StudyRootFind,
)

from node.dimse.requestor import Entity
from node.peers import Address

__all__ = ["Counted", "count_instances"]

#: So many series are added up at most: a peer that matches everything must not be listened to without end.
_MOST_ANSWERS = 10_000
_PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A peer's number of instances of a study; None where it gave none, and ``answer`` says in words why."""

    count: int | None
    answer: str


def count_instances(peer: Address, calling_ae_title: str, study_instance_uid: str, timeout: float = 30) -> Counted:
    """Ask for Number of Study Related Instances (0020,1208); never raises for what the peer does.

    A peer that does not give it (the key is optional, PS3.4 C.3.4) is asked for its series, and their Number of
    Series Related Instances (0020,1209) are added up.
    """
    name = f"{peer.ae_title} at {peer.host}:{peer.port}"
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return Counted(count=None, answer=f"{peer.host} is no known host: {error.strerror}")
    entity = Entity(calling_ae_title, timeout)
    with entity.association(peer, [build_context(StudyRootFind)]) as association:
        if not association.is_established:
            refused = association.is_rejected or bool(association.rejected_contexts)
            return Counted(count=None, answer=f"{name} takes no query" if refused else f"no answer from {name}")
        try:
            found = _find(association, "STUDY", study_instance_uid, "NumberOfStudyRelatedInstances")
            if not found:
                return Counted(count=None, answer=f"{name} does not know the study")
            number = found[0]
            if number is None:
                series = _find(association, "SERIES", study_instance_uid, "NumberOfSeriesRelatedInstances")
                known = [one for one in series if one is not None]
                if not series or len(known) < len(series):
                    return Counted(count=None, answer=f"{name} does not say how many instances it has")
                number = sum(known)
        except _NoAnswerError as error:
            return Counted(count=None, answer=f"{name} {error}")
    return Counted(count=number, answer=f"{name} has {number} instances")


class _NoAnswerError(Exception):
    """The query came to no end, or to a bad one."""


def _find(association: Association, level: str, study_instance_uid: str, keyword: str) -> list[int | None]:
    """Return the number that each match gives, None for one that gives none."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.StudyInstanceUID = study_instance_uid
    if level == "SERIES":
        identifier.SeriesInstanceUID = ""
    setattr(identifier, keyword, "")
    found: list[int | None] = []
    try:
        for status, match in association.send_c_find(identifier, StudyRootFind):
            code = status.get("Status")
            if code is None:
                raise _NoAnswerError("gave no answer to C-FIND")
            if code in _PENDING:
                # A peer that does not match by the UID, or answers about another study, must not be believed.
                if match is not None and str(match.get("StudyInstanceUID", "")).strip("\0 ") == study_instance_uid:
                    found.append(_number(match, keyword))
                if len(found) > _MOST_ANSWERS:
                    raise _NoAnswerError("matches without end")
            elif code != 0x0000:
                raise _NoAnswerError(f"answered C-FIND with 0x{code:04X}")
    except (ValueError, AttributeError, RuntimeError) as error:
        raise _NoAnswerError(f"ended C-FIND ({type(error).__name__})") from None
    return found


def _number(match: Dataset, keyword: str) -> int | None:
    try:
        value = match.get(keyword)
        number = int(value) if value not in (None, "") else None
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and number >= 0 else None
