"""The receiver takes in what modalities and archives send, as it was sent."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.filereader import read_preamble
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.presentation import build_context

from node.dimse.inlets import bind
from node.dimse.scu import echo, send
from node.errors import AlreadyRunning
from node.peers import Address
from tests.dicom_factory import ct_series
from tests.peers import need_program, wait_until
from tests.receiver import Receiver, receiving


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver")) as one:
        yield one


def storescu(receiver: Receiver, *arguments: str | Path, calling: str = "CT1") -> subprocess.CompletedProcess[str]:
    program = need_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-v", "-aet", calling, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, errors="replace"
    )


def small_ct(folder: Path, count: int = 1, **attributes: Any) -> list[Path]:
    return ct_series(folder, np.zeros((count, 64, 64)), **attributes)


def dataset_digest(path: Path) -> str:
    """SHA-256 of what follows the file meta information, found by pydicom."""
    with path.open("rb") as file:
        read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        return hashlib.sha256(file.read()).hexdigest()


def rows_of(receiver: Receiver, path: Path) -> list[Any]:
    uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
    return [row for row in receiver.instances() if row["sop_instance_uid"] == uid]


def test_dcmtk_echo_is_answered(receiver: Receiver) -> None:
    program = need_program("/usr/bin/echoscu", "dcmtk")
    command = [program, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


def test_our_own_echo_reaches_it_and_says_so(receiver: Receiver) -> None:
    result = echo(Address(receiver.ae_title, "127.0.0.1", receiver.port), "TEST")
    assert result.reached, result.answer


def test_every_storage_sop_class_and_transfer_syntax_is_stored(receiver: Receiver, tmp_path: Path) -> None:
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    count = len(ALL_TRANSFER_SYNTAXES)
    pairs = [(one, ALL_TRANSFER_SYNTAXES[(number + k) % count]) for number, one in enumerate(classes) for k in (0, 17)]
    pairs += [(CTImageStorage, syntax) for syntax in ALL_TRANSFER_SYNTAXES]
    files = []
    for number, pair in enumerate(pairs):
        files.append(tmp_path / str(number))
        _without_pixels(*pair).save_as(files[-1], enforce_file_format=True)
    report = send(files, Address(receiver.ae_title, "127.0.0.1", receiver.port), "TEST")
    assert not [(one.answer, pairs[int(one.path.name)]) for one in report.failed]
    assert not any(one.transcoded for one in report.sent)
    held = {str(one["sop_instance_uid"]): one for one in receiver.instances()}
    for one in report.sent:
        sop_class, syntax = pairs[int(one.path.name)]
        row = held[one.sop_instance_uid]
        assert (row["sop_class_uid"], row["transfer_syntax_uid"]) == (sop_class, syntax)
    assert len(report.sent) == len(pairs)


def _without_pixels(sop_class: str, transfer_syntax: str) -> pydicom.Dataset:
    """Return the least object of a SOP class, to be sent in a transfer syntax."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Any^One", "OT"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    return dataset


