"""An ORU says what was found, what was not analysed and why, under our own order numbers, in any script."""

from __future__ import annotations

import dataclasses
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hl7apy.parser import parse_message

from inference.findings import Code
from node.errors import InvalidMessage
from node.notify.hl7 import Profile, build_message, escape, filler_order_number, xpn_repetitions
from node.notify.report import DocumentReference, Report, Result

STUDY = "1.2.826.0.1.3680043.8.498.1"
PRODUCED = datetime(2026, 11, 21, 9, 30, 5, tzinfo=timezone(timedelta(hours=1)))
LUNGS: dict[str, Any] = {
    "images": ["1.2.3"],
    "classifications": [],
    "segments": [
        {
            "label": 1,
            "name": "right lung",
            "code": {"value": "3341006", "scheme": "SCT", "meaning": "Right lung"},
            "volume_ml": 2511.04,
        },
        {
            "label": 2,
            "name": "left lung",
            "code": {"value": "44029006", "scheme": "SCT", "meaning": "Left lung"},
            "volume_ml": 0.00001,
        },
    ],
    "coverage": {"images": 60, "spacing_mm": 4.0, "extent_mm": 240.0},
    "not_analysed": None,
    "seconds": 1.0,
}
NODULE: dict[str, Any] = {
    "images": ["1.2.3"],
    "classifications": [
        {
            "name": name,
            "code": {"value": code, "scheme": "SCT", "meaning": meaning},
            "probability": probability,
            "threshold": 0.5,
            "present": probability >= 0.5,
            "image": "1.2.3",
        }
        for name, code, meaning, probability in (
            ("nodule", "27925004", "Nodule", 0.91234),
            ("pneumothorax", "36118008", "Pneumothorax", 0.00001),
        )
    ],
    "segments": [],
    "coverage": None,
    "not_analysed": None,
    "seconds": 0.2,
}


