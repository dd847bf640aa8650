"""The peers that other tests rely on are what they claim to be."""

from __future__ import annotations

import base64
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydicom.data import get_testdata_file

from tests.peers import MllpReceiver, Orthanc, need_program, tcp_open, wait_until

MESSAGE = "MSH|^~\\&|A|B|C|D|20260101||ORU^R01^ORU_R01|X1|P|2.5.1||||||UNICODE UTF-8\rPID|||1||Иванов^Иван\r"


def talk(port: int, message: str = MESSAGE, seconds: float = 1.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as peer:
        peer.sendall(b"\x0b" + message.encode() + b"\x1c\x0d")
        try:
            return peer.recv(65536)
        except TimeoutError:
            return b"silence"


def store_one(orthanc: Orthanc) -> None:
    content = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    httpx.post(f"{orthanc.http_url}/instances", content=content).raise_for_status()


def test_orthanc_answers_http_dicomweb_and_keeps_its_storage_when_it_comes_back(orthanc: Orthanc) -> None:
    echo = need_program("/usr/bin/echoscu", "dcmtk")
    assert orthanc.get("/system")["DicomAet"] == "ORTHANC"
    assert httpx.get(f"{orthanc.dicomweb_url}/studies").json() == []
    subprocess.run([echo, "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dimse_port)], check=True)
    before = orthanc.get("/statistics")
    orthanc.stop()
    assert not tcp_open(orthanc.dimse_port)
    orthanc.start()
    assert orthanc.get("/statistics") == before


def test_orthanc_forwards_every_instance_it_receives(start_orthanc: Callable[..., Orthanc]) -> None:
    first, second = start_orthanc(), start_orthanc(ae_title="SECOND")
    first.forward_to("SECOND", second.dimse_port, mode="instances")
    store_one(first)
    wait_until(second.stored_instances, 15, "the forwarded instance")
    assert second.stored_instances() == first.stored_instances()


def test_orthanc_forwards_a_stable_study(start_orthanc: Callable[..., Orthanc]) -> None:
    first, second = start_orthanc(stable_age=1), start_orthanc(ae_title="SECOND")
    first.forward_to("SECOND", second.dimse_port, mode="studies")
    store_one(first)
    wait_until(second.stored_instances, 15, "the forwarded study")


def test_the_receiver_logs_the_bytes_and_accepts(mllp_receiver: MllpReceiver) -> None:
    answer = talk(mllp_receiver.port).decode()
    assert answer.startswith("\x0bMSH|^~\\&|C|D|A|B|")
    assert answer.endswith("\rMSA|AA|X1\r\x1c\r")
    [logged] = mllp_receiver.messages()
    assert base64.b64decode(logged["raw"]) == MESSAGE.encode()
    assert (logged["text"], logged["control_id"], logged["acknowledgement"]) == (MESSAGE, "X1", "AA")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("AE", b"MSA|AE|X1"), ("AR", b"ERR|||200"), ("wrong-id", b"MSA|AA|NO-SUCH"), ("garbage", b"\xff"), ("close", b"")],
)
def test_the_receiver_misbehaves_as_told_and_then_accepts(
    rule: str, expected: bytes, start_mllp_receiver: Callable[..., MllpReceiver]
) -> None:
    receiver = start_mllp_receiver(f"{rule}:1")
    first = talk(receiver.port)
    assert expected in first
    assert first if expected else not first
    assert b"MSA|AA|X1" in talk(receiver.port)


def test_the_receiver_can_be_silent(start_mllp_receiver: Callable[..., MllpReceiver]) -> None:
    receiver = start_mllp_receiver("silence")
    assert talk(receiver.port) == b"silence"
    assert [each["acknowledgement"] for each in receiver.messages()] == ["silence"]
