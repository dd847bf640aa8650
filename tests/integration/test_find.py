"""C-FIND, asked by dcmtk's findscu and by pynetdicom: both models, every level, every character set, and lies."""

from __future__ import annotations

import io
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientStudyOnlyQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from storage.blobs import FileBlobs
from storage.database import Database
from storage.index import Origin
from storage.intake import Archive
from tests.dicom_factory import ct_series, radiograph
from tests.peers import need_program, wait_until
from tests.receiver import Receiver, receiving

PIXELS = np.full((8, 8), 7)
PATIENT_ROOT = PatientRootQueryRetrieveInformationModelFind
STUDY_ROOT = StudyRootQueryRetrieveInformationModelFind
PENDING, UNSUPPORTED, SUCCESS, CANCELLED = 0xFF00, 0xFF01, 0x0000, 0xFE00
MANY = 3000


class Filled:
    """A running receiver with objects in it."""

    def __init__(self, receiver: Receiver, folder: Path) -> None:
        self.receiver = receiver
        self._folder = folder

    def fill(self) -> None:
        request = Dataset()
        request.ScheduledProcedureStepID, request.RequestedProcedureID = "SPS-7", "RP-7"
        other = Dataset()
        other.ScheduledProcedureStepID, other.RequestedProcedureID = "SPS-8", "RP-8"
        self.take_in(
            *(
                radiograph(self._folder, PIXELS, **{"study_uid": f"1.2.{number}", **attributes})
                for number, attributes in enumerate(
                    [
                        {
                            "PatientName": "Doe^Jane",
                            "PatientID": "A1",
                            "StudyDate": "20250630",
                            "StudyTime": "083000",
                            "RequestAttributesSequence": [request, other],
                        },
                        {
                            "PatientName": "Doe^Jane",
                            "PatientID": "A1",
                            "StudyDate": "20260102",
                            "StudyTime": "120000",
                            "AccessionNumber": "ACC 1",
                        },
                        {
                            "PatientName": "Иванов^Иван",
                            "PatientID": "B2",
                            "StudyDate": "20260103",
                            "StudyTime": "070000",
                            "SpecificCharacterSet": "ISO_IR 144",
                        },
                        {
                            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
                            "PatientID": "C3",
                            "StudyDate": "20260104",
                            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
                        },
                        {
                            "PatientName": "Διονυσιος",
                            "PatientID": "D4",
                            "StudyDate": "20260105",
                            "SpecificCharacterSet": "ISO_IR 126",
                        },
                        {"PatientName": "Nobody^A", "PatientID": "", "PatientBirthDate": "19500101", "StudyDate": ""},
                        {"PatientName": "Nobody^B", "PatientID": "", "PatientBirthDate": "19500101", "StudyDate": ""},
                    ]
                )
            )
        )
        for number in ("1", "2"):
            self.take_in(
                *ct_series(
                    self._folder,
                    [PIXELS, PIXELS],
                    study_uid="1.2.7",
                    series_uid=f"1.2.7.{number}",
                    PatientName="Three^Level",
                    PatientID="E5",
                    StudyDate="20260201",
                    StudyDescription="CT THORAX 100%",
                    SeriesNumber=number,
                )
            )

    def take_in(self, *paths: Path) -> None:
        database = Database(self.receiver.url)
        archive = Archive(database, FileBlobs(self.receiver.folder / "blobs"), self.receiver.refused)
        for path in paths:
            archive.receive(path, Origin(calling_ae_title="TEST"))
        archive.close()
        database.close()

    def findscu(self, model: str, *keys: str) -> subprocess.CompletedProcess[str]:
        program = need_program("/usr/bin/findscu", "dcmtk")
        arguments = [one for key in keys for one in ("-k", key)]
        command = [program, "-v", model, "-aec", "OVERREAD", *arguments, "127.0.0.1", str(self.receiver.port)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, errors="replace")

    def ask(
        self,
        model: Any,
        level: str | None,
        *,
        syntax: str = ExplicitVRLittleEndian,
        agree: bytes = b"",
        **keys: Any,
    ) -> tuple[list[Dataset], list[int], str]:
        """Return the answers, every status, and the comment on the last."""
        ae = AE(ae_title="FINDER")
        ae.add_requested_context(model, syntax)
        extended = []
        if agree:
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = model, agree
            extended = [item]
        association = ae.associate("127.0.0.1", self.receiver.port, ae_title="OVERREAD", ext_neg=extended)
        assert association.is_established
        identifier = Dataset()
        if level is not None:
            identifier.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        answers, statuses, comment = [], [], ""
        for status, answer in association.send_c_find(identifier, model):
            statuses.append(status.Status)
            comment = str(status.get("ErrorComment", ""))
            if answer is not None:
                answer.decode()
                answers.append(answer)
        association.release()
        return answers, statuses, comment


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with receiving(tmp_path_factory.mktemp("receiver")) as receiver:
        one = Filled(receiver, receiver.incoming)
        one.fill()
        yield one


