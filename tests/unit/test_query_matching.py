"""Attribute matching as PS3.4 C.2.2.2 says it."""

from __future__ import annotations

import time

import pytest

from storage.errors import InvalidQuery
from storage.matching import match_values
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


@pytest.mark.parametrize(("vr", "wanted"), [("DA", "yesterday"), ("DA", "2026*"), ("TM", "10-noon"), ("US", "many")])
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