def a_result(**changes: Any) -> Result:
    result = Result(
        model_name="lung-ct",
        model_version="1.0.0",
        model_title="Lungs on chest CT",
        demonstration=False,
        state="analysed",
        reason=None,
        findings=LUNGS,
        documents=(
            DocumentReference("SR", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4", True, "delivered to pacs"),
            DocumentReference("SEG", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.3.5", False, "parked at pacs: refused"),
        ),
        started_at=datetime(2026, 11, 21, 8, 29, tzinfo=UTC),
        ended_at=datetime(2026, 11, 21, 8, 30, tzinfo=UTC),
        route="chest-ct",
        route_reason="Modality is CT and StudyDescription matches *CHEST*",
    )
    return dataclasses.replace(result, **changes)


def a_report(**changes: Any) -> Report:
    report = Report(
        study_uid=STUDY,
        accession_number="ACC1",
        placer_order_number="PL-7",
        patient_id="4711",
        issuer="HOSPITAL",
        patient_name="Doe^Jane^Mary^Dr.^Jr.",
        birth_date="19700131",
        sex="F",
        study_date="20261120",
        study_time="101112.123456",
        study_description="CHEST CT",
        requested_procedure=None,
        revision=1,
        message_number=1,
        produced_at=PRODUCED,
        results=(a_result(),),
    )
    return dataclasses.replace(report, **changes)


def segments_of(message: bytes) -> list[list[str]]:
    """Split by hand, without the library that built it; index n is field n but for MSH."""
    return [line.split("|") for line in message.decode("utf-8").split("\r") if line]


def only(message: bytes, name: str) -> list[list[str]]:
    return [fields + [""] * 50 for fields in segments_of(message) if fields[0] == name]


def unescape(text: str) -> str:
    """Undo the escapes one after the other, left to right."""
    pieces, rest = "", text
    while rest:
        head, slash, tail = rest.partition("\\")
        pieces += head
        if not slash:
            break
        name, _, rest = tail.partition("\\")
        pieces += {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}[name]
    return pieces


def test_the_header_names_parties_type_id_version_and_the_character_set_of_the_bytes() -> None:
    profile = Profile(sending_facility="RADIOLOGY", receiving_application="EMR", receiving_facility="H1")
    [msh] = only(build_message(a_report(), profile, "OR12345"), "MSH")
    assert msh[1:12] == [
        "^~\\&", "OVERREAD", "RADIOLOGY", "EMR", "H1", "20261121093005+0100", "", "ORU^R01^ORU_R01", "OR12345", "P",
        "2.5.1",
    ]  # fmt: skip
    assert msh[17] == "UNICODE UTF-8"


def test_what_is_doubtful_about_the_study_is_said_with_every_result() -> None:
    doubt = "revision 1 was opened although 3 of 5 instances have come"
    message = build_message(
        a_report(results=(a_result(), a_result(model_name="m2")), cautions=(doubt,)), Profile(), "X"
    )
    remarks = [fields[3] for fields in only(message, "NTE")]
    assert remarks.count(f"Caution: {doubt}") == 2


def test_hl7apy_has_neither_errors_nor_warnings_about_it(tmp_path: Path) -> None:
    parked = a_result(model_name="m2", state="parked", reason="the engine died three times", findings=None)
    demo = a_result(model_name="m3", demonstration=True, findings=NODULE)
    message = build_message(a_report(results=(a_result(), parked, demo)), Profile(), "X")
    report = tmp_path / "report"
    parse_message(message.decode(), find_groups=True).validate(report_file=str(report))
    # hl7apy's copies of tables 0396 and 0125 lack SCT, the local 99zzz codes and CWE; nothing else may be warned about.
    known = ("HL70396", "Value CWE not in table HL70125")
    assert [line for line in report.read_text().splitlines() if not any(each in line for each in known)] == []


def test_the_patient_is_identified_with_issuer_name_birth_date_and_sex() -> None:
    [pid] = only(build_message(a_report(), Profile(), "X"), "PID")
    assert pid[3] == "4711^^^HOSPITAL"
    # DICOM has prefix before suffix, HL7 the suffix before the prefix.
    assert pid[5] == "Doe^Jane^Mary^Jr.^Dr.^^^A"
    assert (pid[7], pid[8]) == ("19700131", "F")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou^^^^^^A~山田^太郎^^^^^^I~やまだ^たろう^^^^^^P"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "Hong^Gildong^^^^^^A~洪^吉洞^^^^^^I~홍^길동^^^^^^P"),
        ("=山田^太郎", "山田^太郎^^^^^^I"),
        ("Люкceмбypг", "Люкceмбypг^^^^^^^A"),
        ("Διονυσιος", "Διονυσιος^^^^^^^A"),
        ("", ""),
        ("==", ""),
    ],
)
def test_every_component_group_of_a_name_is_a_repetition_with_its_representation(name: str, expected: str) -> None:
    assert xpn_repetitions(name) == expected
    [pid] = only(build_message(a_report(patient_name=name), Profile(), "X"), "PID")
    assert pid[5] == (expected or '""')


def test_orders_are_our_own_and_only_link_to_the_placer() -> None:
    first = build_message(a_report(), Profile(), "X")
    later = build_message(a_report(revision=2, message_number=3), Profile(), "Y")
    [orc], [obr] = only(first, "ORC"), only(first, "OBR")
    filler = filler_order_number(STUDY, "lung-ct")
    assert (orc[1], orc[2], orc[3]) == ("RE", "PL-7", f"{filler}^OVERREAD")
    assert (obr[2], obr[3], obr[4], obr[18]) == (
        "PL-7", f"{filler}^OVERREAD", "lung-ct^Lungs on chest CT^99OVERREAD", "ACC1",
    )  # fmt: skip
    assert only(later, "OBR")[0][3] == obr[3]
    assert filler_order_number(STUDY, "other") != filler


def test_the_imaging_procedure_is_linked_by_its_code_or_named_by_its_description() -> None:
    coded = a_report(requested_procedure=Code(value="24627-2", scheme="LN", meaning="CT Chest"))
    assert only(build_message(coded, Profile(), "X"), "OBR")[0][44] == "24627-2^CT Chest^LN"
    assert only(build_message(a_report(), Profile(), "X"), "OBR")[0][44] == "^CHEST CT"


def test_results_are_entered_not_verified_unless_configured_otherwise() -> None:
    plain = build_message(a_report(), Profile(), "X")
    assert only(plain, "OBR")[0][25] == "R"
    assert {obx[11] for obx in only(plain, "OBX")} == {"R"}
    final = build_message(a_report(), Profile(result_status="F"), "X")
    assert only(final, "OBR")[0][25] == "F"
    assert {obx[11] for obx in only(final, "OBX")} == {"F"}