def numbers(answers: list[Dataset]) -> list[int]:
    return sorted(int(one.StudyInstanceUID.rpartition(".")[2]) for one in answers)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"PatientID": "A1"}, [0, 1]),
        ({"PatientID": "a1"}, []),
        ({"PatientID": "?1"}, [0, 1]),
        ({"PatientID": "A1\\B2"}, [0, 1, 2]),
        ({"PatientName": "doe^jane"}, [0, 1]),
        ({"PatientName": "*"}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"PatientName": "*JANE"}, [0, 1]),
        ({"PatientName": "?oe*"}, [0, 1]),
        ({"PatientName": "*иван", "SpecificCharacterSet": "ISO_IR 144"}, [2]),
        ({"PatientName": "*ИВАН*", "SpecificCharacterSet": "ISO_IR 192"}, [2]),
        ({"PatientName": "*иван*", "SpecificCharacterSet": "ISO 2022 IR 144"}, [2]),
        ({"PatientName": "山田*", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]}, [3]),
        ({"PatientName": "*太郎", "SpecificCharacterSet": "GB18030"}, [3]),
        ({"PatientName": "*=山田*", "SpecificCharacterSet": "ISO_IR 192"}, [3]),
        ({"PatientName": "*ΝΎΣΙ*".replace("Ύ", "Υ"), "SpecificCharacterSet": "ISO_IR 126"}, [4]),
        ({"StudyDate": "20260102"}, [1]),
        ({"StudyDate": "20260101-20260103"}, [1, 2]),
        ({"StudyDate": "-20251231"}, [0]),
        ({"StudyDate": "20260105-"}, [4, 7]),
        ({"StudyDate": "20250630-20260103", "StudyTime": "08-13"}, [0, 1]),
        ({"StudyInstanceUID": ["1.2.0", "1.2.7", "1.2.9"]}, [0, 7]),
        ({"ModalitiesInStudy": "CT"}, [7]),
        ({"ModalitiesInStudy": "C?"}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"NumberOfStudyRelatedSeries": "2"}, [7]),
        ({"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.2"}, [7]),
        ({"StudyDescription": "*100%"}, [7]),
        ({"AccessionNumber": "ACC 1"}, [1]),
        ({"PatientID": "nobody's"}, []),
    ],
)
def test_studies_are_found_by_every_kind_of_matching(filled: Filled, keys: dict[str, Any], expected: list[int]) -> None:
    answers, statuses, _ = filled.ask(STUDY_ROOT, "STUDY", **{"StudyInstanceUID": "", **keys})
    assert numbers(answers) == expected
    assert statuses == [PENDING] * len(expected) + [SUCCESS]


