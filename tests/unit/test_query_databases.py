"""Searching gives the same answers on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.blobs import FileBlobs
from storage.database import Database
from storage.errors import InvalidQuery
from storage.index import Origin
from storage.intake import Archive
from storage.query import Level, Query, find, parse_key
from tests.dicom_factory import radiograph

PIXELS = np.full((8, 8), 7)
NAMES = ["Doe^Jane", "Иванов^Иван", "Yamada^Tarou=山田^太郎=やまだ^たろう", "100%_\\x", "Ｓａｔｏ^ﬁnn"]


@pytest.fixture
def filled(database: Database, quick_path: Path) -> Iterator[Database]:
    archive = Archive(database, FileBlobs(quick_path / "o"), FileBlobs(quick_path / "r"))
    for number, name in enumerate(NAMES):
        path = radiograph(
            quick_path,
            PIXELS,
            study_uid=f"1.2.{number}",
            PatientName=name,
            PatientID=f"id_{number}",
            StudyDate=f"2026010{number + 1}",
            SeriesNumber=str(number),
        )
        archive.receive(path, Origin(calling_ae_title="TEST"))
    yield database
    archive.close()


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


def test_a_value_that_no_database_can_hold_is_refused(filled: Database) -> None:
    with pytest.raises(InvalidQuery):
        parse_key("PatientID", "a\0b")
