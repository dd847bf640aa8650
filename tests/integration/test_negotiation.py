"""What of an association request is answered how: contexts, roles, extended negotiation, limits and times."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    UID_dictionary,  # type: ignore[attr-defined]
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from node.dimse.contexts import TRANSFER_SYNTAXES
from node.dimse.services import NON_PATIENT_OBJECTS, service_of
from node.peers import Service
from tests.faults.test_hostile_peers import answer_of, associate_request
from tests.peers import need_program, wait_until
from tests.receiver import Receiver, receiving

PRIVATE = "1.3.12.2.1107.5.9.1"
OTHER_PRIVATE = "1.2.826.0.1.3680043.8.498.7"
LATER = "1.2.840.10008.5.1.4.1.1.999.7"
PRINTING = "1.2.840.10008.5.1.1.9"
USER_REJECTION, NO_SUCH_ABSTRACT_SYNTAX, NO_SUCH_TRANSFER_SYNTAX = 1, 3, 4
SLOW = 20


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(
        tmp_path_factory.mktemp("receiver"),
        peers={
            "echoing": {"ae_title": "ECHOING", "services": ["echo"]},
            "named": {"ae_title": "NAMED", "username": "ct", "passcode": "secret"},
            "single": {"ae_title": "SINGLE", "maximum_associations": 1},
        },
    ) as one:
        yield one


def associate(
    receiver: Receiver, contexts: list[PresentationContext], calling: str = "TEST", **options: Any
) -> Association:
    ae = AE(calling)
    return ae.associate("127.0.0.1", receiver.port, contexts, ae_title=options.pop("called", "OVERREAD"), **options)


def results(receiver: Receiver, contexts: list[PresentationContext], **options: Any) -> dict[int, int | str]:
    """Associate and release; by context id the result, or the transfer syntax that was taken."""
    association = associate(receiver, contexts, **options)
    assert not association.is_rejected
    # pynetdicom aborts an association of which no context was accepted, after the answer has come.
    found: dict[int, int | str] = {one.context_id: one.result for one in association.rejected_contexts}
    found |= {one.context_id: str(one.transfer_syntax[0]) for one in association.accepted_contexts}
    association.release()
    return dict(sorted(found.items()))


def made(sop_class: str, transfer_syntax: str = ExplicitVRLittleEndian) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Any^One", "OT"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    return dataset


def test_every_storage_sop_class_of_the_standard_is_one_of_ours() -> None:
    """Retired ones too; what is named storage and is not taken belongs to another service."""
    missing = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and ("Storage" in name or uid.startswith("1.2.840.10008.5.1.4.1.1."))
        if service_of(uid) is not Service.STORE
    }
    elsewhere = {"1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"}
    no_storage = {uid for uid in missing if "torage" not in UID_dictionary[uid][0]}
    assert missing - elsewhere - no_storage == NON_PATIENT_OBJECTS
    assert {UID_dictionary[uid][0].rpartition(" - ")[2] for uid in no_storage} == {
        "FIND",
        "MOVE",
        "GET",
        "Inventory Creation",
        "Repository Query",
    }


def test_every_transfer_syntax_that_a_network_may_use_is_known() -> None:
    listed = {uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"}
    #: Retired ones that no dataset was ever sent in: MIME parts, XML of another service, and Papyrus files.
    elsewhere = {"1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2", "1.2.840.10008.1.20"}
    assert listed - set(TRANSFER_SYNTAXES) == elsewhere


def test_each_context_of_one_sop_class_is_answered_by_its_own_order(receiver: Receiver) -> None:
    contexts = [
        build_context(CTImageStorage, [JPEG2000Lossless, ExplicitVRLittleEndian]),
        build_context(CTImageStorage, [ExplicitVRBigEndian, JPEG2000Lossless]),
        build_context(CTImageStorage, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
        build_context(CTImageStorage, [DeflatedExplicitVRLittleEndian]),
        build_context(CTImageStorage, ["1.2.3.4"]),
        build_context(CTImageStorage, ["1.2.3.4", RLELossless]),
    ]
    assert results(receiver, contexts) == {
        1: JPEG2000Lossless,
        3: ExplicitVRBigEndian,
        5: ExplicitVRLittleEndian,
        7: DeflatedExplicitVRLittleEndian,
        9: NO_SUCH_TRANSFER_SYNTAX,
        11: RLELossless,
    }


def test_the_configured_preference_stands_over_the_senders_and_for_private_classes_too(tmp_path: Path) -> None:
    options = {"transfer_syntaxes": ["RLELossless", ExplicitVRBigEndian], "receivers": 1}
    orders = [
        [JPEG2000Lossless, ExplicitVRBigEndian, RLELossless],
        [JPEG2000Lossless, ExplicitVRBigEndian],
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian],
        [JPEG2000Lossless],
    ]
    taken = [RLELossless, ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless]
    classes = [CTImageStorage, PRIVATE, LATER]
    with receiving(tmp_path / "receiver", options=options) as receiver:
        contexts = [build_context(one, order) for one in classes for order in orders]
        assert list(results(receiver, contexts).values()) == taken * len(classes)


def test_objects_of_private_and_later_sop_classes_are_stored(receiver: Receiver) -> None:
    classes = [PRIVATE, OTHER_PRIVATE, LATER]
    association = associate(receiver, [build_context(one, ExplicitVRLittleEndian) for one in classes])
    sent = [made(one) for one in classes]
    assert [association.send_c_store(one).Status for one in sent] == [0, 0, 0]
    association.release()
    stored = {row["sop_instance_uid"]: row["sop_class_uid"] for row in receiver.instances()}
    assert [stored[one.SOPInstanceUID] for one in sent] == classes


@pytest.mark.parametrize(
    ("allowed", "taken"),
    [(True, [True, True]), (False, [False, False]), (["1.3.12.2."], [True, False]), ([OTHER_PRIVATE], [False, True])],
)
def test_private_sop_classes_are_taken_as_configured(tmp_path: Path, allowed: Any, taken: list[bool]) -> None:
    options = {"private_sop_classes": allowed, "receivers": 1}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        found = results(
            receiver, [build_context(one) for one in (PRIVATE, OTHER_PRIVATE, LATER, PRINTING, CTImageStorage)]
        )
    assert [one != NO_SUCH_ABSTRACT_SYNTAX for one in found.values()] == [*taken, True, False, True]


def test_an_unknown_class_that_is_said_to_be_storage_is_stored_though_private_ones_are_not(tmp_path: Path) -> None:
    def related(uid: str, service: str, *general: str) -> SOPClassCommonExtendedNegotiation:
        item = SOPClassCommonExtendedNegotiation()
        item.sop_class_uid, item.service_class_uid = uid, service
        item.related_general_sop_class_identification = list(general)
        return item

    storage, other = "1.2.840.10008.4.2", "1.2.840.10008.4.9"
    said = [
        related("1.2.3.1", storage),
        related("1.2.3.2", other, "1.2.3.9", CTImageStorage),
        related("1.2.3.3", other, "1.2.3.9"),
        related(PRINTING, other),
    ]
    contexts = [build_context(uid) for uid in ("1.2.3.1", "1.2.3.2", "1.2.3.3", PRINTING, "1.2.3.4")]
    options = {"private_sop_classes": False, "receivers": 1}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        found = results(receiver, contexts, ext_neg=said)
        assert [one == NO_SUCH_ABSTRACT_SYNTAX for one in found.values()] == [False, False, True, True, True]
        association = associate(receiver, contexts, ext_neg=said)
        assert association.send_c_store(made("1.2.3.2", ImplicitVRLittleEndian)).Status == 0
        association.release()


def test_128_contexts_are_answered_each(receiver: Receiver) -> None:
    contexts = [build_context(CTImageStorage, TRANSFER_SYNTAXES[n % len(TRANSFER_SYNTAXES)]) for n in range(128)]
    found = results(receiver, contexts)
    assert list(found) == list(range(1, 256, 2))
    assert list(found.values()) == [TRANSFER_SYNTAXES[n % len(TRANSFER_SYNTAXES)] for n in range(128)]


def test_what_a_peer_may_not_ask_for_is_a_rejection_by_the_user(receiver: Receiver) -> None:
    contexts = [build_context(Verification), build_context(CTImageStorage), build_context(PRINTING)]
    found = results(receiver, contexts, calling="ECHOING")
    assert found == {1: ExplicitVRLittleEndian, 3: USER_REJECTION, 5: NO_SUCH_ABSTRACT_SYNTAX}


def test_an_association_without_one_acceptable_context_is_accepted_all_the_same(receiver: Receiver) -> None:
    """Acceptance is of the association; each context has a result of its own (PS3.8 7.1.1.13)."""
    assert results(receiver, [build_context(PRINTING)]) == {1: NO_SUCH_ABSTRACT_SYNTAX}


def test_storage_is_answered_as_full_bit_preserving_and_without_coercion(receiver: Receiver) -> None:
    asked = SOPClassExtendedNegotiation()
    asked.sop_class_uid, asked.service_class_application_information = CTImageStorage, bytes(6)
    unknown = SOPClassExtendedNegotiation()
    unknown.sop_class_uid, unknown.service_class_application_information = PRINTING, b"\1"
    contexts = [build_context(CTImageStorage), build_context(PRINTING)]
    association = associate(receiver, contexts, ext_neg=[asked, unknown])
    answered = association.acceptor.sop_class_extended
    association.release()
    assert answered == {CTImageStorage: bytes([2, 0, 3, 0, 0, 0])}


@pytest.mark.parametrize("window", [(0, 0), (5, 7), (1, 1)])
def test_asynchronous_operations_are_answered_with_a_window_of_one(receiver: Receiver, window: tuple[int, int]) -> None:
    asked = AsynchronousOperationsWindowNegotiation()
    asked.maximum_number_operations_invoked, asked.maximum_number_operations_performed = window
    association = associate(receiver, [build_context(Verification)], ext_neg=[asked])
    items = [
        one for one in association.acceptor.user_information if isinstance(one, AsynchronousOperationsWindowNegotiation)
    ]
    association.release()
    assert [(one.maximum_number_operations_invoked, one.maximum_number_operations_performed) for one in items] == [
        (1, 1)
    ]


def test_who_proposes_no_window_gets_none(receiver: Receiver) -> None:
    association = associate(receiver, [build_context(Verification)])
    kinds = {type(one).__name__ for one in association.acceptor.user_information}
    association.release()
    assert "AsynchronousOperationsWindowNegotiation" not in kinds
    assert kinds >= {"MaximumLengthNotification", "ImplementationClassUIDNotification"}


@pytest.mark.parametrize(
    ("proposed", "granted"),
    [((True, True), (True, True)), ((True, False), (True, False)), ((False, True), (False, True))],
)
def test_roles_are_granted_for_storage_since_c_get_needs_them(
    receiver: Receiver, proposed: tuple[bool, bool], granted: tuple[bool, bool]
) -> None:
    role = build_role(CTImageStorage, scu_role=proposed[0], scp_role=proposed[1])
    association = associate(receiver, [build_context(CTImageStorage), build_context(Verification)], ext_neg=[role])
    answer = association.acceptor.role_selection
    association.release()
    assert {uid: (one.scu_role, one.scp_role) for uid, one in answer.items()} == {CTImageStorage: granted}


def test_the_role_of_scp_is_refused_where_the_node_has_no_scu_for_it(receiver: Receiver) -> None:
    both = build_role(Verification, scu_role=True, scp_role=True)
    association = associate(receiver, [build_context(Verification)], ext_neg=[both])
    answer = association.acceptor.role_selection[Verification]
    association.release()
    assert (answer.scu_role, answer.scp_role) == (True, False)
    only = build_role(Verification, scp_role=True)
    association = associate(receiver, [build_context(Verification), build_context(CTImageStorage)], ext_neg=[only])
    refused = {one.abstract_syntax: one.result for one in association.rejected_contexts}
    association.release()
    assert refused == {Verification: USER_REJECTION}


def user(kind: int, primary: bytes, secondary: bytes = b"", wants_answer: bool = True) -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type, item.primary_field, item.secondary_field = kind, primary, secondary
    item.positive_response_requested = wants_answer
    return item


def rejection(association: Association) -> tuple[int, int, int]:
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert answer is not None
    return int(answer.result or 0), int(answer.result_source or 0), int(answer.diagnostic or 0)


@pytest.mark.parametrize("wants_answer", [True, False])
def test_a_verified_user_is_answered_where_it_asks_to_be(receiver: Receiver, wants_answer: bool) -> None:
    shown = user(2, b"ct", b"secret", wants_answer)
    association = associate(receiver, [build_context(Verification)], "NAMED", ext_neg=[shown])
    assert association.is_established
    answered = [one for one in association.acceptor.user_information if isinstance(one, UserIdentityNegotiation)]
    association.release()
    assert [one.server_response for one in answered] == ([b""] if wants_answer else [])


@pytest.mark.parametrize("shown", [None, user(2, b"ct", b"wrong"), user(5, b"a.b.c")], ids=["none", "wrong", "JWT"])
def test_a_user_who_is_not_verified_is_rejected_by_the_acse(
    receiver: Receiver, shown: UserIdentityNegotiation | None
) -> None:
    association = associate(receiver, [build_context(Verification)], "NAMED", ext_neg=[shown] if shown else [])
    assert rejection(association) == (1, 2, 1)
    words = [line["reason"] for line in receiver.log() if line["event"] == "association refused"]
    assert "peer named" in words[-1]
    assert words[-1] != "wrong"


def test_who_is_not_asked_for_a_user_may_show_one_and_gets_no_answer(receiver: Receiver) -> None:
    association = associate(receiver, [build_context(Verification)], ext_neg=[user(2, b"me", b"mine")])
    assert association.is_established
    assert not [one for one in association.acceptor.user_information if isinstance(one, UserIdentityNegotiation)]
    association.release()


def test_one_too_many_of_a_peer_is_refused_for_the_moment_and_others_are_not(receiver: Receiver) -> None:
    """Over all receiver processes: with two of them, a limit of one is held."""
    first = associate(receiver, [build_context(Verification)], "SINGLE")
    for _ in range(4):
        assert rejection(associate(receiver, [build_context(Verification)], "SINGLE")) == (2, 3, 2)
    other = associate(receiver, [build_context(Verification)])
    assert other.is_established
    other.release()
    first.release()

    def again() -> bool:
        association = associate(receiver, [build_context(Verification)], "SINGLE")
        established = bool(association.is_established)
        association.release()
        return established

    wait_until(again, 10, "the place to be free again")


def test_the_called_title_decides_and_there_may_be_several(tmp_path: Path) -> None:
    with receiving(tmp_path / "receiver", options={"called_ae_titles": ["OLDPACS"], "receivers": 1}) as receiver:
        for called in ("OVERREAD", "OLDPACS"):
            association = associate(receiver, [build_context(Verification)], called=called)
            assert association.is_established
            association.release()
        assert rejection(associate(receiver, [build_context(Verification)], called="OTHER")) == (1, 1, 7)


def test_dcmtk_gets_the_reason_in_its_words(receiver: Receiver) -> None:
    program = need_program("/usr/bin/echoscu", "dcmtk")
    command = [program, "-aet", "NAMED", "-aec", "OVERREAD", "127.0.0.1", str(receiver.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Rejected Permanent" in done.stdout + done.stderr


# What only bare bytes can say


def raw(receiver: Receiver, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", receiver.port), timeout=SLOW)
    connection.sendall(data)
    return connection


def test_a_version_of_the_protocol_without_ours_is_rejected_as_that(receiver: Receiver) -> None:
    request = bytearray(associate_request("OVERREAD"))
    request[6:8] = struct.pack(">H", 2)
    with raw(receiver, request) as connection:
        assert connection.recv(64) == bytes([3, 0, 0, 0, 0, 4, 0, 1, 2, 2])


def test_a_requestor_of_several_versions_is_accepted_in_ours(receiver: Receiver) -> None:
    request = bytearray(associate_request("OVERREAD"))
    request[6:8] = struct.pack(">H", 3)
    with raw(receiver, request) as connection:
        answer = connection.recv(4096)
        assert (answer[0], answer[6:8]) == (2, b"\0\1")


def test_another_application_context_is_rejected_as_that(receiver: Receiver) -> None:
    request = associate_request("OVERREAD").replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9")
    with raw(receiver, request) as connection:
        assert connection.recv(64) == bytes([3, 0, 0, 0, 0, 4, 0, 1, 1, 2])


@pytest.mark.parametrize(("longer", "answer"), [(0, None), (1, 7), (1 << 20, 7)])
def test_a_data_pdu_longer_than_announced_is_aborted_and_one_as_long_is_not(
    receiver: Receiver, longer: int, answer: int | None
) -> None:
    with raw(receiver, associate_request("OVERREAD")) as connection:
        accepted = connection.recv(4096)
        at = accepted.index(b"\x51\0\0\4")
        (announced,) = struct.unpack_from(">L", accepted, at + 4)
        length = announced + longer
        # A fragment of a command set that does not end here, as long as it may be.
        value = struct.pack(">LBB", 60_000 - 4, 3, 1) + bytes(60_000 - 6)
        connection.sendall(struct.pack(">BxL", 4, length) + value)
        if answer is None:
            # It is waited for the rest.
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        else:
            assert answer_of(connection) == answer


@pytest.mark.parametrize("established", [False, True])
def test_who_says_nothing_is_cut_off_within_the_time_for_it(tmp_path: Path, established: bool) -> None:
    options = {"receivers": 1, "artim_timeout_seconds": 1, "idle_timeout_seconds": 2, "network_timeout_seconds": 30}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        began = time.monotonic()
        with raw(receiver, associate_request("OVERREAD") if established else b"") as connection:
            if established:
                assert connection.recv(4096)[0] == 2
            connection.settimeout(SLOW)
            assert answer_of(connection) == (7 if established else None)
        took = time.monotonic() - began
        assert (2 if established else 1) <= took < 10


def test_a_pdu_has_the_networks_time_and_not_the_idle_one(tmp_path: Path) -> None:
    options = {"receivers": 1, "idle_timeout_seconds": 30, "network_timeout_seconds": 1}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        began = time.monotonic()
        with raw(receiver, associate_request("OVERREAD")) as connection:
            assert connection.recv(4096)[0] == 2
            connection.sendall(struct.pack(">BxL", 4, 100) + b"\0")
            connection.settimeout(SLOW)
            assert answer_of(connection) in (None, 7)
        assert 1 <= time.monotonic() - began < 10