@pytest.mark.parametrize(
    ("proposed", "taken"),
    [
        ([JPEG2000Lossless, ExplicitVRLittleEndian], JPEG2000Lossless),
        (["1.2.840.10008.1.2", ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        (["1.2.840.10008.1.2.2", "1.2.840.10008.1.2"], "1.2.840.10008.1.2.2"),
    ],
)
def test_of_several_transfer_syntaxes_the_senders_own_is_taken(
    receiver: Receiver, proposed: list[str], taken: str
) -> None:
    ae = AE("TEST")
    contexts = [build_context(CTImageStorage, proposed)]
    association = ae.associate("127.0.0.1", receiver.port, contexts, ae_title=receiver.ae_title)
    assert association.is_established
    chosen = association.accepted_contexts[0].transfer_syntax[0]
    association.release()
    assert chosen == taken


def test_an_unknown_transfer_syntax_or_service_is_refused_context_by_context(receiver: Receiver) -> None:
    ae = AE("TEST")
    unknown, printing = "1.2.826.0.1.3680043.8.498.1", "1.2.840.10008.5.1.1.9"
    contexts = [build_context(CTImageStorage, unknown), build_context(printing), build_context(CTImageStorage)]
    association = ae.associate("127.0.0.1", receiver.port, contexts, ae_title=receiver.ae_title)
    results = {one.context_id: one.result for one in association.rejected_contexts}
    association.release()
    assert results == {1: 0x04, 3: 0x03}  # PS3.8 Table 9-18: transfer syntaxes, abstract syntax not supported


def test_what_is_stored_is_byte_for_byte_what_was_sent(receiver: Receiver, shared_data: Path, tmp_path: Path) -> None:
    files = [path for path in sorted(shared_data.rglob("*")) if path.is_file() and path.suffix not in (".png", ".md")]
    report = send(files, Address(receiver.ae_title, "127.0.0.1", receiver.port), "ARCHIVE")
    stored = [one for one in report.sent if one.stored]
    assert len(stored) > 200, report.failed
    kept = {row["digest"] for row in receiver.instances()}
    kept |= {row["digest"] for row in receiver.rows("SELECT digest FROM variant")}
    assert not [one.path for one in stored if dataset_digest(one.path) not in kept]
    # The index's digests are of the bytes that lie there.
    for row in receiver.instances()[::10]:
        assert dataset_digest(receiver.blobs.path(row["blob"])) == row["digest"]
    # What could not be stored was not lost silently: each has an answer in words.
    assert all(one.answer for one in report.failed)


def test_the_file_meta_information_says_who_sent_what_in_which_encoding(receiver: Receiver, tmp_path: Path) -> None:
    path = small_ct(tmp_path)[0]
    assert storescu(receiver, path).returncode == 0
    (row,) = rows_of(receiver, path)
    blob = receiver.blobs.path(row["blob"])
    meta = pydicom.dcmread(blob).file_meta
    sent = pydicom.dcmread(path)
    assert meta.MediaStorageSOPClassUID == sent.SOPClassUID
    assert meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.SourceApplicationEntityTitle == "CT1"
    assert row["calling_ae_title"] == "CT1"
    dump = subprocess.run(
        [need_program("/usr/bin/dcmdump", "dcmtk"), str(blob)], capture_output=True, text=True, timeout=30, check=False
    )
    assert dump.returncode == 0
    assert not dump.stderr


def test_the_same_object_twice_is_success_and_one_row(receiver: Receiver, tmp_path: Path) -> None:
    path = small_ct(tmp_path)[0]
    assert storescu(receiver, path).returncode == 0
    assert storescu(receiver, path).returncode == 0
    assert len(rows_of(receiver, path)) == 1
    assert receiver.rows("SELECT count(*) AS n FROM variant WHERE blob NOT IN (SELECT blob FROM instance)")


def test_the_same_uid_in_another_transfer_syntax_is_success_and_a_variant(receiver: Receiver, tmp_path: Path) -> None:
    path = small_ct(tmp_path / "a")[0]
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    other = tmp_path / "compressed.dcm"
    dataset.save_as(other)
    report = send([path, other], Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
    assert report.stored == 2
    (row,) = rows_of(receiver, path)
    assert row["transfer_syntax_uid"] == ExplicitVRLittleEndian
    variants = receiver.rows(f"SELECT * FROM variant WHERE instance_id = {row['id']}")
    assert [one["transfer_syntax_uid"] for one in variants] == [JPEG2000Lossless]


def test_the_same_uid_in_another_study_is_success_and_a_conflict(receiver: Receiver, tmp_path: Path) -> None:
    path = small_ct(tmp_path / "a")[0]
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = generate_uid()
    other = tmp_path / "other.dcm"
    dataset.save_as(other)
    assert storescu(receiver, path, other).returncode == 0
    rows = rows_of(receiver, path)
    assert [bool(row["conflicting"]) for row in rows] == [True, True]


def test_several_associations_at_once_lose_nothing(receiver: Receiver, tmp_path: Path) -> None:
    program = need_program("/usr/bin/storescu", "dcmtk")
    folders = [small_ct(tmp_path / str(number), 12) for number in range(6)]
    command = [program, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    senders = [subprocess.Popen([*command, *map(str, files)]) for files in folders]
    assert [sender.wait(60) for sender in senders] == [0] * 6
    kept = {row["sop_instance_uid"] for row in receiver.instances()}
    assert {path.stem for files in folders for path in files} <= kept


def test_a_wrong_called_ae_title_is_rejected(receiver: Receiver) -> None:
    result = echo(Address("SOMEONE", "127.0.0.1", receiver.port), "TEST")
    assert not result.reached
    assert "Called AE title not recognised" in result.answer


def test_where_strangers_may_nothing_only_peers_may_associate(tmp_path: Path) -> None:
    options = {"strangers": [], "receivers": 1}
    with receiving(tmp_path / "r", peers={"ct": {"ae_title": "CT1"}}, options=options) as receiver:
        path = small_ct(tmp_path / "ct")[0]
        stranger = storescu(receiver, path, calling="STRANGER")
        assert stranger.returncode != 0
        assert "Calling AE Title Not Recognized" in stranger.stderr
        assert not receiver.instances()
        assert storescu(receiver, path, calling="CT1").returncode == 0
        assert len(receiver.instances()) == 1


def test_the_limit_on_associations_counts_over_all_receivers(tmp_path: Path) -> None:
    with receiving(tmp_path / "r", options={"maximum_associations": 3, "receivers": 2}) as receiver:
        ae = AE("TEST")
        contexts = [build_context("1.2.840.10008.1.1")]

        def associate() -> Any:
            return ae.associate("127.0.0.1", receiver.port, contexts, ae_title=receiver.ae_title)

        held = [associate() for _ in range(3)]
        assert all(one.is_established for one in held)
        extra = associate()
        assert extra.is_rejected
        assert extra.acceptor.primitive.reason_str == "Local limit exceeded"
        held[0].release()
        again = wait_until(lambda: one if (one := associate()).is_established else None, 10, "a free slot")
        for one in (*held[1:], again):
            one.release()


def test_one_line_an_association_is_logged_without_the_patient(tmp_path: Path) -> None:
    with receiving(tmp_path / "r") as receiver:
        files = small_ct(tmp_path / "ct", 3, PatientName="Secret^Name", PatientID="SECRET-ID")
        assert storescu(receiver, *files).returncode == 0

        def ended() -> list[dict[str, Any]]:
            return [line for line in receiver.log() if line["event"] == "association ended"]

        (line,) = wait_until(ended, 10, "the association's line")
        assert (line["calling_ae_title"], line["how"], line["stored"]) == ("CT1", "released", 3)
        assert line["bytes"] > 3 * 64 * 64 * 2
        assert "ecret" not in receiver.process.log_path.read_text().replace("SECRET", "ecret")


def test_the_release_starts_the_quiet_period_of_the_study_anew(tmp_path: Path) -> None:
    with receiving(tmp_path / "r") as receiver:
        path = small_ct(tmp_path / "ct")[0]
        peer = Address(receiver.ae_title, "127.0.0.1", receiver.port)
        assert send([path], peer, "CT1").stored == 1

        def later() -> bool:
            (study,) = receiver.rows("SELECT last_received_at, quiet_from FROM study")
            return str(study["quiet_from"]) > str(study["last_received_at"])

        assert wait_until(later, 10, "the release to be recorded")


def test_termination_is_quick_and_clean(tmp_path: Path) -> None:
    with receiving(tmp_path / "r") as receiver:
        assert storescu(receiver, *small_ct(tmp_path / "ct")).returncode == 0
        assert receiver.stop() == 0
        assert not list(receiver.incoming.glob("*.part"))


def test_a_port_in_use_is_refused_in_words() -> None:
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(AlreadyRunning, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
