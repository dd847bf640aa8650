"""Asking a receiver for objects, and being where they go to."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.filereader import read_preamble
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from node.dimse.contexts import TRANSFER_SYNTAXES
from tests.receiver import Receiver

PATIENT_ROOT_MOVE, PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_MOVE, STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
PENDING, SUCCESS, SOME_FAILED, CANCELED = 0xFF00, 0x0000, 0xB000, 0xFE00


@dataclass
class Answers:
    """What a requestor was told, in order; the counts as (remaining, completed, failed, warning)."""

    statuses: list[int] = field(default_factory=list)
    counts: list[tuple[int | None, int | None, int | None, int | None]] = field(default_factory=list)
    failed_uids: list[str] = field(default_factory=list)
    comment: str = ""

    @property
    def final(self) -> int:
        return self.statuses[-1]

    def add(self, status: Dataset, identifier: Dataset | None) -> None:
        self.statuses.append(int(status.Status))
        names = ("Remaining", "Completed", "Failed", "Warning")
        self.counts.append(tuple(status.get(f"NumberOf{one}Suboperations") for one in names))  # type: ignore[arg-type]
        self.comment = str(status.get("ErrorComment", ""))
        if identifier is not None and "FailedSOPInstanceUIDList" in identifier:
            value = identifier.FailedSOPInstanceUIDList
            values = [value] if isinstance(value, str) else value or []
            self.failed_uids = [str(one) for one in values if one]

    def check(self, total: int) -> None:
        """Every response but the last is pending, and the counts of each make up the whole."""
        assert set(self.statuses[:-1]) <= {PENDING}, self.statuses
        assert self.final != PENDING
        for counts in self.counts[:-1]:
            assert sum(one or 0 for one in counts) == total, self.counts
        assert self.counts[-1][0] is None or self.final == CANCELED
        assert sum(one or 0 for one in self.counts[-1]) == total, self.counts


@dataclass
class Destination:
    """A Storage SCP that keeps the bytes of what it gets, and answers as it is told."""

    answer: Callable[[evt.Event], int] = lambda _: SUCCESS
    got: list[tuple[str, str, bytes]] = field(default_factory=list)
    originators: set[tuple[str | None, int | None]] = field(default_factory=set)

    def handle(self, event: evt.Event) -> int:
        request = event.request
        self.originators.add((request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID))
        status = self.answer(event)
        if status in (SUCCESS, SOME_FAILED):
            syntax = str(event.context.transfer_syntax)
            self.got.append((str(request.AffectedSOPInstanceUID), syntax, request.DataSet.getvalue()))
        return status

    @property
    def digests(self) -> list[str]:
        return sorted(hashlib.sha256(content).hexdigest() for _, _, content in self.got)


@contextmanager
def listening(
    port: int, destination: Destination, syntaxes: Sequence[str] = TRANSFER_SYNTAXES, **limits: Any
) -> Iterator[Destination]:
    """Be a destination on this port for a while."""
    ae = AE("DESTINATION")
    for name, value in limits.items():
        setattr(ae, name, value)
    ae.supported_contexts = [
        build_context(str(one.abstract_syntax), list(syntaxes)) for one in AllStoragePresentationContexts
    ]
    handlers = [(evt.EVT_C_STORE, destination.handle)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    assert server is not None
    try:
        yield destination
    finally:
        server.shutdown()


@contextmanager
def requesting(
    receiver: Receiver,
    sop_class: str,
    *,
    storage: Iterable[tuple[str, Sequence[str]]] = (),
    destination: Destination | None = None,
    relational: bool = False,
    roles: bool = True,
    calling: str = "WORKSTATION",
    secured: tuple[int, ssl.SSLContext] | None = None,
) -> Iterator[Association]:
    """Associate for a retrieve; for C-GET, with the storage contexts to take objects in; ``secured`` over TLS."""
    ae = AE(calling)
    contexts = [build_context(sop_class)]
    negotiation: list[Any] = []
    for abstract, syntaxes in storage:
        contexts.append(build_context(abstract, list(syntaxes)))
        if roles:
            negotiation.append(build_role(abstract, scp_role=True))
    if relational:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = UID(sop_class)
        item.service_class_application_information = b"\1"
        negotiation.append(item)
    handlers = [] if destination is None else [(evt.EVT_C_STORE, destination.handle)]
    association = ae.associate(
        "127.0.0.1",
        receiver.port if secured is None else secured[0],
        contexts=contexts,
        tls_args=None if secured is None else (secured[1], "localhost"),
        ae_title=receiver.ae_title,
        ext_neg=negotiation,
        evt_handlers=handlers,  # type: ignore[arg-type]
    )
    assert association.is_established
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def identifier(level: str | None, **keys: Any) -> Dataset:
    dataset = Dataset()
    if level is not None:
        dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def move(
    receiver: Receiver,
    to: str,
    wanted: Dataset,
    *,
    sop_class: str = STUDY_ROOT_MOVE,
    relational: bool = False,
    cancel: Callable[[Answers], bool] | None = None,
    message_id: int = 7,
) -> Answers:
    """Ask for a move and listen to the end; ``cancel`` is asked after every response."""
    answers = Answers()
    with requesting(receiver, sop_class, relational=relational) as association:
        for status, failed in association.send_c_move(wanted, to, sop_class, msg_id=message_id):
            answers.add(status, failed)
            if cancel is not None and cancel(answers):
                association.send_c_cancel(message_id, query_model=sop_class)
                cancel = None
    return answers


def get(
    receiver: Receiver,
    wanted: Dataset,
    storage: Iterable[tuple[str, Sequence[str]]],
    *,
    sop_class: str = STUDY_ROOT_GET,
    destination: Destination | None = None,
    roles: bool = True,
    cancel: Callable[[Answers], bool] | None = None,
    secured: tuple[int, ssl.SSLContext] | None = None,
) -> tuple[Answers, Destination]:
    """Get objects over the association itself."""
    answers, destination = Answers(), destination or Destination()
    with requesting(
        receiver, sop_class, storage=storage, destination=destination, roles=roles, secured=secured
    ) as association:
        for status, failed in association.send_c_get(wanted, sop_class, msg_id=7):
            answers.add(status, failed)
            if cancel is not None and cancel(answers):
                association.send_c_cancel(7, query_model=sop_class)
                cancel = None
    return answers, destination


def dataset_of(path: Path) -> bytes:
    """Return what follows the file meta information, found by pydicom."""
    with path.open("rb") as file:
        read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        return file.read()


def stored_digests(receiver: Receiver, where: str = "1 = 1") -> list[str]:
    """Return the digests of what a receiver holds, computed from the files."""
    rows = receiver.rows(
        "SELECT blob FROM instance JOIN study ON study.id = instance.study_id "
        f"JOIN series ON series.id = instance.series_id WHERE {where}"
    )
    return sorted(hashlib.sha256(dataset_of(receiver.blobs.path(row["blob"]))).hexdigest() for row in rows)
