"""Verification and Storage SCU: asks a peer whether it is there, and sends it objects.

An object is sent as its bytes are; only where the peer accepts nothing else is it transcoded to an uncompressed
transfer syntax, in memory.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
import structlog
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info as read_file_meta
from pydicom.filereader import read_partial, read_preamble
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.dimse.partten import file_head
from node.dimse.requestor import Entity
from node.dimse.status import Category, category, meaning
from node.peers import Address

__all__ = ["EchoResult", "Identity", "SendReport", "Sent", "Skipped", "echo", "identify", "send"]

_log = structlog.get_logger(__name__)
#: Presentation context ids are the odd numbers of one byte (PS3.8 9.3.2.2).
_CONTEXTS = 128
_SOP_UIDS = [0x00080016, 0x00080018]
_SOP_INSTANCE_UID = 0x00080018
_REJECTED_PERMANENT = 0x01
_UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))

# Files are sent as they are, in pieces, and nothing of them is logged.
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_HANDLER_LEVEL = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """What became of a C-ECHO; ``answer`` says it in words."""

    reached: bool
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one file.

    ``status`` is the peer's (0000,0900), None when no answer came; ``answer`` says it in words, with the peer's own
    Error Comment where it gave one.
    """

    path: Path
    sop_instance_uid: str
    category: Category
    status: int | None
    answer: str
    #: Whether the peer was there at all.
    reached: bool = True
    transcoded: bool = False

    @property
    def stored(self) -> bool:
        """Whether the peer said that it has stored the object."""
        return self.category in (Category.SUCCESS, Category.WARNING)


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


