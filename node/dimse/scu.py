"""Verification and Storage SCU: asks a peer whether it is there, and sends it objects.

How one object goes over an association is :mod:`node.dimse.storing`'s affair.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.dimse.objects import Identity, identify
from node.dimse.requestor import Entity, ended
from node.dimse.storing import Sent, Storing, not_reached, not_stored, on_its_own
from node.peers import Address
from node.transcoder import Transcoders
from node.transcoding import UNCOMPRESSED

__all__ = [
    "EchoResult",
    "Identity",
    "SendReport",
    "Sent",
    "Skipped",
    "echo",
    "identify",
    "is_final",
    "name_of",
    "send",
    "sending",
    "why_not",
]

#: Presentation context ids are the odd numbers of one byte (PS3.8 9.3.2.2).
_CONTEXTS = 128
_REJECTED_PERMANENT = 0x01
#: So many associations in a row may end without an answer.
_FRUITLESS = 2

# Nothing of what is sent is logged.
_config.LOG_HANDLER_LEVEL = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """What became of a C-ECHO; ``answer`` says it in words."""

    reached: bool
    answer: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not sent, because it is no DICOM file."""

    path: Path
    reason: str


@dataclass(slots=True)
class SendReport:
    """What became of every file, in the order in which they were sent."""

    sent: list[Sent] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """How many objects the peer has stored, warnings included."""
        return sum(one.stored for one in self.sent)

    @property
    def failed(self) -> list[Sent]:
        """What the peer has not stored."""
        return [one for one in self.sent if not one.stored]


def echo(peer: Address, calling_ae_title: str, timeout: float = 10) -> EchoResult:
    """Ask a peer whether it is there (C-ECHO, PS3.4 Annex A); never raises for what the peer does."""
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return EchoResult(reached=False, answer=f"{peer.host} is no known host: {error.strerror}")
    entity = Entity(calling_ae_title, timeout)
    with entity.association(peer, [build_context(Verification)]) as association:
        if not association.is_established:
            return EchoResult(reached=False, answer=why_not(association, peer))
        status = association.send_c_echo()
        of_ours = entity.heard is not None and entity.heard.kind == "C_ECHO_RSP"
    if "Status" not in status or not of_ours:
        return EchoResult(reached=False, answer=f"{name_of(peer)} accepted the association and did not answer C-ECHO")
    return EchoResult(reached=status.Status == 0x0000, answer=f"{name_of(peer)} answered 0x{status.Status:04X}")


def send(
    paths: Iterable[Path],
    peer: Address,
    calling_ae_title: str,
    *,
    timeout: float = 30,
    progress: Callable[[int, int], None] | None = None,
) -> SendReport:
    """Send files over as few associations as they need.

    Parameters
    ----------
    paths
        Part 10 files; what is none is skipped and named in the report.
    peer, calling_ae_title
        From whom to whom.
    timeout
        Seconds that the peer may take for each answer.
    progress
        Called with how many files are dealt with, and how many there are.

    Returns
    -------
    SendReport
        With the peer's answer for each file. Nothing counts as stored without the peer's word for it.
    """
    wanted = list(paths)
    report = SendReport()
    objects: list[Identity] = []
    for path in wanted:
        found = identify(path)
        if isinstance(found, str):
            report.skipped.append(Skipped(path, found))
        else:
            objects.append(found)
    tell = progress or (lambda _done, _all: None)
    tell(len(report.skipped), len(wanted))
    transcoders = Transcoders()
    try:
        for outcome in sending(objects, peer, calling_ae_title, timeout=timeout, transcoders=transcoders):
            report.sent.append(outcome)
            tell(len(report.sent) + len(report.skipped), len(wanted))
    finally:
        transcoders.close()
    return report