@pytest.mark.parametrize(
    ("model", "level", "keys", "count"),
    [
        (PATIENT_ROOT, "PATIENT", {}, 7),
        (PATIENT_ROOT, "PATIENT", {"PatientID": "A1"}, 1),
        (PATIENT_ROOT, "PATIENT", {"PatientName": "nobody*"}, 2),
        (PATIENT_ROOT, "STUDY", {"PatientID": "A1"}, 2),
        (PATIENT_ROOT, "SERIES", {"PatientID": "E5", "StudyInstanceUID": "1.2.7"}, 2),
        (PATIENT_ROOT, "SERIES", {"PatientID": "A1", "StudyInstanceUID": "1.2.7"}, 0),
        (
            PATIENT_ROOT,
            "IMAGE",
            {"PatientID": "E5", "StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.1"},
            2,
        ),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": "1.2.7"}, 2),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": "1.2.7", "SeriesNumber": "02"}, 1),
        (STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.2"}, 2),
        (
            STUDY_ROOT,
            "IMAGE",
            {"StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.2", "InstanceNumber": "2"},
            1,
        ),
        (PatientStudyOnlyQueryRetrieveInformationModelFind, "STUDY", {"PatientID": "A1"}, 2),
    ],
)
def test_every_level_of_every_model_is_found(
    filled: Filled, model: Any, level: str, keys: dict[str, Any], count: int
) -> None:
    answers, statuses, _ = filled.ask(model, level, **keys)
    assert statuses == [PENDING] * count + [SUCCESS]
    assert {one.QueryRetrieveLevel for one in answers} <= {level}
    assert {one.RetrieveAETitle for one in answers} <= {"OVERREAD"}


def test_what_is_asked_for_is_told_and_nothing_else(filled: Filled) -> None:
    keywords = (
        "NumberOfPatientRelatedStudies",
        "NumberOfPatientRelatedSeries",
        "NumberOfPatientRelatedInstances",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "ModalitiesInStudy",
        "SOPClassesInStudy",
        "InstanceAvailability",
        "ReferringPhysicianName",
        "StudyDescription",
    )
    empty = dict.fromkeys(keywords, "")
    [answer], *_ = filled.ask(STUDY_ROOT, "STUDY", StudyInstanceUID="1.2.7", **empty)
    assert answer.NumberOfPatientRelatedStudies == 1
    assert (answer.NumberOfPatientRelatedSeries, answer.NumberOfPatientRelatedInstances) == (2, 4)
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (2, 4)
    assert answer.ModalitiesInStudy == "CT"
    assert answer.SOPClassesInStudy == "1.2.840.10008.5.1.4.1.1.2"
    assert answer.InstanceAvailability == "ONLINE"
    assert answer.StudyDescription == "CT THORAX 100%"
    assert {one.keyword for one in answer} == {*empty, "StudyInstanceUID", "QueryRetrieveLevel", "RetrieveAETitle"}
    [series, _], *_ = filled.ask(
        STUDY_ROOT, "SERIES", StudyInstanceUID="1.2.7", Modality="", NumberOfSeriesRelatedInstances=""
    )
    assert (series.Modality, series.NumberOfSeriesRelatedInstances) == ("CT", 2)
    patients, *_ = filled.ask(PATIENT_ROOT, "PATIENT", PatientID="A1", NumberOfPatientRelatedStudies="")
    assert [one.NumberOfPatientRelatedStudies for one in patients] == [2]


def test_keys_in_a_sequence_must_match_in_one_item(filled: Filled) -> None:
    def ask(step: str, procedure: str) -> list[Dataset]:
        item = Dataset()
        item.ScheduledProcedureStepID, item.RequestedProcedureID = step, procedure
        keys = {"StudyInstanceUID": "1.2.0", "RequestAttributesSequence": [item]}
        return filled.ask(STUDY_ROOT, "SERIES", **keys)[0]

    [found] = ask("SPS-7", "RP-*")
    assert [one.ScheduledProcedureStepID for one in found.RequestAttributesSequence] == ["SPS-7", "SPS-8"]
    assert len(ask("SPS-8", "RP-8")) == 1
    assert ask("SPS-7", "RP-8") == []
    assert len(ask("", "")) == 1