def test_volumes_are_numbers_in_ucum_millilitres_under_the_structures_code() -> None:
    numbers = [obx for obx in only(build_message(a_report(), Profile(), "X"), "OBX") if obx[2] == "NM"]
    assert [(obx[3], obx[4], obx[5], obx[6]) for obx in numbers] == [
        ("3341006^Right lung^SCT^right lung^Volume of right lung^99OVERREAD", "1", "2511", "mL^milliliter^UCUM"),
        ("44029006^Left lung^SCT^left lung^Volume of left lung^99OVERREAD", "2", "0", "mL^milliliter^UCUM"),
    ]
    assert numbers[0][14] == "20261120101112"
    assert numbers[0][19] == "20261121083000+0000"


def test_areas_are_numbers_with_the_plane_where_they_hold_and_without_a_pixel_spacing_there_is_none() -> None:
    plain = LUNGS["segments"][0] | {"volume_ml": None, "pixels": 900}
    sized = [plain | {"area_mm2": 14400.4, "plane": "detector"}, plain | {"area_mm2": None, "plane": None}]
    findings = {**LUNGS, "coverage": None, "segments": [*sized, sized[1] | {"pixels": 0}]}
    message = build_message(a_report(results=(a_result(findings=findings),)), Profile(), "X")
    told = [one for one in only(message, "OBX") if one[3].startswith("3341006^")]
    assert [(one[2], one[5]) for one in told] == [
        ("NM", "14400"),
        ("TX", "marked; its size in mm is not known"),
        ("TX", "not marked"),
    ]
    assert told[0][6] == "mm2^square millimeter^UCUM"
    assert any("magnification is not corrected" in one[3] for one in only(message, "NTE"))


def test_findings_are_present_or_absent_with_a_probability_and_the_threshold() -> None:
    message = build_message(a_report(results=(a_result(findings=NODULE),)), Profile(), "X")
    coded = [obx for obx in only(message, "OBX") if obx[2] == "CWE"]
    assert [(obx[3], obx[4], obx[5], obx[8]) for obx in coded] == [
        ("27925004^Nodule^SCT^nodule^nodule^99OVERREAD", "1", "52101004^Present^SCT", "A"),
        ("36118008^Pneumothorax^SCT^pneumothorax^pneumothorax^99OVERREAD", "2", "272519000^Absent^SCT", ""),
    ]
    numbers = [obx for obx in only(message, "OBX") if obx[2] == "NM"]
    assert [(obx[3].split("^")[1], obx[4], obx[5], obx[7]) for obx in numbers] == [
        ("Probability", "1", "0.9123", "<0.5"),
        ("Probability", "2", "0", "<0.5"),
    ]


def test_measured_values_are_numbers_in_their_unit_without_an_exponent() -> None:
    measured = {
        "measurements": [
            {
                "name": name,
                "code": {"value": "1", "scheme": "99X", "meaning": name},
                "unit": {"value": "mm", "scheme": "UCUM", "meaning": "millimeter"},
                "value": value,
                "image": "1.2.3",
            }
            for name, value in (("heart", 141.25), ("tiny", 1.5e-7), ("huge", 12345678901.0))
        ]
    }
    message = build_message(a_report(results=(a_result(findings=measured),)), Profile(), "X")
    numbers = [obx for obx in only(message, "OBX") if obx[2] == "NM"]
    assert [(obx[3], obx[4], obx[5], obx[6]) for obx in numbers] == [
        ("1^heart^99X^heart^heart^99OVERREAD", "1", "141.25", "mm^millimeter^UCUM"),
        ("1^tiny^99X^tiny^tiny^99OVERREAD", "2", "0.00000015", "mm^millimeter^UCUM"),
        ("1^huge^99X^huge^huge^99OVERREAD", "3", "12345680000", "mm^millimeter^UCUM"),
    ]


