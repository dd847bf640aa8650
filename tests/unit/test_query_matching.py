"""Attribute matching as PS3.4 C.2.2.2 says it."""

from __future__ import annotations

import time

import pytest

from storage.errors import InvalidQuery
from storage.matching import combined_matcher, match_values, matcher
from storage.query import parse_key, parse_tag

YAMADA = {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}


@pytest.mark.parametrize(
    ("vr", "values", "wanted", "expected"),
    [
        ("LO", ["CHEST ROUTINE"], "CHEST*", True),
        ("LO", ["CHEST ROUTINE"], "chest*", False),
        ("LO", ["CHEST"], "CH?ST", True),
        ("LO", ["CHEST"], "CH?T", False),
        ("LO", ["100%_[x]"], "100%_[x]", True),
        ("LO", ["a"], "[a]", False),
        ("LO", ["A", "B"], "B", True),
        ("LO", [None], "?", False),
        ("LO", [], "A", False),
        ("LO", ["AB"], "A*B*", True),
        ("LO", ["ABBA"], "*BB?", True),
        ("CS", ["ORIGINAL", "PRIMARY"], "DERIVED\\PRIMARY", True),
        ("UI", ["1.2.3"], "1.2.4,1.2.3", True),
        ("UI", ["1.2.3"], "1.2.4\\1.2.5", False),
        ("UI", ["1.2.30"], "1.2.3", False),
        ("DA", ["20260102"], "20260102", True),
        ("DA", ["20260102"], "20260101-20260102", True),
        ("DA", ["20260102"], "-20260101", False),
        ("DA", ["20260102"], "20260103-", False),
        ("DA", ["2026.01.02"], "20260102", True),
        ("DA", [""], "-20260102", False),
        ("TM", ["101112.5"], "10-11", True),
        ("TM", ["101112"], "1011-1011", True),
        ("TM", ["1012"], "10-1011", False),
        ("TM", ["101112"], "101112.000", True),
        ("DT", ["20260102101112+0100"], "20260102-", True),
        ("DT", ["20260102101112+0100"], "20260102091112+0000", True),
        ("DT", ["20260102101112+0100"], "20260102091000+0000-20260102091200+0000", True),
        ("DT", ["20260102101112+0100"], "20260102100000-0500-", False),
        ("DT", ["20260102101112"], "20260102101112+0500", True),
        ("DT", ["20260102101112.5"], "-20260102", True),
        ("DT", ["2027"], "-20260102", False),
        ("DT", ["20260102"], "2026-2027", True),
        ("DT", [None], "2026-", False),
        ("DA", ["20260102"], "20250101\\20260101-20260103", True),
        ("DA", ["20260102"], "*", True),
        ("DA", ["20260102"], "-", True),
        ("TM", ["235959.999999"], "-23", True),
        ("LO", ["A"], "B\\A", True),
        ("LO", ["CHEST"], "HEAD\\CH*", True),
        ("LT", ["a\\b"], "a\\b", True),
        ("LT", ["a"], "a\\b", False),
        ("LO", ["Й"], "И\u0306", True),
        ("LO", [" CHEST "], "CHEST", True),
        ("CS", ["CT"], "ct", False),
        ("CS", ["CT"], "*\\MR", True),
        ("AS", ["031Y"], "03*", False),
        ("IS", [7], "8\\7", True),
        ("SH", [], "*", True),
        ("PN", [{"Alphabetic": "^Jane"}], "^jane", True),
        ("PN", [{"Alphabetic": "^Jane"}], "jane", False),
        ("PN", ["Doe^Jane=山田"], "=山田", True),
        ("PN", [YAMADA], "Sato\\*Tarou", True),
        ("IS", [7], "7", True),
        ("DS", [0.7], "0.70", True),
        ("US", [512], "511", False),
        ("PN", [YAMADA], "YAMADA^TAROU", True),
        ("PN", [YAMADA], "yamada*", True),
        ("PN", [YAMADA], "山田*", True),
        ("PN", [YAMADA], "*=山田*", True),
        ("PN", [YAMADA], "Sato*=山田*", False),
        ("PN", [YAMADA], "=やまだ*", False),
        ("PN", [YAMADA], "Yamada", False),
        ("PN", [{"Alphabetic": "Люкceмбypг"}], "люкc*", True),
        ("PN", [{"Alphabetic": "Müller^Jörg"}], "MU\u0308LLER^*", True),
        ("PN", [{"Alphabetic": "ΔΙΟΝΥΣΙΟΣ"}], "διονυσιος", True),
        ("PN", [{"Alphabetic": "Groß"}], "GROSS", True),
        ("PN", [{"Alphabetic": "Doe^Jane^^^"}], "doe^jane", True),
        ("PN", [{"Alphabetic": ""}], "A*", False),
    ],
)
def test_a_value_matches_as_the_standard_says(vr: str, values: list[object], wanted: str, expected: bool) -> None:
    assert match_values(vr, values, wanted) is expected


@pytest.mark.parametrize(
    ("vr", "values", "expected"),
    [
        ("LO", [], True),
        ("LO", [None], True),
        ("LO", ["A"], False),
        ("PN", [{"Alphabetic": ""}], True),
        ("DA", [], True),
    ],
)
def test_two_quotation_marks_ask_for_what_has_no_value_where_that_was_agreed(
    vr: str, values: list[object], expected: bool
) -> None:
    assert matcher(vr, '""', empty_values=True)(values) is expected


@pytest.mark.parametrize(
    ("dates", "times", "expected"),
    [
        ("20260101-20260103", "1000-1800", True),
        ("20260102-20260103", "1000-1800", False),
        ("20260101-20260102", "1000-0945", True),
        ("20260102", "08-10", True),
        ("20260102", "0930", True),
        ("20260102-", "10-", False),
        ("-20260102", "-09", True),
        ("-20260102", "-08", False),
    ],
)
def test_a_date_and_its_time_are_one_range_where_that_was_agreed(dates: str, times: str, expected: bool) -> None:
    assert combined_matcher(dates, times)("20260102", "093000") is expected
    assert not combined_matcher(dates, times)("", "093000")


@pytest.mark.parametrize(
    ("vr", "wanted"),
    [
        ("DA", "yesterday"),
        ("DA", "2026*"),
        ("TM", "10-noon"),
        ("US", "many"),
        ("DT", "2026-01-02T10:11"),
        ("DA", "2026-2027-2028"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused(vr: str, wanted: str) -> None:
    with pytest.raises(InvalidQuery):
        match_values(vr, [], wanted)


def test_a_pattern_made_to_hurt_costs_no_time() -> None:
    begun = time.monotonic()
    assert not match_values("LO", ["a" * 5000], "*a" * 30 + "b")
    assert time.monotonic() - begun < 2


def test_a_key_is_a_keyword_a_tag_or_a_path_of_them() -> None:
    assert parse_tag("PatientID") == parse_tag("00100020") == "00100020"
    assert parse_key("RequestAttributesSequence.00400009", "x").path == ("00400275", "00400009")


@pytest.mark.parametrize(
    "name", ["", "PatientTaste", "0010", "00100020.00100010", "zzzzzzzz", "RequestAttributesSequence", "A" * 10_000]
)
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidQuery):
        parse_key(name, "x")
