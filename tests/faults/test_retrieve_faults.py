"""Destinations that are not there, do not answer or fail, requestors that change their mind: counts stay right."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_ECHO, C_MOVE, C_STORE

from node.dimse.scu import echo, send
from node.peers import Address
from tests.dicom_factory import ct_series
from tests.peers import free_port, wait_until
from tests.receiver import Receiver, receiving
from tests.retrieving import (
    CANCELED,
    PENDING,
    SOME_FAILED,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    SUCCESS,
    Answers,
    Destination,
    get,
    identifier,
    listening,
    move,
    requesting,
)

STUDY, DAMAGED = "1.2.826.6", "1.2.826.7"
COUNT = 6
WANTED = identifier("STUDY", StudyInstanceUID=STUDY)
CT = [(CTImageStorage, [ExplicitVRLittleEndian])]


@dataclass
class Archive:
    receiver: Receiver
    destination: int
    other: int


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    ports = {"DESTINATION": free_port(), "OTHER": free_port()}
    peers: dict[str, Any] = {
        name.lower(): {"ae_title": name, "host": "127.0.0.1", "port": port, "timeout_seconds": 2}
        for name, port in ports.items()
    }
    peers["reader"] = {"ae_title": "READER", "services": ["get"]}
    peers["nowhere"] = {"ae_title": "NOWHERE", "host": "no.such.host.invalid", "port": 104}
    noise = np.random.default_rng(1).integers(0, 1000, (COUNT, 32, 48))
    files = ct_series(folder / "a", noise, study_uid=STUDY)
    files += ct_series(folder / "b", noise[:2], study_uid=DAMAGED, transfer_syntax=JPEG2000Lossless)
    damaged = pydicom.dcmread(files[-1])
    codestream = bytearray(damaged.PixelData)
    codestream[60:] = bytes(len(codestream) - 60)
    damaged.PixelData = bytes(codestream)
    damaged["PixelData"].is_undefined_length = True
    damaged.save_as(files[-1])
    options = {"maximum_retrieves": 1, "network_timeout_seconds": 8}
    with receiving(folder / "node", peers=peers, options=options) as receiver:
        report = send(files, Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
        assert report.stored == len(files), report.failed
        yield Archive(receiver, ports["DESTINATION"], ports["OTHER"])


def sops(archive: Archive, study: str = STUDY) -> list[str]:
    rows = archive.receiver.rows(
        "SELECT sop_instance_uid FROM instance JOIN study ON study.id = study_id "
        f"WHERE study_instance_uid = '{study}' ORDER BY instance.id"
    )
    return [row["sop_instance_uid"] for row in rows]


def nothing_moved(archive: Archive, answers: Answers) -> None:
    answers.check(COUNT)
    assert (answers.final, answers.counts[-1]) == (0xA702, (None, 0, COUNT, 0))
    assert answers.failed_uids == sops(archive)


def test_a_destination_where_nothing_listens_fails_at_once_and_says_so(archive: Archive) -> None:
    began = time.monotonic()
    answers = move(archive.receiver, "DESTINATION", WANTED)
    nothing_moved(archive, answers)
    assert "DESTINATION" in answers.comment
    assert time.monotonic() - began < 5


def test_a_destination_whose_host_is_unknown_fails(archive: Archive) -> None:
    nothing_moved(archive, move(archive.receiver, "NOWHERE", WANTED))


def test_a_destination_that_rejects_the_association_fails(archive: Archive) -> None:
    with listening(archive.destination, Destination(), require_calling_aet=["SOMEONE"]):
        answers = move(archive.receiver, "DESTINATION", WANTED)
    nothing_moved(archive, answers)
    assert "rejected" in answers.comment


def test_a_destination_that_takes_no_such_sop_class_fails(archive: Archive) -> None:
    with listening(archive.destination, Destination(), ["1.2.840.10008.1.2.4.50"]):
        nothing_moved(archive, move(archive.receiver, "DESTINATION", WANTED))


def test_a_destination_that_never_answers_holds_up_nobody(archive: Archive) -> None:
    with socket.create_server(("127.0.0.1", archive.destination)):
        answers: list[Answers] = []
        mover = threading.Thread(target=lambda: answers.append(move(archive.receiver, "DESTINATION", WANTED)))
        began = time.monotonic()
        mover.start()
        peer = Address(archive.receiver.ae_title, "127.0.0.1", archive.receiver.port)
        while mover.is_alive():
            asked = time.monotonic()
            assert echo(peer, "MODALITY").reached
            assert time.monotonic() - asked < 2
            mover.join(0.2)
    nothing_moved(archive, answers[0])
    assert time.monotonic() - began < 8


def test_a_destination_that_refuses_each_object_is_still_asked_for_each(archive: Archive) -> None:
    asked: list[str] = []

    def refuse(event: evt.Event) -> int:
        asked.append(event.request.AffectedSOPInstanceUID)
        return 0xA700

    with listening(archive.destination, Destination(refuse)):
        nothing_moved(archive, move(archive.receiver, "DESTINATION", WANTED))
    assert asked == sops(archive)


@pytest.mark.parametrize("how", ["aborts", "gives no answer"])
def test_an_object_that_the_destination_ends_the_association_at_takes_no_others_with_it(
    archive: Archive, how: str
) -> None:
    bad = sops(archive)[2]
    free = threading.Event()

    def fail_at_one(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID == bad:
            if how == "aborts":
                event.assoc.abort()
            free.wait(10)
        return SUCCESS

    with listening(archive.destination, Destination(fail_at_one)) as destination:
        answers = move(archive.receiver, "DESTINATION", WANTED)
        free.set()
    answers.check(COUNT)
    assert (answers.final, answers.counts[-1]) == (SOME_FAILED, (None, COUNT - 1, 1, 0))
    assert answers.failed_uids == [bad]
    assert {uid for uid, _, _ in destination.got} >= set(sops(archive)) - {bad}


def test_a_destination_that_dies_midway_fails_the_rest(archive: Archive) -> None:
    def die(event: evt.Event) -> int:
        if len(destination.got) == 2:
            event.assoc.abort()
            return 0xA700
        return SUCCESS

    destination = Destination(die)
    with listening(archive.destination, destination):
        answers = move(archive.receiver, "DESTINATION", WANTED)
    answers.check(COUNT)
    assert (answers.final, answers.counts[-1]) == (SOME_FAILED, (None, 2, COUNT - 2, 0))
    assert answers.failed_uids == sops(archive)[2:]


def test_what_cannot_be_decoded_fails_alone(archive: Archive) -> None:
    with listening(archive.destination, Destination(), [ExplicitVRLittleEndian]) as destination:
        answers = move(archive.receiver, "DESTINATION", identifier("STUDY", StudyInstanceUID=DAMAGED))
    answers.check(2)
    assert (answers.final, answers.counts[-1]) == (SOME_FAILED, (None, 1, 1, 0))
    assert answers.failed_uids == sops(archive, DAMAGED)[1:]
    assert len(destination.got) == 1


@pytest.mark.parametrize("object_in_flight", [False, True])
def test_a_move_is_cancelled_at_once_even_while_the_destination_keeps_an_object(
    archive: Archive, object_in_flight: bool
) -> None:
    free = threading.Event()

    def hold_the_third(_: evt.Event) -> int:
        if len(destination.got) == 2:
            free.wait(30 if object_in_flight else 0.3)
        return SUCCESS

    destination = Destination(hold_the_third)
    with listening(archive.destination, destination):
        began = time.monotonic()
        answers = move(archive.receiver, "DESTINATION", WANTED, cancel=lambda told: told.counts[-1][1] == 2)
        seconds = time.monotonic() - began
        free.set()
    answers.check(COUNT)
    assert answers.final == CANCELED
    remaining, completed, failed, _ = answers.counts[-1]
    assert seconds < 4
    assert failed == 0
    assert completed == (2 if object_in_flight else 3)
    assert remaining == COUNT - completed
    assert len({uid for uid, _, _ in destination.got}) <= 3


def test_a_get_is_cancelled_between_two_objects(archive: Archive) -> None:
    answers, destination = get(archive.receiver, WANTED, CT, cancel=lambda told: told.counts[-1][1] == 1)
    assert answers.final == CANCELED
    answers.check(COUNT)
    remaining, completed, _, _ = answers.counts[-1]
    assert completed == len(destination.got) < COUNT
    assert remaining == COUNT - completed


def test_a_cancel_that_comes_too_late_does_not_cancel_the_next(archive: Archive) -> None:
    with requesting(archive.receiver, STUDY_ROOT_GET, storage=CT, destination=Destination()) as association:
        for _ in range(2):
            final = [status.Status for status, _ in association.send_c_get(WANTED, STUDY_ROOT_GET, msg_id=7)][-1]
            assert final == SUCCESS
            association.send_c_cancel(7, query_model=STUDY_ROOT_GET)


def test_when_the_requestor_goes_the_sub_operations_end(archive: Archive) -> None:
    free = threading.Event()

    def hold_the_second(_: evt.Event) -> int:
        if len(destination.got) == 1:
            free.wait(1)
        return SUCCESS

    destination = Destination(hold_the_second)
    with listening(archive.destination, destination):
        with requesting(archive.receiver, STUDY_ROOT_MOVE) as association:
            for status, _ in association.send_c_move(WANTED, "DESTINATION", STUDY_ROOT_MOVE, msg_id=9):
                if status.NumberOfCompletedSuboperations == 1:
                    association.abort()
                    break
        wait_until(
            lambda: [one for one in archive.receiver.log() if one.get("status") == "the requestor has gone"],
            5,
            "the end of the move",
        )
        free.set()
        # The only place is free again.
        assert move(archive.receiver, "OTHER", WANTED).final == 0xA702
    assert len(destination.got) <= 2


def test_one_retrieve_too_many_waits_for_its_turn_and_can_be_cancelled_meanwhile(archive: Archive) -> None:
    free = threading.Event()
    first: list[Answers] = []
    hold = Destination(lambda _: SUCCESS if free.wait(20) else 0xA700)
    with listening(archive.destination, hold, dimse_timeout=30), listening(archive.other, Destination()) as other:
        # Its own peers' timeout is 2 s: the first holds its place for as long as the destination answers in time.
        mover = threading.Thread(target=lambda: first.append(move(archive.receiver, "DESTINATION", WANTED)))
        mover.start()
        wait_until(lambda: hold.originators, 5, "the first move to be under way")
        second: list[Answers] = []
        waiter = threading.Thread(target=lambda: second.append(move(archive.receiver, "OTHER", WANTED)))
        waiter.start()
        with requesting(archive.receiver, STUDY_ROOT_MOVE) as association:
            responses = association.send_c_move(WANTED, "OTHER", STUDY_ROOT_MOVE, msg_id=11)
            association.send_c_cancel(11, query_model=STUDY_ROOT_MOVE)
            statuses = [status for status, _ in responses]
        assert statuses[-1].Status == CANCELED
        assert statuses[-1].NumberOfRemainingSuboperations == COUNT
        assert other.got == []
        free.set()
        mover.join(20)
        waiter.join(20)
    assert (first[0].counts[-1], second[0].counts[-1]) == ((None, COUNT, 0, 0), (None, COUNT, 0, 0))


def test_what_a_requestor_asks_within_a_get_does_not_disturb_it(archive: Archive) -> None:
    """One that had asked for no asynchronous operations should wait."""
    asked: list[bool] = []

    def echo_within(event: evt.Event) -> int:
        if not asked:
            asked.append(True)
            request = C_ECHO()
            request.MessageID, request.AffectedSOPClassUID = 99, "1.2.840.10008.1.1"
            event.assoc.dimse.send_msg(request, event.context.context_id)
        return SUCCESS

    answers, destination = get(archive.receiver, WANTED, CT, destination=Destination(echo_within))
    answers.check(COUNT)
    assert answers.final == SUCCESS
    assert len(destination.got) == COUNT


def test_who_may_only_get_cannot_store_in_the_contexts_that_it_gets_objects_in(archive: Archive) -> None:
    held = len(archive.receiver.instances())
    with requesting(archive.receiver, STUDY_ROOT_GET, storage=CT, destination=Destination(), calling="READER") as own:
        final = [status.Status for status, _ in own.send_c_get(WANTED, STUDY_ROOT_GET)][-1]
        assert final == SUCCESS
        request = C_STORE()
        request.MessageID, request.AffectedSOPClassUID, request.Priority = 5, CTImageStorage, 2
        request.AffectedSOPInstanceUID, request.DataSet = "1.2.3.9", BytesIO(bytes(64))
        (context,) = (one for one in own.accepted_contexts if one.abstract_syntax == CTImageStorage)
        own._reactor_checkpoint.clear()
        own.dimse.send_msg(request, context.context_id)
        _, response = own.dimse.get_msg(block=True)
        own._reactor_checkpoint.set()
    assert isinstance(response, C_STORE)
    assert response.Status == 0x0124
    assert len(archive.receiver.instances()) == held


@pytest.mark.parametrize("content", [None, b"\xff" * 64, b"\x08\x00\x52\x00CS\xff\xffXX"])
def test_bytes_that_are_no_identifier_get_a_failure(archive: Archive, content: bytes | None) -> None:
    with requesting(archive.receiver, STUDY_ROOT_MOVE) as association:
        request = C_MOVE()
        request.MessageID, request.AffectedSOPClassUID, request.Priority = 3, STUDY_ROOT_MOVE, 2
        request.MoveDestination, request.Identifier = "DESTINATION", content and BytesIO(content)
        association._reactor_checkpoint.clear()
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
    assert isinstance(response, C_MOVE)
    assert response.Status in (0xA900, 0xC000)
    assert response.Status != PENDING
