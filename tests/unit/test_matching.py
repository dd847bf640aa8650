"""The rule language of routes and cards."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from inference.matching import check_condition, evaluate

CHEST = {
    "Modality": "CT",
    "StudyDescription": "CT Chest with contrast",
    "SliceThickness": 1.25,
    "StudyDate": "20240229",
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"Modality": "CT"}, True),
        ({"Modality": "ct "}, True),
        ({"Modality": ["MR", "CT"]}, True),
        ({"Modality": "MR"}, False),
        ({"StudyDescription": "*CHEST*"}, True),
        ({"StudyDescription": "?T chest*"}, True),
        ({"StudyDescription": "CHEST"}, False),
        ({"SliceThickness": {"min": 0.5, "max": 2}}, True),
        ({"SliceThickness": {"max": 1}}, False),
        ({"SliceThickness": 1.25}, True),
        ({"StudyDate": {"min": "20240101", "max": "20241231"}}, True),
        ({"StudyDate": {"min": "20240301"}}, False),
        ({"BodyPartExamined": "CHEST"}, False),
        ({"not": {"BodyPartExamined": "CHEST"}}, True),
        ({"Modality": "CT", "any": [{"BodyPartExamined": "CHEST"}, {"StudyDescription": "*chest*"}]}, True),
        ({"all": [{"Modality": "CT"}, {"SliceThickness": {"min": 2}}]}, False),
        ({"Modality": "CT", "not": {"StudyDescription": "*HEAD*"}}, True),
    ],
)
def test_a_condition_holds_or_not(condition: dict[str, Any], expected: bool) -> None:
    check_condition(condition, "match")
    assert evaluate(condition, CHEST).matched is expected


def test_one_value_of_several_is_enough() -> None:
    assert evaluate({"ImageType": "LOCALIZER"}, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).matched


def test_a_verdict_says_what_was_wanted_and_what_was_there() -> None:
    verdict = evaluate({"Modality": "MR", "BodyPartExamined": "CHEST"}, CHEST)
    assert verdict.reasons == ("Modality is not MR (CT)", "BodyPartExamined is not CHEST (absent)")


def test_brackets_in_a_wildcard_are_plain_characters() -> None:
    assert evaluate({"SeriesDescription": "[a]*"}, {"SeriesDescription": "[A] thin"}).matched
    assert not evaluate({"SeriesDescription": "[a]*"}, {"SeriesDescription": "a thin"}).matched


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        ({"Modalty": "CT"}, "match.Modalty: not a DICOM keyword"),
        ({"any": []}, "match.any: expected a list of conditions"),
        ({"any": [{"Nope": 1}]}, r"match.any\[0\].Nope"),
        ({"SliceThickness": {"least": 1}}, "match.SliceThickness: a range has min, max"),
        ({"Modality": None}, "match.Modality: expected a value"),
        ("CT", "match: expected a mapping"),
        ({"StudyDate": {"min": date(2004, 1, 1)}}, r"match.StudyDate.min: expected a date in quotes"),
        ({"StudyDate": {"max": "2024-12-31"}}, r"match.StudyDate.max: expected a date in quotes"),
        ({"SliceThickness": {"max": [5]}}, r"match.SliceThickness.max: expected a number"),
        ({"SliceThickness": {"min": 5, "max": 1}}, r"match.SliceThickness: min is above max"),
        ({"Modality": True}, r"match.Modality: expected text or a number"),
        ({"StudyDate": date(2004, 1, 1)}, r"match.StudyDate: expected text or a number"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(condition: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_condition(condition, "match")