def test_boxes_are_told_one_by_one_and_none_at_all_in_words() -> None:
    box = NODULE["classifications"][0] | {"box": [1, 2, 3, 4]}
    message = build_message(a_report(results=(a_result(findings={"detections": [box, box]}),)), Profile(), "X")
    told = [(obx[2], obx[4], obx[5]) for obx in only(message, "OBX") if obx[4].startswith("box")]
    assert told == [
        ("CWE", "box 1", "52101004^Present^SCT"),
        ("NM", "box 1", "0.9123"),
        ("CWE", "box 2", "52101004^Present^SCT"),
        ("NM", "box 2", "0.9123"),
    ]
    nothing = build_message(a_report(results=(a_result(findings={"detections": []}),)), Profile(), "X")
    assert [obx[5] for obx in only(nothing, "OBX") if obx[3].startswith("nothing-found")] == [
        "Analysed; nothing that the model looks for was found"
    ]


def test_not_analysed_is_coded_with_its_reason_and_never_looks_negative() -> None:
    findings = {"not_analysed": {"reason": "no-lungs", "text": "no lungs in the volume"}, "classifications": []}
    result = a_result(state="not-analysed", reason="no lungs in the volume", findings=findings)
    message = build_message(a_report(results=(result,)), Profile(), "X")
    [said] = [obx for obx in only(message, "OBX") if obx[11] == "X"]
    assert said[5] == "111225^Not Attempted^DCM^no-lungs^no lungs in the volume^99OVERREAD"
    assert "Absent" not in message.decode()
    assert "Not analysed: no lungs in the volume" in message.decode()


def test_what_is_parked_is_said_with_its_reason_beside_what_succeeded() -> None:
    parked = a_result(model_name="m2", state="parked", reason="the engine died 3 times", findings=None, documents=())
    message = build_message(a_report(results=(a_result(), parked)), Profile(), "X")
    assert [obr[25] for obr in only(message, "OBR")] == ["R", "X"]
    [said] = [obx for obx in only(message, "OBX") if obx[11] == "X"]
    assert said[5] == "111224^Failed^DCM^parked^the engine died 3 times^99OVERREAD"


def test_study_documents_route_and_model_version_are_stated() -> None:
    message = build_message(a_report(), Profile(), "X")
    values = {(obx[3].split("^")[0], obx[4]): obx[5] for obx in only(message, "OBX")}
    assert values["110180", ""] == STUDY
    assert values["sr-uid", "1"] == "1.2.3.4"
    assert values["seg-uid", "2"] == "1.2.3.5"
    assert values["route", ""] == "chest-ct"
    assert values["route-reason", ""] == "Modality is CT and StudyDescription matches *CHEST*"
    assert values["111003", ""] == "1.0.0"
    assert values["coverage", ""].startswith("60 images, 4 mm apart, 240 mm in all")
    assert "parked at pacs: refused" in message.decode()


def test_no_two_observations_of_an_order_share_identifier_and_sub_identifier() -> None:
    both = {**LUNGS, "classifications": NODULE["classifications"]}
    message = build_message(a_report(results=(a_result(findings=both),)), Profile(), "X")
    keys = [(obx[3], obx[4]) for obx in only(message, "OBX")]
    assert len(keys) == len(set(keys))


def test_every_message_says_research_use_and_a_demonstration_says_so() -> None:
    plain = build_message(a_report(), Profile(), "X").decode()
    assert "research use only; not a medical device" in plain
    assert "synthetic images" not in plain
    demo = build_message(a_report(results=(a_result(demonstration=True),)), Profile(), "X").decode()
    assert "Demonstration: trained on synthetic images" in demo


@pytest.mark.parametrize(
    "text",
    [
        "a|b^c&d~e\\f",
        "\\F\\",
        "\\E\\",
        "\\H\\x\\N\\",
        "C:\\T\\R",
        "||",
        "\\",
        "\\\\",
        "Ünï 한국어 ~ Ελληνικά",
        "a\\X0D\\b",
        "山田　太郎",
        "می‌خواهم",
    ],
)
def test_delimiters_in_text_come_back_as_they_were(text: str) -> None:
    message = build_message(a_report(patient_id=text, patient_name="A", study_description=text), Profile(), "X")
    [pid], [obr] = only(message, "PID"), only(message, "OBR")
    assert unescape(pid[3].removesuffix("^^^HOSPITAL")) == text
    assert unescape(obr[44].removeprefix("^")) == text


