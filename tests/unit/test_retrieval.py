"""What a retrieve names is found by unique keys of all levels, on both databases."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from node.dimse.identifiers import read_wanted
from node.errors import BadIdentifier, UnreadableIdentifier
from storage.keys import Level
from storage.retrieval import Wanted, find_stored
from tests.dicom_factory import ct_series
from tests.work import Holding

PATIENT_ROOT, STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.2.2"
PATIENT_STUDY_ONLY = "1.2.840.10008.5.1.4.1.2.3.3"
IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"


def encoded(**keys: object) -> bytes:
    from pynetdicom.dsutils import encode

    dataset = Dataset()
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return encode(dataset, True, True) or b""


def test_any_number_of_keys_finds_each_instance_once_and_in_the_order_in_which_it_came(holding: Holding) -> None:
    files = ct_series(holding.root / "ct", np.zeros((4, 4, 4)), study_uid="1.2.3", PatientID="A")
    holding.receive(files)
    sops = [path.stem for path in files]
    many = tuple(f"1.9.{number}" for number in range(1200))
    wanted = Wanted(level=Level.INSTANCE, sop_instance_uids=(sops[3], *many, sops[1], sops[3]))
    by_patient = Wanted(level=Level.PATIENT, patient_ids=("A",))
    other = Wanted(level=Level.STUDY, patient_ids=("B",), study_instance_uids=("1.2.3",))
    with holding.database.read() as connection:
        assert [one.sop_instance_uid for one in find_stored(connection, wanted, 10)] == [sops[1], sops[3]]
        assert [one.sop_instance_uid for one in find_stored(connection, by_patient, 10)] == sops
        assert len(find_stored(connection, by_patient, 3)) == 3
        assert find_stored(connection, other, 10) == []
        (first, *_) = find_stored(connection, by_patient, 1)
    assert holding.blobs.path(first.blob).is_file()


@pytest.mark.parametrize(
    ("sop_class", "keys", "expected"),
    [
        (PATIENT_ROOT, {"QueryRetrieveLevel": "PATIENT", "PatientID": " A "}, ((("A",)), (), (), ())),
        (
            PATIENT_STUDY_ONLY,
            {"QueryRetrieveLevel": "STUDY", "PatientID": "A", "StudyInstanceUID": ["1.2", "1.3"]},
            (("A",), ("1.2", "1.3"), (), ()),
        ),
        # What is below the level, and what belongs to another root, is passed over.
        (
            STUDY_ROOT,
            {"QueryRetrieveLevel": "STUDY", "PatientID": "A", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.4"},
            ((), ("1.2",), (), ()),
        ),
    ],
)
def test_an_identifier_is_read_by_its_sop_class(
    sop_class: str, keys: dict[str, object], expected: tuple[tuple[str, ...], ...]
) -> None:
    wanted = read_wanted(encoded(**keys), IMPLICIT, sop_class, relational=False)
    found = (wanted.patient_ids, wanted.study_instance_uids, wanted.series_instance_uids, wanted.sop_instance_uids)
    assert found == expected


def test_patient_study_only_knows_no_series() -> None:
    keys = {"QueryRetrieveLevel": "SERIES", "PatientID": "A", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    with pytest.raises(BadIdentifier, match="no level"):
        read_wanted(encoded(**keys), IMPLICIT, PATIENT_STUDY_ONLY, relational=False)


def test_a_refusal_names_the_key_and_never_its_value() -> None:
    with pytest.raises(BadIdentifier) as refused:
        read_wanted(
            encoded(QueryRetrieveLevel="PATIENT", PatientID=["DOE", "JANE"]), IMPLICIT, PATIENT_ROOT, relational=True
        )
    assert str(refused.value) == "PatientID has several values"


def test_a_deflated_identifier_is_inflated_no_further_than_an_identifier_may_be() -> None:
    import zlib

    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflate.compress(bytes(64 << 20)) + deflate.flush()
    with pytest.raises((UnreadableIdentifier, BadIdentifier)):
        read_wanted(bomb, DEFLATED, STUDY_ROOT, relational=False)