def test_optional_keys_that_are_not_there_are_said_and_not_returned(filled: Filled) -> None:
    answers, statuses, _ = filled.ask(STUDY_ROOT, "STUDY", PatientID="A1", Modality="CT", PatientComments="")
    assert statuses == [UNSUPPORTED, UNSUPPORTED, SUCCESS]
    assert all("Modality" not in one and "PatientComments" not in one for one in answers)


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (None, "ISO_IR 192"),
        ("ISO_IR 144", "ISO_IR 144"),
        ("ISO_IR 100", "ISO_IR 192"),
        (["", "ISO 2022 IR 144"], ["", "ISO 2022 IR 144"]),
        ("GB18030", "GB18030"),
    ],
)
def test_the_answer_is_in_the_requests_character_set_where_that_suffices(
    filled: Filled, sets: str | list[str] | None, told: str | list[str]
) -> None:
    extra = {} if sets is None else {"SpecificCharacterSet": sets}
    [answer], *_ = filled.ask(STUDY_ROOT, "STUDY", PatientID="B2", PatientName="", **extra)
    assert answer.SpecificCharacterSet == told
    assert str(answer.PatientName) == "Иванов^Иван"


def test_a_japanese_name_is_told_whole_in_the_sets_it_was_asked_in(filled: Filled) -> None:
    sets = ["", "ISO 2022 IR 87"]
    [answer], *_ = filled.ask(STUDY_ROOT, "STUDY", PatientID="C3", PatientName="", SpecificCharacterSet=sets)
    assert answer.SpecificCharacterSet == sets
    assert str(answer.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_transfer_syntax_says_the_same(filled: Filled, syntax: str) -> None:
    keys = {"PatientName": "*Тest".replace("Т", "T"), "PatientID": "", "Rows": ""}
    assert filled.ask(STUDY_ROOT, "STUDY", syntax=syntax, **keys)[0] == []
    keys = {"StudyInstanceUID": "1.2.0", "SeriesInstanceUID": "*", "Rows": None, "PatientName": "DOE*"}
    _, statuses, comment = filled.ask(STUDY_ROOT, "IMAGE", syntax=syntax, **keys)
    assert (statuses, "Series Instance UID" in comment) == ([0xA900], True)
    [answer], *_ = filled.ask(STUDY_ROOT, "IMAGE", syntax=syntax, agree=b"\1", **keys)
    assert (answer.Rows, str(answer.PatientName)) == (8, "Doe^Jane")


def test_relational_and_combined_and_empty_matching_is_done_where_it_was_agreed_on(filled: Filled) -> None:
    _, statuses, _ = filled.ask(STUDY_ROOT, "IMAGE", PatientID="E5")
    assert statuses == [0xA900]
    answers, _, _ = filled.ask(STUDY_ROOT, "IMAGE", agree=b"\1", PatientID="E5")
    assert len(answers) == 4
    span = {"StudyInstanceUID": "", "StudyDate": "20250630-20260102", "StudyTime": "1000-1300"}
    assert numbers(filled.ask(STUDY_ROOT, "STUDY", **span)[0]) == [1]
    span["StudyTime"] = "1000-1100"
    assert numbers(filled.ask(STUDY_ROOT, "STUDY", **span)[0]) == []
    span["StudyDate"] = "20250629-20260102"
    assert numbers(filled.ask(STUDY_ROOT, "STUDY", agree=b"\0\1", **span)[0]) == [0]
    nothing = {"StudyInstanceUID": "", "PatientID": '""'}
    assert numbers(filled.ask(STUDY_ROOT, "STUDY", **nothing)[0]) == []
    assert numbers(filled.ask(STUDY_ROOT, "STUDY", agree=b"\0\0\0\0\0\1", **nothing)[0]) == [5, 6]


@pytest.mark.parametrize(
    ("model", "level", "keys", "status", "words"),
    [
        (STUDY_ROOT, None, {"PatientID": "A1"}, 0xA900, "(0008,0052) is missing"),
        (STUDY_ROOT, "PATIENT", {}, 0xA900, "none of the information model"),
        (STUDY_ROOT, "study", {}, 0xA900, "none of the information model"),
        (PATIENT_ROOT, "STUDY", {}, 0xA900, "Patient ID is missing"),
        (PATIENT_ROOT, "STUDY", {"PatientID": "A*"}, 0xA900, "Patient ID must have one value"),
        (STUDY_ROOT, "SERIES", {"StudyInstanceUID": ["1.2.0", "1.2.1"]}, 0xA900, "must have one value"),
        (STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.2.0"}, 0xA900, "Series Instance UID is missing"),
        (STUDY_ROOT, "STUDY", {"StudyDate": "yesterday"}, 0xC002, "neither a DA nor a range"),
        (STUDY_ROOT, "STUDY", {"StudyTime": "noon"}, 0xC002, "neither a TM nor a range"),
        (STUDY_ROOT, "STUDY", {"RequestAttributesSequence": [Dataset(), Dataset()]}, 0xA900, "more than one item"),
    ],
)
def test_a_bad_identifier_is_answered_with_a_status_and_words(
    filled: Filled, model: Any, level: str | None, keys: dict[str, Any], status: int, words: str
) -> None:
    answers, statuses, comment = filled.ask(model, level, **keys)
    assert (answers, statuses) == ([], [status])
    assert words in comment
    assert len(comment) <= 64


def raw_find(filled: Filled, data: bytes | None, sop_class: str | None = None) -> int:
    """Send an Identifier of these bytes, whatever they are, and return the last status."""
    ae = AE(ae_title="LIAR")
    ae.add_requested_context(STUDY_ROOT, ExplicitVRLittleEndian)
    ae.add_requested_context(PATIENT_ROOT, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", filled.receiver.port, ae_title="OVERREAD")
    request = C_FIND()
    request.MessageID, request.AffectedSOPClassUID, request.Priority = 7, sop_class or STUDY_ROOT, 2
    if data is not None:
        request.Identifier = io.BytesIO(data)
    [context] = [one for one in association.accepted_contexts if one.abstract_syntax == STUDY_ROOT]
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    assert response is not None, "no answer"
    return int(response.Status)


def test_lies_are_answered_and_the_receiver_lives(filled: Filled) -> None:
    level = Dataset()
    level.QueryRetrieveLevel = "STUDY"
    whole = encode(level, False, True)
    assert whole is not None
    nested = b"\x40\x00\x75\x02SQ\0\0" + struct.pack("<L", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    for data in (
        b"\0",
        whole[:-2],
        whole + b"\x10\x00\x10\x00PN\xff\xff",
        whole + b"\x10\x00\x20\x00SQ\0\0\x08\0\0\0\xfe\xff\x00\xe0\0\0\0\0",
        whole + nested * 3000,
        b"\xff" * 1000,
    ):
        assert 0xA900 <= raw_find(filled, data) <= 0xCFFF, data[:40]
    assert raw_find(filled, None) in (0xA900, 0xC000)
    assert raw_find(filled, whole, PATIENT_ROOT) == 0x0122
    assert len(filled.ask(STUDY_ROOT, "STUDY", PatientID="A1")[0]) == 2


def test_findscu_finds_in_both_models(filled: Filled) -> None:
    asked = filled.findscu("-P", "QueryRetrieveLevel=PATIENT", "PatientName=*doe*", "PatientID")
    assert asked.stdout.count("Pending") + asked.stderr.count("Pending") == 1, asked
    asked = filled.findscu("-S", "QueryRetrieveLevel=SERIES", "StudyInstanceUID=1.2.7", "Modality", "SeriesDescription")
    assert "Success" in asked.stdout + asked.stderr
    assert (asked.stdout + asked.stderr).count("(Pending)") == 2
    asked = filled.findscu("-S", "QueryRetrieveLevel=STUDY", "SpecificCharacterSet=ISO_IR 192", "PatientName=*ванов*")
    assert "Иванов^Иван" in asked.stdout + asked.stderr


def test_names_of_real_files_are_found_in_their_own_character_sets(filled: Filled, shared_data: Path) -> None:
    tried = 0
    for path in sorted((shared_data / "charset").glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.decode()
        if not dataset.get("StudyInstanceUID") or not dataset.get("PatientName"):
            continue
        copy = filled.receiver.incoming / path.name
        copy.write_bytes(path.read_bytes())
        filled.take_in(copy)
        sets = dataset.get("SpecificCharacterSet") or ""
        for group in (dataset.PatientName.alphabetic, dataset.PatientName.ideographic, dataset.PatientName.phonetic):
            if group:
                keys = {"StudyInstanceUID": dataset.StudyInstanceUID, "SpecificCharacterSet": sets}
                for wanted in (group, f"*{group[-2:]}", group[:2] + "*"):
                    [found], *_ = filled.ask(STUDY_ROOT, "STUDY", PatientName=wanted, **keys)
                    assert str(found.PatientName).rstrip("=") == str(dataset.PatientName).rstrip("="), path.name
                tried += 1
    assert tried >= 10


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """A receiver with many studies, which are copies of one row."""
    with receiving(tmp_path_factory.mktemp("crowded")) as receiver:
        one = Filled(receiver, receiver.incoming)
        one.take_in(radiograph(receiver.incoming, PIXELS, PatientName="Many^One", PatientID="M"))
        database = Database(receiver.url)
        with database.write() as connection:
            columns = [
                str(row[1])
                for row in connection.exec_driver_sql("PRAGMA table_info(study)")
                if row[1] not in ("id", "study_instance_uid")
            ]
            said = ", ".join(columns)
            connection.exec_driver_sql(
                f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) "
                f"INSERT INTO study (study_instance_uid, {said}) SELECT '1.2.3.' || n.i, {said} FROM study, n"
            )
        database.close()
        yield one


def test_a_search_that_is_cancelled_ends_soon_and_says_so(crowded: Filled) -> None:
    ae = AE(ae_title="FINDER")
    ae.add_requested_context(STUDY_ROOT)
    association = ae.associate("127.0.0.1", crowded.receiver.port, ae_title="OVERREAD")
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    statuses = []
    for status, _ in association.send_c_find(identifier, STUDY_ROOT, msg_id=9):
        if not statuses:
            association.send_c_cancel(9, query_model=STUDY_ROOT)
        statuses.append(status.Status)
    association.release()
    assert statuses[-1] == CANCELLED
    assert len(statuses) <= MANY
    assert len(crowded.ask(STUDY_ROOT, "STUDY", PatientName="many*", StudyInstanceUID="")[0]) == MANY + 1


def test_a_peer_that_hangs_up_in_the_middle_leaves_nothing_running(crowded: Filled) -> None:
    ae = AE(ae_title="LEAVER")
    ae.add_requested_context(STUDY_ROOT)
    association = ae.associate("127.0.0.1", crowded.receiver.port, ae_title="OVERREAD")
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", ""
    found = association.send_c_find(identifier, STUDY_ROOT)
    next(found)
    connection = association.dul.socket.socket
    connection.shutdown(socket.SHUT_RDWR)

    def ended() -> bool:
        return any(
            one.get("event") == "association ended" and one.get("calling_ae_title") == "LEAVER"
            for one in crowded.receiver.log()
        )

    wait_until(ended, 20, "the end of the association")
    connection.close()
    association.abort()