@dataclass(frozen=True, slots=True)
class Identity:
    """What a Part 10 file is: by its dataset, where that says it, else by its meta information."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    #: Whether the file meta information says the same.
    agrees: bool = True


def echo(peer: Address, calling_ae_title: str, timeout: float = 10) -> EchoResult:
    """Ask a peer whether it is there (C-ECHO, PS3.4 Annex A); never raises for what the peer does."""
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        return EchoResult(reached=False, answer=f"{peer.host} is no known host: {error.strerror}")
    entity = Entity(calling_ae_title, timeout)
    with entity.association(peer, [build_context(Verification)]) as association:
        if not association.is_established:
            return EchoResult(reached=False, answer=_why_not(association, peer))
        status = association.send_c_echo()
        of_ours = entity.heard is not None and entity.heard.kind == "C_ECHO_RSP"
    if "Status" not in status or not of_ours:
        return EchoResult(reached=False, answer=f"{_name(peer)} accepted the association and did not answer C-ECHO")
    return EchoResult(reached=status.Status == 0x0000, answer=f"{_name(peer)} answered 0x{status.Status:04X}")


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
    entity = Entity(calling_ae_title, timeout)
    for batch, contexts in _batches(objects):
        for outcome in _send_batch(entity, peer, batch, contexts):
            report.sent.append(outcome)
            tell(len(report.sent) + len(report.skipped), len(wanted))
    return report


def _send_batch(
    entity: Entity, peer: Address, batch: Sequence[Identity], contexts: list[PresentationContext]
) -> Iterator[Sent]:
    try:
        socket.getaddrinfo(peer.host, peer.port)
    except OSError as error:
        yield from (_unreached(one, f"{peer.host} is no known host: {error.strerror}") for one in batch)
        return
    with entity.association(peer, contexts) as association:
        ended = None if association.is_established else _why_not(association, peer)
        for number, one in enumerate(batch):
            if ended is None and not association.is_established:
                ended = f"{_name(peer)} ended the association before this object"
            if ended is None:
                yield _send_one(entity, association, peer, one, number % 65535 + 1)
            elif _is_final(association):
                yield _refused(one, ended)
            else:
                yield _unreached(one, ended)


def _send_one(entity: Entity, association: Association, peer: Address, one: Identity, message_id: int) -> Sent:
    accepted = {
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == one.sop_class_uid
    }
    transcoded = False
    entity.forget()
    try:
        if one.transfer_syntax_uid in accepted:
            with _agreeing(one) as path:
                status = association.send_c_store(str(path), msg_id=message_id)
        elif target := next((uid for uid in _UNCOMPRESSED if uid in accepted), None):
            transcoded = True
            status = association.send_c_store(_uncompressed(one, target), msg_id=message_id)
        else:
            return _refused(one, f"{_name(peer)} takes no {UID(one.sop_class_uid).name} in any transfer syntax we have")
    except OSError as error:
        return _refused(one, f"the file cannot be read: {error.strerror}")
    except (ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        if not association.is_established:
            return _unreached(one, f"{_name(peer)} ended the association during this object")
        syntax = UID(one.transfer_syntax_uid).name
        return _refused(one, f"{_name(peer)} does not take {syntax}, and it cannot be decoded ({type(error).__name__})")
    if "Status" not in status:
        return _unreached(one, f"{_name(peer)} gave no answer to C-STORE")
    if not entity.was_answered(message_id, one.sop_instance_uid):
        # Which answer belongs to which object cannot be told from here on.
        association.abort()
        return _unreached(one, f"{_name(peer)} answered for something else than this object", reached=True)
    comment = str(status.get("ErrorComment", "") or "").strip()
    return Sent(
        path=one.path,
        sop_instance_uid=one.sop_instance_uid,
        category=category(status.Status),
        status=int(status.Status),
        answer=meaning(status.Status) + (f" ({comment})" if comment else ""),
        transcoded=transcoded,
    )


def _refused(one: Identity, answer: str) -> Sent:
    return Sent(
        path=one.path, sop_instance_uid=one.sop_instance_uid, category=Category.FAILURE, status=None, answer=answer
    )


def _unreached(one: Identity, answer: str, reached: bool = False) -> Sent:
    return Sent(
        path=one.path,
        sop_instance_uid=one.sop_instance_uid,
        category=Category.BUSY,
        status=None,
        answer=answer,
        reached=reached,
    )


def identify(path: Path) -> Identity | str:
    """Read what a file is; return in words why it cannot be sent as DICOM where it cannot."""
    try:
        with path.open("rb") as file:
            dataset = read_partial(file, lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID, specific_tags=_SOP_UIDS)
        meta = dataset.file_meta
        uids = [
            (str(dataset.get(keyword, "") or ""), str(meta.get(f"MediaStorage{keyword}", "") or ""))
            for keyword in ("SOPClassUID", "SOPInstanceUID")
        ]
        syntax = str(meta.get("TransferSyntaxUID", "") or "")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except InvalidDicomError:
        return "is no DICOM file: it has no DICM prefix"
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; all of it means the same here
        return f"cannot be read as DICOM ({type(error).__name__})"
    sop_class, sop_instance = (own or said for own, said in uids)
    if not (sop_class and sop_instance and syntax):
        return "has no SOP Class, SOP Instance or Transfer Syntax UID"
    return Identity(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        transfer_syntax_uid=syntax,
        agrees=[sop_class, sop_instance] == [said for _, said in uids],
    )


def _batches(objects: Sequence[Identity]) -> Iterator[tuple[list[Identity], list[PresentationContext]]]:
    """Split what is to be sent so that each part needs at most 128 presentation contexts.

    Each transfer syntax has a context of its own, so that the peer cannot choose another in its place; a compressed
    one has the uncompressed ones beside it, as what to fall back to.
    """
    batch: list[Identity] = []
    pairs: dict[tuple[str, str], None] = {}
    for one in objects:
        own = {(one.sop_class_uid, syntax): None for syntax in (one.transfer_syntax_uid, *_UNCOMPRESSED)}
        if batch and len(pairs | own) > _CONTEXTS:
            yield batch, [build_context(*pair) for pair in pairs]
            batch, pairs = [], {}
        batch.append(one)
        pairs |= own
    if batch:
        yield batch, [build_context(*pair) for pair in pairs]


@contextmanager
def _agreeing(one: Identity) -> Iterator[Path]:
    """Give a file whose meta information names the object as its dataset does: by it the request is made."""
    if one.agrees:
        yield one.path
        return
    head = file_head(
        sop_class_uid=one.sop_class_uid,
        sop_instance_uid=one.sop_instance_uid,
        transfer_syntax_uid=one.transfer_syntax_uid,
        source_ae_title="",
    )
    with one.path.open("rb") as source, tempfile.NamedTemporaryFile(suffix=".dcm") as copy:
        read_preamble(source, False)
        read_file_meta(source)
        copy.write(head)
        shutil.copyfileobj(source, copy)
        copy.flush()
        yield Path(copy.name)


def _uncompressed(one: Identity, target: str) -> pydicom.Dataset:
    dataset = pydicom.dcmread(one.path)
    if dataset.file_meta.TransferSyntaxUID.is_compressed and "PixelData" in dataset:
        dataset.decompress(generate_instance_uid=False)
    # Written out and read again, so that the dataset and what it says of its own encoding agree.
    dataset.file_meta.TransferSyntaxUID = UID(target)
    buffer = BytesIO()
    pydicom.dcmwrite(
        buffer, dataset, implicit_vr=target == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=False
    )
    buffer.seek(0)
    return pydicom.dcmread(buffer, force=True)


def _why_not(association: Association, peer: Address) -> str:
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return f"{_name(peer)} rejected the association: {answer.reason_str}"
    if _accepts_nothing(association):
        return f"{_name(peer)} takes none of these SOP Classes"
    if association.is_aborted and answer is not None:
        return f"{_name(peer)} aborted the association"
    return f"no answer from {_name(peer)}"


def _is_final(association: Association) -> bool:
    """Whether a peer that did not associate would say the same again (PS3.8 Table 9-21: rejected-permanent)."""
    answer = association.acceptor.primitive
    return _accepts_nothing(association) or (
        association.is_rejected and answer is not None and answer.result == _REJECTED_PERMANENT
    )


def _accepts_nothing(association: Association) -> bool:
    return bool(association.rejected_contexts) and not association.accepted_contexts


def _name(peer: Address) -> str:
    return f"{peer.ae_title} at {peer.host}:{peer.port}"
