"""Whatever is asked for, the web side answers with a precise status as problem details, on either database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.dicom_factory import radiograph
from tests.web import WebNode, running_web

STUDY = "/dicom-web/studies/1.2.3"
STORY = "/api/v1/studies/1.2.3/story"


@pytest.fixture
def either(empty_url: str, tmp_path: Path) -> Iterator[WebNode]:
    with running_web(tmp_path / "web", url=empty_url) as node:
        yield node


@pytest.mark.parametrize("request_line", [
    "GET /dicom-web", "GET /dicom-web/", "GET /dicom-web/nothing", f"GET {STUDY}/nothing", "DELETE /dicom-web/studies",
    f"PUT {STUDY}", "GET /api/v1/nothing", "GET /nothing", f"GET {STUDY}", f"GET {STUDY}/metadata", f"GET {STORY}",
    "GET /api/v1/changes?since=99999999999999999999999", "GET /api/v1/changes?limit=0",
    "GET /dicom-web/studies?limit=99999999999999999999999",
    "GET /dicom-web/studies/a%00b", "GET /dicom-web/studies/a%00b/metadata", "GET /dicom-web/studies/%00/series",
    "GET /dicom-web/studies/1/series/%00/instances", "GET /dicom-web/studies/1/series/2/instances/3%00",
    "GET /dicom-web/studies/1/series/2/instances/3/frames/%00", "GET /dicom-web/studies?PatientID=a%00b",
    "GET /dicom-web/studies?PatientName=a%00*", "GET /dicom-web/studies?StudyDate=%00", "GET /dicom-web/studies?%00=1",
    "GET /dicom-web/instances?includefield=%00", "GET /api/v1/studies/1%002/story", "POST /api/v1/studies/1%002/retry",
])  # fmt: skip
def test_what_cannot_be_served_is_a_problem_and_no_failure(either: WebNode, request_line: str) -> None:
    method, _, path = request_line.partition(" ")
    answer = either.http.request(method, path)
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == answer.status_code
    assert told["detail"]


@pytest.mark.parametrize("name", ["a\0b", "\0", "line\nbreak", "lone \ud800", ""])
def test_a_name_that_is_none_is_no_failure_in_a_body_either(either: WebNode, name: str) -> None:
    for body in ({"kind": "route", "name": name}, {"kind": "route", "name": "r", "by": name}):
        headers = {"Content-Type": "application/json"}
        answer = either.http.post("/api/v1/pause", content=json.dumps(body), headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_study_named_with_a_nul_is_not_stored(either: WebNode, tmp_path: Path) -> None:
    content = radiograph(tmp_path, np.zeros((4, 4))).read_bytes()
    answer = either.http.post("/dicom-web/studies/1%00", content=content, headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert either.http.get("/dicom-web/studies").status_code == 204
