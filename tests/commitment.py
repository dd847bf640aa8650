"""Peers for Storage Commitment on pynetdicom: they ask, listen, commit, and lie where a test wants them to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from tests.peers import free_port, wait_until

WELL_KNOWN = UID("1.2.840.10008.1.20.1.1")
Pairs = Sequence[tuple[str, str]]


def references(pairs: Pairs, **more: Any) -> Items[Dataset]:
    items = []
    for sop_class, instance in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = instance
        for keyword, value in more.items():
            setattr(item, keyword, value)
        items.append(item)
    return Items(items)


def request(pairs: Pairs, transaction_uid: str | None = None) -> Dataset:
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid or generate_uid()
    dataset.ReferencedSOPSequence = references(pairs)
    return dataset


@dataclass
class Reports:
    """What a peer has been told, and the status that it answers with."""

    status: int = 0x0000
    heard: list[Dataset] = field(default_factory=list)
    event_types: list[int] = field(default_factory=list)

    def take(self, event: evt.Event) -> tuple[int, None]:
        dataset = event.event_information
        self.event_types.append(event.request.EventTypeID)  # type: ignore[union-attr,arg-type]
        self.heard.append(dataset)
        return self.status, None

    def wait(self, count: int = 1, seconds: float = 15) -> Dataset:
        wait_until(lambda: len(self.heard) >= count, seconds, f"{count} reports of commitment")
        return self.heard[-1]


def told(report: Dataset) -> tuple[set[str], dict[str, int]]:
    """Return the instances that a report commits to, and those that failed with their reasons."""
    committed = {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or ()}
    failed = {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in report.get("FailedSOPSequence") or ()}
    return committed, failed


@contextmanager
def asking(port: int, reports: Reports, calling: str = "MODALITY", called: str = "OVERREAD") -> Iterator[Association]:
    """Give an association of an SCU that takes reports on it."""
    ae = AE(ae_title=calling)
    association = ae.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(StorageCommitmentPushModel)],
        ae_title=called,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.take)],
    )
    assert association.is_established
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def ask(association: Association, dataset: Dataset | None, action: int = 1, **other: Any) -> Dataset:
    """Send N-ACTION; return its status."""
    uids = {"class_uid": StorageCommitmentPushModel, "instance_uid": WELL_KNOWN, **other}
    status, _ = association.send_n_action(dataset, action, **uids)
    return status


@contextmanager
def listening(reports: Reports, ae_title: str = "MODALITY", port: int | None = None) -> Iterator[int]:
    """Listen for reports over associations that their sender requests; gives the port."""
    ae = AE(ae_title=ae_title)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    port = port or free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reports.take)])
    assert server is not None
    try:
        yield port
    finally:
        server.shutdown()


@dataclass
class Archive:
    """A PACS that takes objects and reports as it is told; ``asked`` has the Transaction UID and instances of each."""

    port: int = field(default_factory=free_port)
    ae_title: str = "ARCHIVE"
    store_status: int = 0x0000
    action_status: int = 0x0000
    #: Whether it aborts the association instead of answering a request.
    aborts: bool = False
    asked: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    #: What to do after each request: with the association, the Transaction UID and its references.
    then: Callable[[Association, str, list[tuple[str, str]]], None] = lambda *_: None
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Archive]:
        from pynetdicom import StoragePresentationContexts

        ae = AE(ae_title=self.ae_title)
        for context in StoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax))
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._act)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        assert server is not None
        try:
            yield self
        finally:
            for thread in self._threads:
                thread.join(10)
            server.shutdown()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))  # type: ignore[union-attr]
        return self.store_status

    def _act(self, event: evt.Event) -> tuple[int, None]:
        dataset = event.action_information
        pairs = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in dataset.ReferencedSOPSequence
        ]
        self.asked.append((str(dataset.TransactionUID), pairs))
        if self.aborts:
            event.assoc.abort()
        if self.action_status == 0x0000:
            arguments = (event.assoc, str(dataset.TransactionUID), pairs)
            thread = threading.Thread(target=self.then, args=arguments)
            self._threads.append(thread)
            thread.start()
        return self.action_status, None


def report_on(association: Association, transaction_uid: str, committed: Pairs, failed: Pairs = ()) -> int | None:
    """Send a report on an association that is open; return the status of its response."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    if committed:
        dataset.ReferencedSOPSequence = references(committed)
    if failed:
        dataset.FailedSOPSequence = references(failed, FailureReason=0x0112)
    status, _ = association.send_n_event_report(dataset, 2 if failed else 1, StorageCommitmentPushModel, WELL_KNOWN)
    return status.get("Status")


def call_with_report(
    port: int, transaction_uid: str, committed: Pairs, failed: Pairs = (), calling: str = "ARCHIVE"
) -> int | None:
    """Call a node as the SCP of commitment and report; return the status of its response."""
    ae = AE(ae_title=calling)
    association = ae.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(StorageCommitmentPushModel)],
        ae_title="OVERREAD",
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
    )
    assert association.is_established
    assert association.accepted_contexts[0].as_scp
    try:
        return report_on(association, transaction_uid, committed, failed)
    finally:
        association.release()
