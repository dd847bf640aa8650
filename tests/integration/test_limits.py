"""What is asked of the web side has limits, and readiness means that something can be written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from tests.databases import PostgreSQL
from tests.dicom_factory import radiograph
from tests.web import WebNode, running_web


@pytest.fixture
def either(empty_url: str, tmp_path: Path) -> Iterator[WebNode]:
    with running_web(tmp_path / "web", url=empty_url) as node:
        yield node


@pytest.mark.parametrize(
    "query",
    ["&".join(f"PatientID={n}" for n in range(4000)), "ModalitiesInStudy=" + ",".join(["C*"] * 5000)],
    ids=["keys", "values"],
)
def test_a_search_with_thousands_of_conditions_is_refused_as_such(either: WebNode, query: str) -> None:
    answer = either.http.get(f"/dicom-web/studies?{query}")
    assert answer.status_code == 400
    assert "at most" in answer.json()["detail"]


def test_a_search_may_have_as_many_conditions_as_anyone_needs(either: WebNode) -> None:
    keys = "&".join(f"PatientID={n}*" for n in range(64))
    assert either.http.get(f"/dicom-web/studies?{keys}").status_code == 204
    uids = ",".join(f"1.2.{n}" for n in range(500))
    assert either.http.get(f"/dicom-web/studies?StudyInstanceUID={uids}").status_code == 204
    words = ",".join(f"C{n}*" for n in range(500))
    assert either.http.get(f"/dicom-web/studies?ModalitiesInStudy={words}").status_code == 204


def test_a_node_whose_database_cannot_be_written_is_not_ready(web: WebNode) -> None:
    assert web.http.get("/health/ready").status_code == 200
    with closing(sqlite3.connect(web.folder / "overread.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        answer = web.http.get("/health/ready", timeout=20)
        assert answer.status_code == 503
        assert "cannot be written to (database is locked)" in answer.json()["complaints"]["database"]
        holder.execute("ROLLBACK")
    assert web.http.get("/health/ready").status_code == 200


def test_a_node_whose_postgresql_is_read_only_is_not_ready(postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = postgresql.new_database()
    with running_web(tmp_path / "web", url=url) as node:
        assert node.http.get("/health/ready").status_code == 200
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{engine.url.database}" SET default_transaction_read_only = on'))
        node.services.database.engine.dispose()
        answer = node.http.get("/health/ready", timeout=20)
        engine.dispose()
        assert answer.status_code == 503
        assert "read-only" in answer.json()["complaints"]["database"]


def _body(parts: Iterator[bytes]) -> bytes:
    return b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in parts) + b"--x--\r\n"


KIND = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}


def test_of_thousands_of_bad_parts_some_are_kept_and_the_answer_says_so(
    start_web: Callable[..., WebNode], tmp_path: Path
) -> None:
    web = start_web()
    good = radiograph(tmp_path, np.zeros((4, 4))).read_bytes()
    body = _body(iter([b"z"] * 600 + [good]))
    answer = web.http.post("/dicom-web/studies", content=body, headers=KIND, timeout=60)
    assert answer.status_code == 202
    told = answer.json()
    assert len(told["0008119A"]["Value"]) == 600
    assert {one["00081197"]["Value"][0] for one in told["0008119A"]["Value"]} == {0xC000}
    assert len(told["00081199"]["Value"]) == 1, "what is good is stored all the same"
    kept = [one for one in (web.folder / "refused").rglob("*") if one.is_file()]
    assert 100 <= len(kept) < 120
    assert "not kept" in answer.headers["warning"]
    assert list(web.services.incoming.iterdir()) == []


def test_parts_of_another_kind_are_counted_too(web: WebNode) -> None:
    body = _body(iter([b"z"] * 300)).replace(b"application/dicom", b"text/plain")
    answer = web.http.post("/dicom-web/studies", content=body, headers=KIND, timeout=60)
    assert answer.status_code == 409
    assert len([one for one in (web.folder / "refused").rglob("*") if one.is_file()]) < 120


def test_more_parts_than_a_request_may_have_are_refused(web: WebNode) -> None:
    answer = web.http.post("/dicom-web/studies", content=_body(iter([b"z"] * 10_001)), headers=KIND, timeout=120)
    assert answer.status_code == 413
    assert "10000 parts" in answer.json()["detail"]
    assert list(web.services.incoming.iterdir()) == []
