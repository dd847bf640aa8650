"""C-MOVE and C-GET give out what is stored, as it is stored, and count it right."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.dsutils import decode

from demo.peers import find_orthanc
from node.dimse.scu import send
from node.peers import Address
from storage import studies
from storage.database import Database
from tests.dicom_factory import ct_series, radiograph
from tests.peers import Orthanc, free_port, need, need_program
from tests.receiver import Receiver, receiving
from tests.retrieving import (
    PATIENT_ROOT_GET,
    PATIENT_ROOT_MOVE,
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
    stored_digests,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "transfer_syntax"
STUDY, OTHER, MIXED, CONFLICT, MISSING = "1.2.826.1", "1.2.826.2", "1.2.826.3", "1.2.826.4", "1.2.826.5"
EQUIPMENT = Dataset()
EQUIPMENT.Manufacturer = "Overread"
MADE_HERE = {"ContributingEquipmentSequence": [EQUIPMENT]}
ANY = [(CTImageStorage, [ExplicitVRLittleEndian]), (ComputedRadiographyImageStorage, [ExplicitVRLittleEndian])]


@dataclass
class Archive:
    """A receiver that holds five small studies of three patients, and the ports of its peers."""

    receiver: Receiver
    destination: int
    orthanc: int
    movescu: int


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    ports = {name: free_port() for name in ("DESTINATION", "ORTHANC", "MOVESCU")}
    peers: dict[str, Any] = {
        name.lower(): {"ae_title": name, "host": "127.0.0.1", "port": port, "services": ["move"]}
        for name, port in ports.items()
    }
    peers["caller"] = {"ae_title": "ONLY_CALLS", "services": ["echo"]}
    noise = np.random.default_rng(1).integers(0, 1000, (3, 32, 48))
    files = ct_series(folder / "a", noise, study_uid=STUDY, series_uid=f"{STUDY}.1", PatientID="A")
    files += ct_series(folder / "b", noise[:2], study_uid=STUDY, series_uid=f"{STUDY}.2", PatientID="A")
    files += ct_series(folder / "c", noise[:1], study_uid=OTHER, series_uid=f"{OTHER}.1", PatientID="A", **MADE_HERE)
    for number, syntax in enumerate((JPEG2000Lossless, RLELossless)):
        files += ct_series(
            folder / syntax, noise[number : number + 1], study_uid=MIXED, PatientID="B", transfer_syntax=syntax
        )
    files.append(radiograph(folder / "d", noise[0], study_uid=MIXED, PatientID="B"))
    (twin,) = ct_series(folder / "e", noise[:1], study_uid=CONFLICT, series_uid=f"{CONFLICT}.1", PatientID="C")
    files.append(twin)
    moved = pydicom.dcmread(twin)
    moved.StudyInstanceUID, moved.SeriesInstanceUID = f"{CONFLICT}.9", f"{CONFLICT}.9.1"
    moved.save_as(folder / "moved.dcm")
    variant = pydicom.dcmread(files[0])
    variant.StudyDescription = "ANOTHER"
    variant.save_as(folder / "variant.dcm")
    files += [folder / "moved.dcm", folder / "variant.dcm"]
    files += ct_series(folder / "f", noise, study_uid=MISSING, PatientID="C")
    with receiving(folder / "node", peers=peers) as receiver:
        report = send(files, Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
        assert report.stored == len(files), report.failed
        lost = receiver.rows(
            f"SELECT blob FROM instance JOIN study ON study.id = study_id WHERE study_instance_uid = '{MISSING}'"
        )
        receiver.blobs.delete(lost[1]["blob"])
        yield Archive(receiver, ports["DESTINATION"], ports["ORTHANC"], ports["MOVESCU"])


def sops(archive: Archive, study: str) -> list[str]:
    rows = archive.receiver.rows(
        "SELECT sop_instance_uid FROM instance JOIN study ON study.id = study_id "
        f"WHERE study_instance_uid = '{study}' ORDER BY instance.id"
    )
    return [row["sop_instance_uid"] for row in rows]


def of_study(study: str) -> str:
    return f"study_instance_uid = '{study}'"


Keys = Callable[[Archive], dict[str, Any]]
LEVELS: list[tuple[str, str, Keys, str]] = [
    ("patient", "PATIENT", lambda _: {"PatientID": "A"}, "patient_id = 'A'"),
    ("patient", "STUDY", lambda _: {"PatientID": "A", "StudyInstanceUID": OTHER}, of_study(OTHER)),
    ("patient", "STUDY", lambda _: {"PatientID": "A", "StudyInstanceUID": [STUDY, OTHER]}, "patient_id = 'A'"),
    (
        "patient",
        "SERIES",
        lambda _: {"PatientID": "A", "StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.2"},
        f"series_instance_uid = '{STUDY}.2'",
    ),
    ("study", "STUDY", lambda _: {"StudyInstanceUID": STUDY}, of_study(STUDY)),
    (
        "study",
        "SERIES",
        lambda _: {"StudyInstanceUID": STUDY, "SeriesInstanceUID": [f"{STUDY}.1", f"{STUDY}.2", "1.2.3"]},
        of_study(STUDY),
    ),
    (
        "study",
        "IMAGE",
        lambda archive: {
            "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": f"{STUDY}.1",
            "SOPInstanceUID": sops(archive, STUDY)[:2],
        },
        f"series_instance_uid = '{STUDY}.1' ORDER BY instance.id LIMIT 2",
    ),
    ("study", "STUDY", lambda _: {"StudyInstanceUID": "1.2.3.4"}, "1 = 0"),
]


@pytest.mark.parametrize(("root", "level", "keys", "where"), LEVELS)
def test_what_is_moved_is_what_the_keys_name_byte_for_byte(
    archive: Archive, root: str, level: str, keys: Keys, where: str
) -> None:
    expected = stored_digests(archive.receiver, where)
    with listening(archive.destination, Destination()) as destination:
        answers = move(
            archive.receiver,
            "DESTINATION",
            identifier(level, **keys(archive)),
            sop_class=PATIENT_ROOT_MOVE if root == "patient" else STUDY_ROOT_MOVE,
        )
    assert answers.final == SUCCESS
    answers.check(len(expected))
    assert destination.digests == expected
    assert destination.originators == ({("WORKSTATION", 7)} if expected else set())


@pytest.mark.parametrize(("root", "level", "keys", "where"), LEVELS)
def test_what_is_got_is_what_the_keys_name_byte_for_byte(
    archive: Archive, root: str, level: str, keys: Keys, where: str
) -> None:
    expected = stored_digests(archive.receiver, where)
    answers, destination = get(
        archive.receiver,
        identifier(level, **keys(archive)),
        ANY,
        sop_class=PATIENT_ROOT_GET if root == "patient" else STUDY_ROOT_GET,
    )
    assert answers.final == SUCCESS
    answers.check(len(expected))
    assert destination.digests == expected


def test_every_pending_response_says_how_far_it_has_come(archive: Archive) -> None:
    with listening(archive.destination, Destination()):
        answers = move(archive.receiver, "DESTINATION", identifier("STUDY", StudyInstanceUID=STUDY))
    assert answers.counts == [(5 - done, done, 0, 0) for done in range(6)] + [(None, 5, 0, 0)]


@pytest.mark.parametrize(
    ("level", "keys"),
    [
        (None, {"StudyInstanceUID": STUDY}),
        ("PATIENT", {"PatientID": "A"}),
        ("EVERYTHING", {"StudyInstanceUID": STUDY}),
        ("STUDY", {}),
        ("STUDY", {"StudyInstanceUID": ""}),
        ("STUDY", {"StudyInstanceUID": "*"}),
        ("SERIES", {"SeriesInstanceUID": f"{STUDY}.1"}),
        ("SERIES", {"StudyInstanceUID": [STUDY, OTHER], "SeriesInstanceUID": f"{STUDY}.1"}),
        ("IMAGE", {"StudyInstanceUID": STUDY, "SOPInstanceUID": "1.2.3"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_identifier_that_breaks_the_hierarchy_is_refused(
    archive: Archive, level: str | None, keys: dict[str, Any]
) -> None:
    wanted = identifier(level, **keys)
    answers = move(archive.receiver, "DESTINATION", wanted)
    assert (answers.statuses, answers.counts) == ([0xA900], [(None, None, None, None)])
    answers, _ = get(archive.receiver, wanted, ANY)
    assert answers.statuses == [0xA900]


def test_patient_root_wants_the_patient(archive: Archive) -> None:
    wanted = identifier("STUDY", StudyInstanceUID=STUDY)
    assert move(archive.receiver, "DESTINATION", wanted, sop_class=PATIENT_ROOT_MOVE).statuses == [0xA900]


def test_relational_retrieval_needs_no_keys_of_the_levels_above_where_it_was_agreed(archive: Archive) -> None:
    with listening(archive.destination, Destination()) as destination:
        series = move(
            archive.receiver,
            "DESTINATION",
            identifier("SERIES", SeriesInstanceUID=[f"{STUDY}.2", f"{OTHER}.1"]),
            relational=True,
        )
        image = move(
            archive.receiver,
            "DESTINATION",
            identifier("IMAGE", SOPInstanceUID=sops(archive, STUDY)[0]),
            sop_class=PATIENT_ROOT_MOVE,
            relational=True,
        )
    assert (series.final, image.final) == (SUCCESS, SUCCESS)
    assert (series.counts[-1], image.counts[-1]) == ((None, 3, 0, 0), (None, 1, 0, 0))
    assert len(destination.got) == 4


@pytest.mark.parametrize("title", ["NOBODY", "ONLY_CALLS"])
def test_a_move_to_whom_the_node_cannot_call_is_refused(archive: Archive, title: str) -> None:
    answers = move(archive.receiver, title, identifier("STUDY", StudyInstanceUID=STUDY))
    assert (answers.statuses, answers.counts) == ([0xA801], [(None, None, None, None)])


def test_of_an_object_that_came_again_otherwise_the_first_is_given_out(archive: Archive) -> None:
    assert archive.receiver.rows("SELECT count(*) AS n FROM variant")[0]["n"] == 1
    _, destination = get(archive.receiver, identifier("STUDY", StudyInstanceUID=STUDY), ANY)
    assert len(destination.got) == 5
    for _, _, content in destination.got:
        assert decode(BytesIO(content), False, True).StudyDescription == "CT CHEST"


def test_each_of_two_studies_with_one_sop_instance_uid_gives_its_own_object(archive: Archive) -> None:
    for study in (CONFLICT, f"{CONFLICT}.9"):
        answers, destination = get(archive.receiver, identifier("STUDY", StudyInstanceUID=study), ANY)
        assert answers.final == SUCCESS
        ((_, _, content),) = destination.got
        assert decode(BytesIO(content), False, True).StudyInstanceUID == study


def test_missing_bytes_count_as_failed_and_are_told_in_the_log(archive: Archive) -> None:
    lost = sops(archive, MISSING)[1]
    wanted = identifier("STUDY", StudyInstanceUID=MISSING)
    with listening(archive.destination, Destination()) as destination:
        moved = move(archive.receiver, "DESTINATION", wanted)
    got, _ = get(archive.receiver, wanted, ANY)
    for answers in (moved, got):
        answers.check(3)
        assert (answers.final, answers.counts[-1]) == (SOME_FAILED, (None, 2, 1, 0))
        assert answers.failed_uids == [lost]
        assert "cannot be read" in answers.comment
    assert len(destination.got) == 2
    assert [one for one in archive.receiver.log() if one["event"] == "bytes are missing"]


def test_what_the_node_made_or_an_operator_took_out_of_judging_is_given_out_too(archive: Archive) -> None:
    (row,) = archive.receiver.rows(
        f"SELECT made_here FROM instance JOIN study ON study.id = study_id WHERE {of_study(OTHER)}"
    )
    assert row["made_here"]
    database = Database(archive.receiver.url)
    with database.write() as connection:
        studies.exclude(connection, studies.by_uid(connection, OTHER))
    database.close()
    answers, _ = get(archive.receiver, identifier("STUDY", StudyInstanceUID=OTHER), ANY)
    assert answers.counts[-1] == (None, 1, 0, 0)


def test_objects_whose_sop_class_was_not_negotiated_count_as_failed(archive: Archive) -> None:
    every = [(CTImageStorage, [ExplicitVRLittleEndian]), (ComputedRadiographyImageStorage, [ImplicitVRLittleEndian])]
    film = sops(archive, MIXED)[2]
    for storage, failed in ((every, 0), (every[:1], 1)):
        answers, destination = get(archive.receiver, identifier("STUDY", StudyInstanceUID=MIXED), storage)
        answers.check(3)
        assert answers.final == (SOME_FAILED if failed else SUCCESS)
        assert answers.counts[-1] == (None, 3 - failed, failed, 0)
        assert answers.failed_uids == [film][:failed]
        assert len(destination.got) == 3 - failed


@pytest.mark.parametrize("roles", [True, False])
def test_without_a_context_to_take_anything_in_all_of_a_get_fails(archive: Archive, roles: bool) -> None:
    """Without role selection the node may not send on this association (PS3.4 C.5.3)."""
    storage = ANY[1:] if roles else ANY
    answers, destination = get(archive.receiver, identifier("STUDY", StudyInstanceUID=STUDY), storage, roles=roles)
    answers.check(5)
    assert (answers.final, answers.counts[-1]) == (0xA702, (None, 0, 5, 0))
    assert sorted(answers.failed_uids) == sorted(sops(archive, STUDY))
    assert destination.got == []


def test_a_destination_that_takes_only_implicit_vr_gets_equal_pixels_in_it(archive: Archive) -> None:
    held = {uid: path for uid, path in _by_uid(archive.receiver).items() if uid in sops(archive, MIXED)}
    with listening(archive.destination, Destination(), [ImplicitVRLittleEndian]) as destination:
        answers = move(archive.receiver, "DESTINATION", identifier("STUDY", StudyInstanceUID=MIXED))
    assert (answers.final, answers.counts[-1]) == (SUCCESS, (None, 3, 0, 0))
    _same_pixels(held, destination, answers, ImplicitVRLittleEndian)


def test_warnings_of_the_destination_are_counted_as_such(archive: Archive) -> None:
    with listening(archive.destination, Destination(lambda _: SOME_FAILED)) as destination:
        answers = move(archive.receiver, "DESTINATION", identifier("STUDY", StudyInstanceUID=STUDY))
    answers.check(5)
    assert (answers.final, answers.counts[-1], answers.failed_uids) == (SOME_FAILED, (None, 0, 0, 5), [])
    assert len(destination.got) == 5


def test_dcmtk_gets_a_study(archive: Archive, tmp_path: Path) -> None:
    program = need_program("/usr/bin/getscu", "dcmtk")
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
    node = ["-aec", archive.receiver.ae_title, "127.0.0.1", str(archive.receiver.port)]
    done = subprocess.run(
        [program, "-v", "-S", *keys, "-od", str(tmp_path), *node], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Number of Completed Suboperations : 5" in done.stdout + done.stderr
    received = sorted(pydicom.dcmread(path).PixelData for path in tmp_path.iterdir())
    rows = archive.receiver.rows(f"SELECT blob FROM instance JOIN study ON study.id = study_id WHERE {of_study(STUDY)}")
    assert received == sorted(pydicom.dcmread(archive.receiver.blobs.path(row["blob"])).PixelData for row in rows)


def test_dcmtk_moves_a_study_to_itself(archive: Archive, tmp_path: Path) -> None:
    program = need_program("/usr/bin/movescu", "dcmtk")
    keys = ["-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=A"]
    own = ["-aet", "MOVESCU", "-aem", "MOVESCU", "+P", str(archive.movescu), "-od", str(tmp_path)]
    node = ["-aec", archive.receiver.ae_title, "127.0.0.1", str(archive.receiver.port)]
    done = subprocess.run([program, "-v", "-P", *own, *keys, *node], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Received Final Move Response (Success)" in done.stdout + done.stderr
    assert len(list(tmp_path.iterdir())) == 6


def test_orthanc_takes_what_is_moved_to_it_and_moves_it_itself(archive: Archive, tmp_path: Path) -> None:
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    orthanc = Orthanc(folder=tmp_path / "orthanc", dimse_port=archive.orthanc).start()
    try:
        answers = move(archive.receiver, "ORTHANC", identifier("PATIENT", PatientID="A"), sop_class=PATIENT_ROOT_MOVE)
        assert (answers.final, answers.counts[-1]) == (SUCCESS, (None, 6, 0, 0))
        kept = {pydicom.dcmread(BytesIO(one)).SOPInstanceUID for one in orthanc.instances_of(STUDY)}
        assert kept == set(sops(archive, STUDY))
        orthanc.add_modality("node", archive.receiver.ae_title, archive.receiver.port)
        asked = {"Level": "Study", "Resources": [{"StudyInstanceUID": MIXED}], "TargetAet": "ORTHANC"}
        httpx.post(f"{orthanc.http_url}/modalities/node/move", json=asked, timeout=30).raise_for_status()
        assert len(orthanc.instances_of(MIXED)) == 3
    finally:
        orthanc.stop(kill=True)


def test_a_large_object_goes_out_without_being_held_in_memory(tmp_path: Path) -> None:
    program = need_program("/usr/bin/getscu", "dcmtk")
    large = ct_series(tmp_path / "large", np.zeros((1, 8, 8)), study_uid=STUDY)[0]
    dataset = pydicom.dcmread(large)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1024, 1024, 50
    dataset.PixelData = bytes(2 * 1024 * 1024 * 50)
    dataset.save_as(large)
    with receiving(tmp_path / "node", options={"receivers": 1}) as receiver:
        assert send([large], Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1").stored == 1
        (process,) = psutil.Process(receiver.process.pid).children()
        before = process.memory_info().rss
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}"]
        node = ["-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
        (tmp_path / "got").mkdir()
        command = [program, "-S", *keys, "+B", "-od", str(tmp_path / "got"), *node]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as requestor:
            most = before
            while requestor.poll() is None:
                most = max(most, process.memory_info().rss)
                psutil.wait_procs([psutil.Process(requestor.pid)], timeout=0.02)
        (path,) = (tmp_path / "got").iterdir()
        assert path.stat().st_size > len(dataset.PixelData)
        assert most - before < 30_000_000


def _by_uid(receiver: Receiver) -> dict[str, Path]:
    rows = receiver.rows("SELECT sop_instance_uid, blob FROM instance")
    return {row["sop_instance_uid"]: receiver.blobs.path(row["blob"]) for row in rows}


def test_real_objects_in_every_transfer_syntax_are_given_as_stored_or_with_equal_pixels(tmp_path: Path) -> None:
    need(DATA.is_dir(), f"{DATA} is not there")
    port = free_port()
    peers = {"destination": {"ae_title": "DESTINATION", "host": "127.0.0.1", "port": port}}
    with receiving(tmp_path / "node", peers=peers) as receiver:
        send(sorted(DATA.iterdir()), Address(receiver.ae_title, "127.0.0.1", receiver.port), "CT1")
        held = _by_uid(receiver)
        syntaxes = {
            str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID) for path in held.values()
        }
        assert len(syntaxes) >= 8, syntaxes
        wanted = identifier(
            "STUDY",
            StudyInstanceUID=[row["uid"] for row in receiver.rows("SELECT study_instance_uid AS uid FROM study")],
        )
        with receiving(tmp_path / "other", port=port, ae_title="DESTINATION") as other:
            answers = move(receiver, "DESTINATION", wanted)
            assert (answers.final, answers.counts[-1]) == (SUCCESS, (None, len(held), 0, 0))
            assert stored_digests(other) == stored_digests(receiver)
        with listening(port, Destination(), [ExplicitVRLittleEndian]) as destination:
            answers = move(receiver, "DESTINATION", wanted)
        answers.check(len(held))
        _same_pixels(held, destination, answers, ExplicitVRLittleEndian)


def _same_pixels(held: dict[str, Path], destination: Destination, answers: Answers, syntax: UID) -> None:
    """What can be decoded has come, uncompressed and with the same samples; the rest is named as failed."""
    known = {str(one.abstract_syntax) for one in AllStoragePresentationContexts}
    excused = set()
    got = {uid: content for uid, _, content in destination.got}
    for uid, path in held.items():
        stored = pydicom.dcmread(path)
        if stored.SOPClassUID not in known:
            excused.add(uid)  # retired, and unknown to this destination
            continue
        try:
            expected = pixel_array(stored, raw=True) if "PixelData" in stored else None
        except Exception:  # noqa: BLE001 - whatever a decoder says: it cannot
            excused.add(uid)
            continue
        assert uid in got, (path, stored.file_meta.TransferSyntaxUID.name, answers.comment)
        came = decode(BytesIO(got[uid]), syntax.is_implicit_VR, True)
        assert came.SOPInstanceUID == uid
        came.file_meta = pydicom.FileMetaDataset()
        came.file_meta.TransferSyntaxUID = syntax
        if expected is not None:
            # As they are stored, and as a viewer would show them.
            assert np.array_equal(pixel_array(came, raw=True), expected), (path, stored.file_meta.TransferSyntaxUID)
            assert np.array_equal(pixel_array(came), pixel_array(stored)), (path, stored.file_meta.TransferSyntaxUID)
    assert set(answers.failed_uids) <= excused
    assert len(excused) < len(held) / 4
    assert len(got) == len(held) - len(answers.failed_uids)
