"""Delivers by C-STORE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from node.delivery.port import Delivered, Outcome, ProbeResult, Refused, Unreachable
from node.dimse.commitment_messages import Report
from node.dimse.commitment_scu import Requested, request_commitment
from node.dimse.scu import echo, send
from node.dimse.status import Category, meaning
from node.peers import Peer
from storage.commitments import Reference

__all__ = ["CommittingDimseAdapter", "DimseAdapter"]


class DimseAdapter:
    """A PACS that takes documents by C-STORE.

    Parameters
    ----------
    name
        In the configuration.
    peer
        Where it is.
    calling_ae_title
        Ours.
    """

    def __init__(self, name: str, peer: Peer, calling_ae_title: str) -> None:
        self.name = name
        if peer.address is None:
            raise ValueError(f"peer {peer.ae_title} has no host and port to call")
        self._peer = peer.address
        self._timeout = peer.timeout_seconds
        self._calling = calling_ae_title

    def deliver(self, document: Path) -> Outcome:
        """Send one document; B000, B006 and B007 count as delivered, with a note (PS3.4 Table B.2-1)."""
        report = send([document], self._peer, self._calling, timeout=self._timeout)
        if report.skipped:
            return Refused(f"the document {report.skipped[0].reason}")
        sent = report.sent[0]
        # The answer may hold the peer's Error Comment (0000,0902).
        brief = meaning(sent.status) if sent.status is not None else sent.answer
        if sent.category is Category.SUCCESS:
            note = "sent in another transfer syntax, since the peer does not take its own" if sent.transcoded else ""
            return Delivered(sent.answer, brief=brief, note=note)
        if sent.category is Category.WARNING:
            return Delivered("stored", brief=brief, note=f"the peer warned: {sent.answer}")
        if sent.category is Category.BUSY:
            return Unreachable(sent.answer, brief=brief)
        return Refused(sent.answer, brief=brief)

    def probe(self) -> ProbeResult:
        """Send a C-ECHO."""
        result = echo(self._peer, self._calling, self._timeout)
        return ProbeResult(result.reached, result.answer)


class CommittingDimseAdapter(DimseAdapter):
    """A PACS that is asked to commit to what it has taken (Storage Commitment, PS3.4 Annex J).

    Parameters
    ----------
    commit_seconds
        How long its report may take.
    """

    def __init__(self, name: str, peer: Peer, calling_ae_title: str, commit_seconds: float) -> None:
        super().__init__(name, peer, calling_ae_title)
        self.commit_seconds = commit_seconds

    def commit(
        self,
        transaction_uid: str,
        references: Sequence[Reference],
        take: Callable[[Report], bool],
        *,
        accepted: Callable[[], None],
        is_answered: Callable[[], bool],
    ) -> Requested:
        """Send N-ACTION, and give the report a moment to come on the same association."""
        return request_commitment(
            self._peer,
            self._calling,
            transaction_uid,
            references,
            take,
            accepted=accepted,
            is_answered=is_answered,
            timeout=self._timeout,
        )