def test_any_soup_of_delimiters_comes_back_as_it_was() -> None:
    rng = random.Random(7)
    for _ in range(15):
        text = "a" + "".join(rng.choice("\\|^&~FSTREHNX0Dé ") for _ in range(rng.randint(1, 24))) + "z"
        message = build_message(a_report(patient_id=text, results=(a_result(findings=None),)), Profile(), "X")
        assert unescape(only(message, "PID")[0][3].removesuffix("^^^HOSPITAL")) == text


def test_a_lone_surrogate_from_a_broken_source_breaks_nothing() -> None:
    message = build_message(a_report(patient_name="A\udc80B"), Profile(), "X")
    assert only(message, "PID")[0][5].startswith("A B^")


def test_a_line_break_in_a_value_cannot_forge_a_segment() -> None:
    message = build_message(a_report(study_description="x\rOBX|1|TX|forged\n\x1c\x0b"), Profile(), "X")
    assert not [fields for fields in segments_of(message) if "forged" in fields]
    assert b"\x0b" not in message
    assert b"\x1c" not in message


def test_text_is_cut_before_an_escape_and_not_inside_it() -> None:
    assert escape("aaa|", 4) == "aaa"
    assert escape("aaa|", 6) == "aaa\\F\\"
    build_message(a_report(patient_id="|" * 500, study_description="&" * 500), Profile(), "X")


def test_identity_that_is_missing_or_no_date_is_left_open_and_not_invented() -> None:
    bare = a_report(
        patient_id="", issuer="", patient_name="", birth_date="1970", sex="male", study_date="", accession_number=""
    )
    [pid] = only(build_message(bare, Profile(), "X"), "PID")
    assert (pid[3], pid[5], pid[7], pid[8]) == ('""', '""', "", "U")


def test_the_studys_offset_is_given_only_when_the_study_has_one() -> None:
    known = build_message(a_report(timezone_offset="+0900"), Profile(), "X")
    assert only(known, "OBR")[0][7] == "20261120101112+0900"
    assert only(build_message(a_report(), Profile(), "X"), "OBR")[0][7] == "20261120101112"
    assert only(build_message(a_report(study_time="1011"), Profile(), "X"), "OBR")[0][7] == "202611201011"
    assert only(build_message(a_report(study_time=""), Profile(), "X"), "OBR")[0][7] == "20261120"


@pytest.mark.parametrize(
    "offset", ["+1500", "+0560", "+9999", "-1201", "+1401", "-0000", "0900", "+09:00", "+0900Z", "x"]
)
def test_what_is_no_offset_is_left_out_and_the_message_goes(offset: str) -> None:
    message = build_message(a_report(timezone_offset=offset), Profile(), "X")
    assert only(message, "OBR")[0][7] == "20261120101112"


@pytest.mark.parametrize("offset", ["+1400", "-1200", "-1159", "+0000", "+0545", "-0330", "+0900 "])
def test_every_offset_that_exists_is_given(offset: str) -> None:
    message = build_message(a_report(timezone_offset=offset), Profile(), "X")
    assert only(message, "OBR")[0][7] == f"20261120101112{offset.strip()}"


@pytest.mark.parametrize("date", ["2026112", "20260230", "00000101", "0001010", "２０２６０１０１"])
def test_what_is_no_date_is_left_out(date: str) -> None:
    [pid] = only(build_message(a_report(birth_date=date, study_date=date), Profile(), "X"), "PID")
    assert pid[7] == ""


def test_whatever_cannot_be_said_is_an_invalid_message_that_quotes_nothing() -> None:
    findings = {**LUNGS, "segments": [{**LUNGS["segments"][0], "volume_ml": "Hidden^Name"}]}
    with pytest.raises(InvalidMessage, match="ValueError") as refused:
        build_message(a_report(results=(a_result(findings=findings),)), Profile(), "X")
    assert "Hidden" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("control_id", ["", "x" * 21, "ÄÖ"])
def test_a_control_id_that_the_standard_refuses_is_refused(control_id: str) -> None:
    with pytest.raises(InvalidMessage, match="MSH-10"):
        build_message(a_report(), Profile(), control_id)


def test_an_empty_report_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="nothing to say"):
        build_message(a_report(results=()), Profile(), "X")
