"""Whatever a peer sends, the receiver answers precisely, keeps the bytes where that helps, and goes on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import build_context
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from node.dimse.scu import echo, send
from node.dimse.status import Category, category, status_for
from node.peers import Address
from storage.headers import read_header
from tests.dicom_factory import ct_series
from tests.peers import need_program, wait_until
from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver", options={"receivers": 1, "network_timeout_seconds": 5}) as one:
        yield one


def associate(receiver: Receiver, syntax: str = ExplicitVRLittleEndian) -> Any:
    ae = AE("HOSTILE")
    contexts = [build_context(CTImageStorage, syntax)]
    association = ae.associate("127.0.0.1", receiver.port, contexts, ae_title=receiver.ae_title)
    assert association.is_established
    return association


def store_bytes(association: Any, data: bytes, sop_instance_uid: str | None = None) -> Any:
    """Send any bytes as the dataset of a C-STORE request; return the response."""
    # pynetdicom's own thread would take the response off the queue.
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused, 10, "the requestor's thread to pause", interval=0.001)
    association.dimse.send_msg(store_request(data, sop_instance_uid), 1)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


def store_request(data: bytes, sop_instance_uid: str | None = None) -> C_STORE:
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = CTImageStorage
    request.AffectedSOPInstanceUID = sop_instance_uid or generate_uid()
    request.DataSet = BytesIO(data)
    return request


def pdus_of(request: C_STORE) -> list[bytes]:
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return [P_DATA_TF(one).encode() for one in message.encode_msg(1, 4096)]


def hang_up(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def goes_on(receiver: Receiver) -> bool:
    return receiver.process.running and echo(Address(receiver.ae_title, "127.0.0.1", receiver.port), "TEST").reached


def nothing_stored(receiver: Receiver) -> bool:
    return not receiver.instances() and not list(receiver.blobs.names())


def quarantined(receiver: Receiver) -> list[Any]:
    return receiver.rows("SELECT * FROM quarantine")


def one_ct(folder: Path) -> tuple[Path, bytes]:
    """Return a CT image's file and its dataset's bytes."""
    path = ct_series(folder, np.zeros((1, 64, 64)))[0]
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        return path, file.read()


def test_bytes_that_are_no_dataset_are_answered_cannot_understand_and_kept(receiver: Receiver) -> None:
    association = associate(receiver)
    garbage = b"%PDF-1.7 this is no dataset" * 50
    response = store_bytes(association, garbage)
    association.release()
    assert response.Status == 0xC000
    assert 0 < len(response.ErrorComment) <= 64
    (row,) = quarantined(receiver)
    assert receiver.refused.path(row["blob"]).read_bytes().endswith(garbage)
    assert row["calling_ae_title"] == "HOSTILE"
    assert nothing_stored(receiver)
    assert goes_on(receiver)


def test_another_instance_than_announced_is_answered_does_not_match(receiver: Receiver, tmp_path: Path) -> None:
    _, data = one_ct(tmp_path / "ct")
    association = associate(receiver)
    response = store_bytes(association, data, sop_instance_uid="1.2.3.4")
    association.release()
    assert response.Status == 0xA900
    assert response.ErrorComment == "SOP Instance UID of the dataset is not the announced one"
    assert len(quarantined(receiver)) == 1
    assert nothing_stored(receiver)


@pytest.mark.parametrize("left", [0.9, 0.5, 0.1])
def test_a_truncated_object_is_kept_with_a_warning_until_the_whole_one_comes(
    receiver: Receiver, tmp_path: Path, left: float
) -> None:
    path, data = one_ct(tmp_path / "ct")
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    association = associate(receiver)
    response = store_bytes(association, data[: int(len(data) * left)], uid)
    assert response.Status == 0xB007
    assert "truncated" in response.ErrorComment
    (row,) = receiver.instances()
    assert "truncated" in row["defect"]
    assert store_bytes(association, data, uid).Status == 0x0000
    association.release()
    (row,) = receiver.instances()
    assert (row["defect"], row["digest"]) == ("", read_header(path).digest)
    assert len(receiver.rows("SELECT * FROM variant")) == 1
    assert receiver.rows("SELECT evidence_changed FROM study")[0]["evidence_changed"]
    assert not quarantined(receiver)


def test_a_truncated_object_that_does_not_say_what_it_is_is_answered_cannot_understand_and_kept(
    receiver: Receiver, tmp_path: Path
) -> None:
    path, data = one_ct(tmp_path / "ct")
    association = associate(receiver)
    response = store_bytes(association, data[: len(data) // 50], pydicom.dcmread(path).SOPInstanceUID)
    association.release()
    assert response.Status == 0xC000
    assert len(quarantined(receiver)) == 1
    assert nothing_stored(receiver)


def test_deeply_nested_sequences_get_a_status_and_the_node_goes_on(receiver: Receiver, tmp_path: Path) -> None:
    path, data = one_ct(tmp_path / "ct")
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    # (0008,1140) within (0008,1140) within ...: 3.6 MB, each level opened and never closed.
    level = struct.pack("<HH2sHLHHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    cut = data.index(struct.pack("<HH", 0x0010, 0x0010))
    nested = data[:cut] + level * (3_600_000 // len(level))
    association = associate(receiver)
    response = store_bytes(association, nested, uid)
    association.release()
    assert response.Status == 0xC000
    assert "nested" in response.ErrorComment
    (row,) = quarantined(receiver)
    assert row["size"] > 3_500_000
    assert nothing_stored(receiver)
    assert goes_on(receiver)


def test_a_peer_that_dies_within_an_object_leaves_nothing(receiver: Receiver, tmp_path: Path) -> None:
    path, data = one_ct(tmp_path / "ct")
    association = associate(receiver)
    pdus = pdus_of(store_request(data, pydicom.dcmread(path).SOPInstanceUID))
    connection = association.dul.socket.socket
    for pdu in pdus[:-1]:
        connection.sendall(pdu)
    wait_until(lambda: list(receiver.incoming.glob("*.part")), 10, "the dataset to arrive")
    hang_up(connection)
    wait_until(lambda: not list(receiver.incoming.glob("*.part")), 10, "the file to be removed")
    assert nothing_stored(receiver)
    assert not quarantined(receiver)
    assert goes_on(receiver)
    association.kill()


def test_a_truncated_pdu_leaves_nothing(receiver: Receiver, tmp_path: Path) -> None:
    path, data = one_ct(tmp_path / "ct")
    association = associate(receiver)
    pdus = pdus_of(store_request(data, pydicom.dcmread(path).SOPInstanceUID))
    connection = association.dul.socket.socket
    for pdu in pdus[:2]:
        connection.sendall(pdu)
    connection.sendall(pdus[2][:100])
    hang_up(connection)

    def ended() -> bool:
        return any(line["event"] == "association ended" for line in receiver.log())

    wait_until(ended, 10, "the association to end")
    assert not list(receiver.incoming.glob("*.part"))
    assert nothing_stored(receiver)
    assert goes_on(receiver)
    association.kill()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"\x04\x00\xff\xff\xff\xff" + b"\0" * 100,
        b"\x01\x00\x00\x00\x00\x08garbage!",
        b"\xff" * 500,
        b"",
    ],
    ids=["HTTP", "4 GB announced", "a broken request", "noise", "silence"],
)
def test_what_is_no_association_ends_alone(receiver: Receiver, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as connection:
        connection.sendall(sent)
        if sent:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        assert goes_on(receiver)
    assert not [line for line in receiver.log() if "Traceback" in str(line)]


def test_a_4_gb_pdu_within_an_association_is_not_waited_for(receiver: Receiver) -> None:
    association = associate(receiver)
    connection = association.dul.socket.socket
    connection.sendall(b"\x04\x00\xff\xff\xff\xff")
    wait_until(lambda: association.is_aborted or not association.is_established, 10, "the association to be ended")
    assert goes_on(receiver)


def test_a_dataset_in_a_context_that_was_not_accepted_aborts_only_this_association(
    receiver: Receiver, tmp_path: Path
) -> None:
    _, data = one_ct(tmp_path / "ct")
    association = associate(receiver)
    association.dimse.send_msg(store_request(data), 77)
    wait_until(lambda: association.is_aborted or not association.is_established, 10, "the association to be ended")
    assert nothing_stored(receiver)
    assert goes_on(receiver)


def test_an_empty_dataset_is_answered(receiver: Receiver) -> None:
    association = associate(receiver, ImplicitVRLittleEndian)
    response = store_bytes(association, b"\0\0")
    association.release()
    assert response.Status == 0xC000
    assert goes_on(receiver)


def test_a_full_disk_is_answered_out_of_resources(tmp_path: Path) -> None:
    limit = need_program("/usr/bin/prlimit", "util-linux")
    # The quota: no file of the receiver may grow past 1 MB.
    with receiving(tmp_path / "r", wrap=[limit, "--fsize=1000000"], options={"receivers": 1}) as receiver:
        big = ct_series(tmp_path / "big", np.zeros((1, 1024, 1024)))
        small = ct_series(tmp_path / "small", np.zeros((1, 16, 16)))
        report = send([*big, *small], Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
        assert [one.status for one in report.sent] == [0xA700, 0x0000]
        assert [row["sop_instance_uid"] for row in receiver.instances()] == [small[0].stem]
        assert not list(receiver.incoming.glob("*.part"))


def test_below_the_disks_reserve_nothing_is_taken_and_the_sender_is_told_to_come_again(tmp_path: Path) -> None:
    # No disk has so much room.
    with receiving(tmp_path / "r", minimum_free=1 << 60, options={"receivers": 1}) as receiver:
        path, _ = one_ct(tmp_path / "ct")
        report = send([path, path], Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
        assert [one.status for one in report.sent] == [0xA700, 0xA700]
        assert nothing_stored(receiver)
        assert not quarantined(receiver)
        assert not list(receiver.incoming.glob("*.part"))
        assert goes_on(receiver)


def test_a_database_that_cannot_take_the_object_now_is_answered_out_of_resources(tmp_path: Path) -> None:
    database = create_engine(f"sqlite:///{tmp_path / 'x.sqlite'}", connect_args={"timeout": 0})
    with database.connect() as holder, database.connect() as waiting:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked") as caught:
            waiting.exec_driver_sql("BEGIN IMMEDIATE")
    database.dispose()
    assert category(status_for(caught.value).code) is Category.BUSY
