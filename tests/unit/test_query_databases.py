"""Searching gives the same answers on both databases."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from sqlalchemy import text, update

from storage import namesearch, schema
from storage.blobs import FileBlobs
from storage.database import Database, _alembic_config, migrate
from storage.errors import InvalidQuery
from storage.index import Origin
from storage.intake import Archive
from storage.query import Level, Query, find, parse_key, parse_tag, search
from tests.dicom_factory import radiograph

PIXELS = np.full((8, 8), 7)
NAMES = ["Doe^Jane", "Иванов^Иван", "Yamada^Tarou=山田^太郎=やまだ^たろう", "100%_\\x", "Ｓａｔｏ^ﬁnn"]


def _take_in(database: Database, folder: Path, studies: Sequence[Mapping[str, str]]) -> None:
    archive = Archive(database, FileBlobs(folder / "o"), FileBlobs(folder / "r"))
    for number, attributes in enumerate(studies):
        path = radiograph(folder, PIXELS, study_uid=f"1.2.{number}", **attributes)
        archive.receive(path, Origin(calling_ae_title="TEST"))
    archive.close()


@pytest.fixture
def filled(database: Database, quick_path: Path) -> Database:
    _take_in(
        database,
        quick_path,
        [
            {
                "PatientName": name,
                "PatientID": f"id_{number}",
                "StudyDate": f"2026010{number + 1}",
                "SeriesNumber": str(number),
            }
            for number, name in enumerate(NAMES)
        ],
    )
    return database


@pytest.mark.parametrize(
    ("level", "keys", "expected"),
    [
        (Level.STUDY, {}, [0, 1, 2, 3, 4]),
        (Level.STUDY, {"PatientName": "DOE*"}, [0]),
        (Level.STUDY, {"PatientName": "иВАН*"}, [1]),
        (Level.STUDY, {"PatientName": "山田*"}, [2]),
        (Level.STUDY, {"PatientName": "*たろう"}, [2]),
        (Level.STUDY, {"PatientName": "100%_*"}, [3]),
        (Level.STUDY, {"PatientName": "sato*"}, [4]),
        (Level.STUDY, {"PatientName": "*^finn"}, [4]),
        (Level.STUDY, {"PatientName": "ＤＯＥ*"}, [0]),
        (Level.STUDY, {"PatientID": "id_2"}, [2]),
        (Level.STUDY, {"PatientID": "ID_2"}, []),
        (Level.STUDY, {"PatientID": "*_?"}, [0, 1, 2, 3, 4]),
        (Level.STUDY, {"PatientID": "*i*d*_*1*"}, [1]),
        (Level.STUDY, {"StudyDate": "20260102-20260103"}, [1, 2]),
        (Level.STUDY, {"StudyInstanceUID": "1.2.3,1.2.0"}, [0, 3]),
        (Level.STUDY, {"ModalitiesInStudy": "CR"}, [0, 1, 2, 3, 4]),
        (Level.STUDY, {"ModalitiesInStudy": "C?"}, [0, 1, 2, 3, 4]),
        (Level.STUDY, {"ModalitiesInStudy": "c?"}, []),
        (Level.STUDY, {"ModalitiesInStudy": "*C*R*X*Y*"}, []),
        (Level.SERIES, {"Modality": "c*"}, []),
        (Level.STUDY, {"SOPClassesInStudy": "1.2.3"}, []),
        (Level.STUDY, {"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.1", "PatientID": "id_1"}, [1]),
        (Level.STUDY, {"ModalitiesInStudy": "MR\\C*"}, [0, 1, 2, 3, 4]),
        (Level.STUDY, {"PatientName": "doe*\\*иван"}, [0, 1]),
        (Level.STUDY, {"PatientName": "*山*"}, [2]),
        (Level.STUDY, {"PatientName": "yamada*=*太郎="}, [2]),
        (Level.STUDY, {"PatientName": '*"*'}, []),
        (Level.STUDY, {"PatientName": "*[a-z]*"}, []),
        (Level.STUDY, {"PatientName": "?????jane"}, []),
        (Level.STUDY, {"PatientName": "????jane"}, [0]),
        (Level.STUDY, {"PatientID": "id_0\\*_4"}, [0, 4]),
        (Level.STUDY, {"PatientID": "id[_]?"}, []),
        (Level.STUDY, {"StudyDate": "20260101\\20260104-"}, [0, 3, 4]),
        (Level.STUDY, {"StudyDate": "-20260102"}, [0, 1]),
        (Level.STUDY, {"NumberOfStudyRelatedInstances": "1", "PatientID": "id_3"}, [3]),
        (Level.STUDY, {"NumberOfStudyRelatedInstances": "2"}, []),
        (Level.STUDY, {"PatientID": "id_1", "StudyDate": "20260101-20260102", "PatientName": "*"}, [1]),
        (Level.SERIES, {"SeriesNumber": "02"}, [2]),
        (Level.SERIES, {"Modality": "C?", "PatientName": "doe^jane"}, [0]),
        (Level.INSTANCE, {"Rows": "8", "PatientID": "id_1"}, [1]),
    ],
)
def test_the_same_is_found_on_either_database(
    filled: Database, level: Level, keys: dict[str, str], expected: list[int]
) -> None:
    parsed = tuple(parse_key(name, value) for name, value in keys.items())
    with filled.read() as connection:
        found = find(connection, level, Query(keys=parsed))
        assert [one["0020000D"]["Value"] for one in found] == [[f"1.2.{number}"] for number in expected]
        # Any stretch of the answers is that stretch of them all.
        for offset in range(len(expected) + 1):
            some = find(connection, level, Query(keys=parsed, limit=2, offset=offset))
            assert some == found[offset : offset + 2]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["1", "2", "", "", "3"]),
        ({"PatientID": "1"}, ["1"]),
        ({"PatientName": "*b*"}, ["2", ""]),
        ({"PatientBirthDate": "19500101-19501231"}, [""]),
        ({"NumberOfPatientRelatedStudies": "2"}, ["1", ""]),
        ({"PatientName": "no*", "NumberOfPatientRelatedInstances": "2"}, [""]),
    ],
)
def test_studies_of_one_id_are_one_patient_and_those_without_go_by_name_and_birth_date(
    database: Database, quick_path: Path, keys: dict[str, str], expected: list[str]
) -> None:
    patients = [
        ("1", "A^A", "19700101"),
        ("2", "B^B", "19710101"),
        ("1", "A^Again", "19700101"),
        ("", "No^B", "19500101"),
        ("", "NO^B", "19500101"),
        ("", "No^C", "19600101"),
        ("3", "D^D", ""),
    ]
    _take_in(database, quick_path, [{"PatientID": p, "PatientName": n, "PatientBirthDate": b} for p, n, b in patients])
    query = Query(keys=tuple(parse_key(name, value) for name, value in keys.items()))
    with database.read() as connection:
        found = find(connection, Level.PATIENT, query)
        assert sorted(one["00100020"].get("Value", [""])[0] for one in found) == sorted(expected)
        assert find(connection, Level.PATIENT, replace(query, limit=1, offset=1)) == found[1:2]


def test_what_is_counted_is_counted_for_what_is_found(filled: Database) -> None:
    names = [
        "NumberOfPatientRelatedStudies",
        "NumberOfPatientRelatedSeries",
        "NumberOfPatientRelatedInstances",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
        "NumberOfSeriesRelatedInstances",
    ]
    include = frozenset(map(parse_tag, [*names, "ModalitiesInStudy", "SOPClassesInStudy"]))
    with filled.read() as connection:
        for level in (Level.SERIES, Level.INSTANCE):
            for one in find(connection, level, Query(include=include)):
                assert [one[parse_tag(name)]["Value"] for name in names] == [[1]] * 6
                assert one["00080061"]["Value"] == ["CR"]
                assert one["00080062"]["Value"] == ["1.2.840.10008.5.1.4.1.1.1"]


def test_answers_are_given_while_they_are_read_and_stop_when_told(filled: Database) -> None:
    stop = False
    found = search(filled, Level.STUDY, Query(), lambda: stop)
    first = next(found)
    with filled.write() as connection:  # no transaction of the search is in the way
        connection.execute(text("UPDATE study SET patient_sex = 'O'"))
    assert first["0020000D"]["Value"] == ["1.2.0"]
    assert len(list(found)) == len(NAMES) - 1
    stop = True
    assert list(search(filled, Level.STUDY, Query(), lambda: stop)) == []


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
def test_many_answers_take_no_more_memory_than_some(filled: Database) -> None:
    with filled.write() as connection:
        columns = [one.name for one in schema.study.c if one.name not in ("id", "study_instance_uid")]
        said = ", ".join(columns)
        connection.execute(
            text(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) "
                f"INSERT INTO study (study_instance_uid, {said}) "
                f"SELECT study_instance_uid || '.' || n.i, {said} FROM study, n"
            )
        )
    assert next(search(filled, Level.STUDY, Query()))  # whatever is made once is made
    tracemalloc.start()
    try:
        count = sum(1 for _ in search(filled, Level.STUDY, Query(keys=(parse_key("PatientID", "id*"),))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1501 * len(NAMES)
    # All of them at once would take some 25 MB.
    assert peak < 4_000_000


def test_a_name_is_found_as_it_is_now(filled: Database) -> None:
    def found(name: str) -> int:
        with filled.read() as connection:
            return len(find(connection, Level.STUDY, Query(keys=(parse_key("PatientName", name),))))

    with filled.write() as connection:
        values = {"patient_name": "Poe^Edgar", "patient_name_folded": "poe^edgar"}
        connection.execute(
            update(schema.study)
            .where(schema.study.c.study_instance_uid == "1.2.0")
            .values(**values, attributes={"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Poe^Edgar"}]}})
        )
    assert (found("*doe*"), found("*edgar"), found("p*"), found("*OE*R")) == (0, 1, 1, 1)


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)  # elsewhere it is the index alone
def test_what_names_are_searched_by_is_made_again_where_it_is_gone(filled: Database) -> None:
    with filled.write() as connection:
        connection.execute(text(f"DROP TRIGGER {namesearch.TABLE}_inserted"))
        connection.execute(text("UPDATE study SET patient_name_folded = patient_name_folded || 'x'"))
    migrate(filled.url)
    with filled.read() as connection:
        query = Query(keys=(parse_key("PatientName", "doe*"),))
        assert len(find(connection, Level.STUDY, query)) == 1
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
        assert f"{namesearch.TABLE}_inserted" in set(names)
        wanted = text(f"SELECT count(*) FROM {namesearch.TABLE} WHERE {namesearch.TABLE} MATCH 'janex'")
        assert connection.execute(wanted).scalar_one() == 1


def test_names_that_were_there_before_are_folded_by_the_migration(empty_url: str) -> None:
    engine = Database(empty_url).engine
    config = _alembic_config(empty_url)
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text(
                "INSERT INTO study (study_instance_uid, state, patient_id, patient_name, patient_birth_date,"
                " patient_sex, accession_number, study_date, study_time, study_description, attributes,"
                " first_received_at, last_received_at, quiet_from)"
                " VALUES ('1.2', 'COMPLETE', '', 'ＤＯＥ^ﬁnn', '', '', '', '', '', '', '{}',"
                " '2026-01-01', '2026-01-01', '2026-01-01')"
            )
        )
    engine.dispose()
    migrate(empty_url)
    database = Database(empty_url)
    with database.read() as connection:
        assert connection.execute(text("SELECT patient_name_folded FROM study")).scalar_one() == "doe^finn"
    database.close()


def test_a_value_that_no_database_can_hold_is_refused(filled: Database) -> None:
    with pytest.raises(InvalidQuery):
        parse_key("PatientID", "a\0b")