def sending(
    objects: Sequence[Identity],
    peer: Address,
    calling_ae_title: str,
    *,
    timeout: float,
    transcoders: Transcoders,
    given_up: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Iterator[Sent]:
    """Send objects over as few associations as they need, and give each one's outcome as it is known.

    An object at which the peer ends the association fails, and the others go over a new one. A peer that could not be
    reached once, or ended two in a row without an answer, is not called again: the rest fails at once. Where nobody
    wants the objects any more, the outcomes end.

    Parameters
    ----------
    objects
        Stored ones.
    peer, calling_ae_title
        From whom to whom.
    timeout
        Seconds that the peer may take for each answer.
    transcoders, given_up, **options
        As of :class:`node.dimse.storing.Storing`.
    """
    entity = Entity(calling_ae_title, timeout)

    def storing(association: Association) -> Storing:
        return Storing(
            association, name_of(peer), timeout=timeout, transcoders=transcoders, given_up=given_up, **options
        )

    absent: str | None = None
    fruitless = 0
    for batch, contexts in _batches(objects):
        left = deque(batch)
        while left and absent is None and not given_up():
            answered, absent = yield from _send_some(entity, peer, contexts, left, storing, given_up)
            fruitless = 0 if answered else fruitless + 1
            if fruitless == _FRUITLESS and absent is None:
                absent = f"{name_of(peer)} ended the association before this object"
        if absent is not None:
            yield from (not_reached(one, absent) for one in left)


def _send_some(
    entity: Entity,
    peer: Address,
    contexts: list[PresentationContext],
    left: deque[Identity],
    storing: Callable[[Association], Storing],
    given_up: Callable[[], bool],
) -> Generator[Sent, None, tuple[bool, str | None]]:
    """Send over one association what it lives for, taking it from ``left``.

    Returns
    -------
    answered
        Whether the peer answered for anything, or would have.
    absent
        Why it makes no sense to call this peer again.
    """
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return False, f"{peer.host} is no known host: {error.strerror}"
    with entity.association(peer, contexts) as association:
        if not association.is_established:
            why = why_not(association, peer)
            if not is_final(association):
                return False, why
            while left:
                yield not_stored(left.popleft(), why)
            return True, None
        with on_its_own(association):
            sender, answered = storing(association), False
            while left and not given_up() and not ended(association):
                sent = sender.send(left.popleft())
                answered = answered or sent.status is not None
                yield sent
            # One that is still there was not asked for what it cannot do.
            return answered or not ended(association), None


def _batches(objects: Sequence[Identity]) -> Iterator[tuple[list[Identity], list[PresentationContext]]]:
    """Split what is to be sent so that each part needs at most 128 presentation contexts.

    Each transfer syntax has a context of its own, so that the peer cannot choose another in its place; a compressed
    one has the uncompressed ones beside it, as what to fall back to.
    """
    batch: list[Identity] = []
    pairs: dict[tuple[str, str], None] = {}
    for one in objects:
        own = {(one.sop_class_uid, syntax): None for syntax in (one.transfer_syntax_uid, *UNCOMPRESSED)}
        if batch and len(pairs | own) > _CONTEXTS:
            yield batch, [build_context(*pair) for pair in pairs]
            batch, pairs = [], {}
        batch.append(one)
        pairs |= own
    if batch:
        yield batch, [build_context(*pair) for pair in pairs]


def why_not(association: Association, peer: Address) -> str:
    """Say in words why a peer did not associate."""
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return f"{name_of(peer)} rejected the association: {answer.reason_str}"
    if _accepts_nothing(association):
        return f"{name_of(peer)} takes none of these SOP Classes"
    if association.is_aborted and answer is not None:
        return f"{name_of(peer)} aborted the association"
    if failure := cast(Entity, association.ae).failure:
        return f"no association with {name_of(peer)}: {failure}"
    return f"no answer from {name_of(peer)}"


def is_final(association: Association) -> bool:
    """Whether a peer that did not associate would say the same again (PS3.8 Table 9-21: rejected-permanent)."""
    answer = association.acceptor.primitive
    return _accepts_nothing(association) or (
        association.is_rejected and answer is not None and answer.result == _REJECTED_PERMANENT
    )


def _accepts_nothing(association: Association) -> bool:
    return bool(association.rejected_contexts) and not association.accepted_contexts


def name_of(peer: Address) -> str:
    """Name a peer and where it is."""
    return f"{peer.ae_title} at {peer.host}:{peer.port}"
