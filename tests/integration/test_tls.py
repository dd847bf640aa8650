"""Associations over TLS, in both directions: who gets in, who does not, and that nobody is harmed by the rest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from demo.peers import Process, free_port, tcp_open
from node.dimse.scu import echo, send
from node.peers import Address
from node.security.tls import Acceptor, Certificates, PeerTls, Profile, expiries
from tests.certificates import Authority, Pair, self_signed
from tests.dicom_factory import ct_series
from tests.faults.test_hostile_peers import associate_request
from tests.peers import need_program, wait_until
from tests.receiver import Receiver, receiving
from tests.system import OVERREAD


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Pair:
    """RSA: dcmtk 3.6.7 proposes no cipher suites for elliptic curves."""
    return authority.issue("node.hospital", rsa=True)


@pytest.fixture(scope="module")
def ct(authority: Authority) -> Pair:
    return authority.issue("ct1.hospital", "DNS:ct1.hospital,URI:urn:oid:1.2.3", rsa=True)


def tls(authority: Authority, pair: Pair, **options: Any) -> dict[str, Any]:
    return {
        "port": free_port(),
        "certificate": str(pair.certificate),
        "key": str(pair.key),
        "authorities": str(authority.certificate),
        **options,
    }


@pytest.fixture(scope="module")
def receiver(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, node: Pair, ct: Pair
) -> Iterator[Receiver]:
    peers = {
        "bound": {"ae_title": "BOUND", "certificates": ["CT1.hospital"]},
        "pinned": {"ae_title": "PINNED", "certificates": [f"sha256:{_digest(ct)}"]},
        "other": {"ae_title": "OTHER", "certificates": ["mr7.hospital"]},
    }
    options = {"tls": tls(authority, node), "network_timeout_seconds": 5, "artim_timeout_seconds": 5}
    with receiving(tmp_path_factory.mktemp("receiver"), options=options, peers=peers) as one:
        yield one


def _digest(pair: Pair) -> str:
    import hashlib

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())).hexdigest()


def port(receiver: Receiver) -> int:
    return int(receiver.options["tls"]["port"])


def over_tls(receiver: Receiver, authority: Authority, shown: Pair | None, **options: Any) -> Address:
    files = {"certificate": shown.certificate, "key": shown.key} if shown else {}
    return Address(
        "OVERREAD", "127.0.0.1", port(receiver), PeerTls(authorities=authority.certificate, **files, **options)
    )


def dcmtk(program: str, receiver: Receiver, authority: Authority, pair: Pair, *more: Any) -> str | None:
    """Run one of dcmtk's programs over TLS; what it wrote where it failed."""
    command = [need_program(f"/usr/bin/{program}", "dcmtk"), "-v", "-aec", "OVERREAD"]
    command += ["+tls", str(pair.key), str(pair.certificate), "+cf", str(authority.certificate)]
    command += ["127.0.0.1", str(port(receiver)), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, errors="replace")
    return None if done.returncode == 0 else done.stdout + done.stderr


def handshakes_refused(receiver: Receiver) -> list[str]:
    return [str(line["reason"]) for line in receiver.log() if line["event"] == "TLS handshake failed"]


# Who gets in


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_dcmtk_stores_by_each_of_its_profiles(
    receiver: Receiver, authority: Authority, ct: Pair, tmp_path: Path, profile: str
) -> None:
    paths = ct_series(tmp_path, np.zeros((3, 256, 256)))
    failed = dcmtk("storescu", receiver, authority, ct, profile, *paths)
    assert failed is None, failed
    stored = {row["sop_instance_uid"] for row in receiver.instances()}
    assert {str(pydicom.dcmread(path).SOPInstanceUID) for path in paths} <= stored


