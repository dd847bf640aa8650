"""Names in any script arrive by code point at the PACS, at the EMR and in QIDO-RS."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import generate_uid

from demo.messages import read_message
from phantoms.radiograph import make_radiograph
from tests.dicom_factory import radiograph
from tests.system import Site, push

NAMES = [
    pytest.param("ISO_IR 144", "Люкceмбypг^Ирина", id="cyrillic"),
    pytest.param("ISO_IR 126", "Διονυσιος^Αθηνά", id="greek"),
    pytest.param(["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", id="korean"),
    pytest.param(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", id="japanese"),
    pytest.param("ISO_IR 192", "Wang^XiaoDong=王^小東", id="chinese"),
    pytest.param("ISO_IR 100", "Äneas^Rüdiger", id="latin"),
]


@pytest.fixture(scope="module")
def pixels() -> object:
    return make_radiograph(2, (), shape=(320, 280)).pixels


@pytest.mark.parametrize(("character_set", "name"), NAMES)
def test_a_name_arrives_by_code_point(
    site: Site, tmp_path: Path, pixels: object, character_set: str | list[str], name: str
) -> None:
    study_uid = generate_uid()
    file = radiograph(
        tmp_path,
        pixels,  # type: ignore[arg-type]
        study_uid=study_uid,
        SpecificCharacterSet=character_set,
        PatientName=name,
        PatientID=f"C-{abs(hash(name)) % 10**6}",
    )
    push([file], site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)

    (raw,) = site.pacs.instances_of(study_uid, "SR")
    assert str(pydicom.dcmread(io.BytesIO(raw)).PatientName) == name

    answer = httpx.get(f"{site.node.url}/dicom-web/studies", params={"StudyInstanceUID": study_uid}, timeout=10)
    (found,) = answer.json()
    groups = found["00100010"]["Value"][0]
    assert "=".join(groups[key] for key in ("Alphabetic", "Ideographic", "Phonetic") if key in groups) == name

    family = name.split("=")[0].split("^")[0]
    by_wildcard = httpx.get(f"{site.node.url}/dicom-web/studies", params={"PatientName": f"{family[:3]}*"}, timeout=10)
    assert study_uid in str(by_wildcard.json())

    (pid,) = [one for one in read_message(message["text"].encode()) if one.name == "PID"]
    told = ["^".join(parts[:2]) for parts in pid.repetitions(5)]
    assert told == [unicodedata.normalize("NFC", group) for group in name.split("=")]