def test_pynetdicom_stores_with_a_context_of_its_own(
    receiver: Receiver, authority: Authority, ct: Pair, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(ct.certificate, ct.key)
    association = AE("TEST").associate(
        "127.0.0.1",
        port(receiver),
        [build_context(CTImageStorage, "1.2.840.10008.1.2.1")],
        ae_title="OVERREAD",
        tls_args=(context, "localhost"),
    )
    assert association.is_established
    (path,) = ct_series(tmp_path, np.zeros((1, 512, 512)))
    assert association.send_c_store(pydicom.dcmread(path)).Status == 0
    association.release()


def test_our_own_side_sends_what_arrives_bit_for_bit(
    receiver: Receiver, authority: Authority, ct: Pair, tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    paths = ct_series(tmp_path, rng.integers(0, 1000, (20, 512, 512)).astype(float))
    report = send(paths, over_tls(receiver, authority, ct), "CT1")
    assert report.stored == 20, report.failed
    rows = {row["sop_instance_uid"]: row for row in receiver.instances()}
    for path in paths:
        sent = pydicom.dcmread(path)
        kept = pydicom.dcmread(receiver.blobs.path(rows[sent.SOPInstanceUID]["blob"]))
        assert kept.PixelData == sent.PixelData


def test_the_plain_port_works_beside_it(receiver: Receiver) -> None:
    assert echo(Address("OVERREAD", "127.0.0.1", receiver.port), "TEST").reached


def test_the_newest_version_is_agreed_on_and_1_2_is_enough(receiver: Receiver, authority: Authority, ct: Pair) -> None:
    for highest, agreed in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
        with shaken(receiver, authority, ct, highest=highest) as connection:
            assert connection.version() == agreed
            assert connection.cipher()[0] in (  # type: ignore[index]
                "TLS_AES_256_GCM_SHA384",
                "ECDHE-RSA-AES256-GCM-SHA384",
            )


@contextlib.contextmanager
def shaken(
    receiver: Receiver,
    authority: Authority,
    pair: Pair | None,
    *,
    lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ciphers: str = "",
) -> Iterator[ssl.SSLSocket]:
    """Give a connection that has its keys, and on which an association was asked for and answered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.certificate)
    # Whatever this machine's policy: the node is to refuse, not the client.
    context.set_ciphers((ciphers or "ALL") + ":@SECLEVEL=0")
    context.minimum_version, context.maximum_version = lowest, highest
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    with (
        socket.create_connection(("127.0.0.1", port(receiver)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(associate_request("OVERREAD"))
        answer = connection.recv(4096)
        if not answer:
            raise ssl.SSLEOFError("closed")
        assert answer[0] == 2
        yield connection


# Who does not


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_older_versions_are_refused(receiver: Receiver, authority: Authority, ct: Pair, version: str) -> None:
    old = ssl.TLSVersion[version]
    with pytest.raises(OSError), shaken(receiver, authority, ct, lowest=old, highest=old):  # noqa: PT011
        pass
    wait_until(lambda: "unsupported protocol" in handshakes_refused(receiver), 10, "the reason in the log")


@pytest.mark.parametrize("ciphers", ["AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-CHACHA20-POLY1305"])
def test_cipher_suites_beyond_the_profile_are_refused(
    receiver: Receiver, authority: Authority, ct: Pair, ciphers: str
) -> None:
    with pytest.raises(OSError), shaken(receiver, authority, ct, highest=ssl.TLSVersion.TLSv1_2, ciphers=ciphers):  # noqa: PT011
        pass
    wait_until(lambda: "no shared cipher" in handshakes_refused(receiver), 10, "the reason in the log")


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("expired", "certificate has expired"),
        ("self-signed", "self-signed certificate"),
        ("other authority", "unable to get local issuer certificate"),
        ("none", "peer did not return a certificate"),
    ],
)
def test_a_certificate_that_is_not_the_hospitals_does_not_get_in(
    receiver: Receiver, authority: Authority, tmp_path: Path, which: str, reason: str
) -> None:
    pair = {
        "expired": lambda: authority.issue("expired", ends_in=timedelta(days=-1)),
        "self-signed": lambda: self_signed(tmp_path, "me"),
        "other authority": lambda: Authority(tmp_path / "ca", "Elsewhere").issue("ct1.hospital"),
        "none": lambda: None,
    }[which]()
    result = echo(over_tls(receiver, authority, pair), "CT1")
    assert not result.reached
    assert "no association with OVERREAD" in result.answer
    assert "alert" in result.answer
    wait_until(lambda: any(reason in one for one in handshakes_refused(receiver)), 10, reason)


def test_dcmtk_with_the_certificate_of_another_authority_does_not_get_in(
    receiver: Receiver, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "ca", "Elsewhere").issue("ct1.hospital", rsa=True)
    assert dcmtk("echoscu", receiver, authority, stranger) is not None


@pytest.mark.parametrize(
    ("calling", "shown", "may"),
    [("BOUND", True, True), ("PINNED", True, True), ("OTHER", True, False), ("BOUND", False, False)],
)
def test_a_peer_may_be_bound_to_its_certificate(
    receiver: Receiver, authority: Authority, ct: Pair, node: Pair, calling: str, shown: bool, may: bool
) -> None:
    result = echo(over_tls(receiver, authority, ct if shown else node), calling)
    assert result.reached == may, result.answer
    if not may:
        assert "Calling AE title not recognised" in result.answer


def test_a_peer_that_is_bound_to_a_certificate_does_not_get_in_without_tls(receiver: Receiver) -> None:
    result = echo(Address("OVERREAD", "127.0.0.1", receiver.port), "BOUND")
    assert not result.reached
    refused = [line["reason"] for line in receiver.log() if line["event"] == "association refused"]
    assert "it shows none" in refused[-1]


def test_a_client_without_a_certificate_gets_in_where_that_is_configured(
    tmp_path: Path, authority: Authority, node: Pair, ct: Pair
) -> None:
    peers = {"bound": {"ae_title": "BOUND", "certificates": ["ct1.hospital"]}}
    for kind, bound in (("optional", True), ("none", False)):
        options = {"tls": tls(authority, node, client_certificates=kind), "receivers": 1, "plain": False}
        with receiving(tmp_path / kind, options=options, peers=peers) as receiver:
            assert not tcp_open(receiver.port)
            assert echo(over_tls(receiver, authority, None), "CT1").reached
            assert not echo(over_tls(receiver, authority, None), "BOUND").reached
            # Whose certificate is not asked for cannot be known by it.
            assert echo(over_tls(receiver, authority, ct), "BOUND").reached == bound


# What we believe when we call


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"server_name": "pacs.hospital"}, "hostname mismatch"),
        ({"server_name": "pacs.hospital", "check_host": False}, None),
        ({"server_name": "localhost"}, None),
        ({}, None),
    ],
)
def test_the_certificate_of_who_is_called_has_to_be_for_its_host(
    receiver: Receiver, authority: Authority, ct: Pair, options: dict[str, Any], reason: str | None
) -> None:
    result = echo(over_tls(receiver, authority, ct, **options), "TEST")
    assert result.reached == (reason is None), result.answer
    if reason:
        assert reason in result.answer.lower()


def test_who_is_called_has_to_be_vouched_for(receiver: Receiver, ct: Pair, tmp_path: Path) -> None:
    other = Authority(tmp_path / "ca", "Elsewhere")
    result = echo(over_tls(receiver, other, ct), "TEST")
    assert not result.reached
    assert "certificate is not accepted" in result.answer


def test_files_that_are_not_there_are_named_when_a_peer_is_called(receiver: Receiver, authority: Authority) -> None:
    missing = Pair(Path("no-such.pem"), Path("no-such.key"))
    result = echo(over_tls(receiver, authority, missing), "TEST")
    assert not result.reached
    assert "no-such.pem" in result.answer


def test_a_plain_port_called_over_tls_and_the_other_way_round_end_soon(
    receiver: Receiver, authority: Authority, ct: Pair
) -> None:
    began = time.monotonic()
    plain = Address("OVERREAD", "127.0.0.1", receiver.port, PeerTls(authorities=authority.certificate))
    assert not echo(plain, "TEST", timeout=8).reached
    result = echo(Address("OVERREAD", "127.0.0.1", port(receiver)), "TEST", timeout=8)
    assert not result.reached
    assert time.monotonic() - began < 16
    wait_until(lambda: "wrong version number" in handshakes_refused(receiver), 10, "the reason in the log")
    assert echo(over_tls(receiver, authority, ct), "TEST").reached


def test_orthanc_is_called_over_tls_and_calls_over_tls(tmp_path: Path, authority: Authority, node: Pair) -> None:
    """The other makers' implementation, both ways round, with certificates on both sides."""
    from demo.peers import find_orthanc
    from tests.peers import need

    program = find_orthanc()
    need(program, "Orthanc is not installed (Debian package orthanc)")
    pacs = authority.issue("pacs.hospital", rsa=True)
    options = {"tls": tls(authority, node), "receivers": 1}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        dicom, http = free_port(), free_port()
        peer = ["OVERREAD", "127.0.0.1", port(receiver)]
        configuration = {
            "StorageDirectory": str(tmp_path / "orthanc"), "DicomPort": dicom, "HttpPort": http, "DicomAet": "PACS",
            "DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": True,
            "DicomTlsCertificate": str(pacs.certificate), "DicomTlsPrivateKey": str(pacs.key),
            "DicomTlsTrustedCertificates": str(authority.certificate), "DicomAlwaysAllowStore": True,
            "DicomModalities": {"node": {"AET": peer[0], "Host": peer[1], "Port": peer[2], "UseDicomTls": True}},
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowEcho": True,
        }  # fmt: skip
        (tmp_path / "orthanc.json").write_text(json.dumps(configuration))
        process = Process(command=[str(program), str(tmp_path / "orthanc.json")], log_path=tmp_path / "orthanc.log")
        process.start()
        try:
            import httpx

            url = f"http://127.0.0.1:{http}"
            wait_until(lambda: tcp_open(http) and tcp_open(dicom), 30, "Orthanc")
            files = {"authorities": authority.certificate, "certificate": node.certificate, "key": node.key}
            address = Address("PACS", "127.0.0.1", dicom, PeerTls(**files))
            paths = ct_series(tmp_path / "ct", np.zeros((2, 64, 64)))
            report = send(paths, address, "OVERREAD")
            assert report.stored == 2, report.failed
            (study,) = httpx.get(f"{url}/studies").json()
            answer = httpx.post(f"{url}/modalities/node/store", json={"Resources": [study]}, timeout=30)
            assert answer.status_code == 200, answer.text
            assert len(receiver.instances()) == 2
        finally:
            process.stop()


# Files that change


def test_new_files_are_used_by_new_associations_and_broken_ones_by_none(
    tmp_path: Path, authority: Authority, node: Pair, ct: Pair
) -> None:
    mine = Pair(tmp_path / "node.pem", tmp_path / "node.key")

    def put(pair: Pair) -> None:
        for source, target in ((pair.certificate, mine.certificate), (pair.key, mine.key)):
            shutil.copy(source, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    def serial() -> str:
        with shaken(receiver, authority, ct) as connection:
            return str((connection.getpeercert() or {})["serialNumber"])

    put(node)
    with receiving(tmp_path / "receiver", options={"tls": tls(authority, mine), "receivers": 1}) as receiver:
        with shaken(receiver, authority, ct) as old:
            first = serial()
            put(authority.issue("renewed.hospital"))
            second = serial()
            assert second != first
            # What was agreed on goes on.
            old.sendall(b"\x05\0\0\0\0\4\0\0\0\0")
            assert old.recv(64)[0] == 6, "A-RELEASE-RP"
        mine.certificate.write_text("nothing of the kind")
        assert serial() == second
        assert serial() == second
        errors = [line for line in receiver.log() if line["event"].startswith("TLS files cannot be used")]
        assert len(errors) == 1, "told of once"
        assert str(mine.certificate) in errors[0]["reason"]
        mine.key.unlink()
        assert serial() == second
        put(authority.issue("third.hospital"))
        assert serial() not in (first, second)


def test_files_that_cannot_be_used_keep_a_node_from_starting(tmp_path: Path, authority: Authority, node: Pair) -> None:
    other = authority.issue("other.hospital")
    config = tmp_path / "node.yaml"
    cases = [
        (tls(authority, Pair(node.certificate, other.key)), "do not work together"),
        (tls(authority, Pair(tmp_path / "none.pem", node.key)), "dimse.tls.certificate"),
        (tls(authority, node, authorities=str(node.key)), "dimse.tls.authorities"),
    ]
    for section, complaint in cases:
        values = {"data_dir": str(tmp_path / "var"), "dimse": {"port": free_port(), "tls": section}, "routes": []}
        values["http"] = {"port": free_port()}
        config.write_text(json.dumps(values))
        done = subprocess.run(
            [OVERREAD, "serve", "--config", str(config)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, done.stderr
        assert complaint in done.stderr


def test_check_tells_of_a_certificate_that_ends_soon(tmp_path: Path, authority: Authority, node: Pair) -> None:
    soon = authority.issue("soon.hospital", ends_in=timedelta(days=9))
    config = tmp_path / "node.yaml"
    for pair, returncode, words in ((soon, 1, "ends in 8 days"), (node, 0, "ends in 399 days")):
        values = {"data_dir": str(tmp_path / "var"), "dimse": {"tls": tls(authority, pair)}, "routes": []}
        values["models"] = str(tmp_path)
        config.write_text(json.dumps(values))
        done = subprocess.run(
            [OVERREAD, "check", "--json", "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == returncode, done.stdout + done.stderr
        assert words in done.stdout


# Who does harm


def test_hundreds_of_handshakes_that_never_end_keep_nobody_out(
    tmp_path: Path, authority: Authority, node: Pair, ct: Pair
) -> None:
    options = {
        "tls": tls(authority, node), "receivers": 2, "maximum_associations": 16, "artim_timeout_seconds": 20,
    }  # fmt: skip
    with receiving(tmp_path / "receiver", options=options) as receiver, contextlib.ExitStack() as stack:
        parent = psutil.Process(receiver.process.pid)
        hello = _client_hello()
        for number in range(500):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port(receiver)), timeout=20))
            with contextlib.suppress(OSError):
                connection.sendall(hello[: number % len(hello)])
        began = time.monotonic()
        for _ in range(3):
            assert echo(over_tls(receiver, authority, ct), "TEST").reached
            assert echo(Address("OVERREAD", "127.0.0.1", receiver.port), "TEST").reached
        assert time.monotonic() - began < 10
        threads = max(one.num_threads() for one in parent.children())
        assert threads < 150, threads


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_handshake_that_comes_a_byte_now_and_then_is_cut_in_time(receiver: Receiver) -> None:
    hello = _client_hello()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port(receiver)), timeout=0.2) as connection:
        for byte in hello:
            with contextlib.suppress(TimeoutError):
                connection.sendall(bytes([byte]))
                if not connection.recv(1):
                    break
        else:
            pytest.fail("it was never cut")
    assert 4 < time.monotonic() - began < 15


def test_a_record_that_does_not_end_is_cut_with_its_pdu(receiver: Receiver, authority: Authority, ct: Pair) -> None:
    with shaken(receiver, authority, ct) as connection:
        raw = os.dup(connection.fileno())
        began = time.monotonic()
        # The head of an application data record of 1,000 bytes, and one of them.
        os.write(raw, b"\x17\x03\x03\x03\xe8\x00")
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            # A-ABORT, or the end of the connection.
            assert connection.recv(64)[:1] in (b"", b"\x07")
        os.close(raw)
    assert time.monotonic() - began < 15


def test_garbage_in_the_middle_ends_one_association_only(receiver: Receiver, authority: Authority, ct: Pair) -> None:
    with shaken(receiver, authority, ct) as connection:
        raw = os.dup(connection.fileno())
        os.write(raw, os.urandom(4096))
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                pass
        os.close(raw)
    assert echo(over_tls(receiver, authority, ct), "TEST").reached


# By themselves


@pytest.mark.parametrize("profile", list(Profile))
def test_the_profiles_offer_forward_secrecy_and_authenticated_encryption_only(
    authority: Authority, node: Pair, profile: Profile
) -> None:
    context = Certificates(Acceptor(**tls(authority, node, profile=profile))).context()
    suites = {one["name"] for one in context.get_ciphers()}
    assert {"ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_AES_256_GCM_SHA384"} <= suites
    assert all(one.startswith(("ECDHE-", "TLS_")) for one in suites)
    assert all("GCM" in one or "CHACHA20" in one or "CCM" in one for one in suites)
    assert ("ECDHE-RSA-CHACHA20-POLY1305" in suites) == (profile is Profile.MODIFIED)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_when_certificates_end_is_read_from_each_of_a_file(tmp_path: Path, authority: Authority) -> None:
    one = authority.issue("short", ends_in=timedelta(days=5))
    chain = tmp_path / "chain.pem"
    chain.write_text(one.certificate.read_text() + authority.certificate.read_text() + "-----BEGIN CERTIFICATE-----\nx")
    ends = [expiry.left().days for expiry in expiries(chain)]
    assert ends == [4, 3649]
    assert expiries(tmp_path / "none.pem") == []


def test_an_association_counts_as_one_whether_plain_or_not(
    tmp_path: Path, authority: Authority, node: Pair, ct: Pair
) -> None:
    options = {"tls": tls(authority, node), "maximum_associations": 1}
    with receiving(tmp_path / "receiver", options=options) as receiver:
        with shaken(receiver, authority, ct):
            plain: Association = AE("TEST").associate(
                "127.0.0.1", receiver.port, [build_context(Verification)], ae_title="OVERREAD"
            )
            assert plain.is_rejected
        wait_until(lambda: echo(Address("OVERREAD", "127.0.0.1", receiver.port), "T").reached, 10, "the place")
