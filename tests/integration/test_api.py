"""The API does what the command line does, with the statuses that HTTP has for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from node.listening import listen
from node.settings import Settings
from node.web.application import Services, run_web
from node.workflow.models import installed, register, store_of
from storage import outbox
from storage.space import Disk, Room
from tests.peers import wait_until
from tests.work import Holding

ROUTES = [{"name": "chest-ct", "match": {"Modality": "CT"}, "models": ["lung-ct"], "deliver": ["pacs"]}]


@pytest.fixture
def http(embedded: Holding) -> Iterator[httpx.Client]:
    """Give a client of a running web side over ``embedded``."""
    settings = Settings(
        data_dir=embedded.root,
        models=Path("conf/models").absolute(),
        destinations={"pacs": {"kind": "folder", "path": "out"}},  # type: ignore[dict-item]
        routes=ROUTES,  # type: ignore[arg-type]
    )
    with embedded.database.write() as connection:
        register(connection, installed(settings), store_of(settings))
    services = Services(
        settings=settings,
        database=embedded.database,
        archive=embedded.archive,
        blobs=embedded.blobs,
        incoming=embedded.incoming,
        room=Room([Disk("data_dir", embedded.root)]),
        started_at=datetime.now(UTC),
    )
    listening = listen("http", settings.http.bind, 0)
    port = listening.getsockname()[1]
    stop = threading.Event()
    thread = threading.Thread(target=run_web, args=(listening, services, stop))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(lambda: client.get("/health/live").status_code == 200, 20, "the web side")
            yield client
    finally:
        stop.set()
        thread.join()


def test_a_story_and_a_status_come_as_json(embedded: Holding, tmp_path: Path, http: httpx.Client) -> None:
    study, _, workitem, _ = embedded.finished(tmp_path)
    story = http.get(f"/api/v1/studies/{study.study_instance_uid}/story")
    assert story.status_code == 200
    assert story.json()["workitems"][0]["uid"] == workitem.uid
    status = http.get("/api/v1/status").json()
    assert [one["target"] for one in status["waiting"]] == ["delivery:1"]


def test_actions_act_once_and_name_who_asked(embedded: Holding, tmp_path: Path, http: httpx.Client) -> None:
    study, *_ = embedded.finished(tmp_path)
    uid = study.study_instance_uid
    with embedded.database.write() as connection:
        outbox.park(connection, "delivery", 1, study_id=study.id, answer="0xA700")

    def post(path: str, body: Any = None) -> dict[str, Any]:
        answer = http.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    assert post(f"studies/{uid}/retry", {"by": "ann"})["changed"] == ["delivery:1: PARKED -> PENDING"]
    assert post(f"studies/{uid}/retry")["changed"] == []
    assert post(f"studies/{uid}/rerun")["changed"]
    assert post(f"studies/{uid}/cancel")["changed"]
    assert post(f"studies/{uid}/exclude", {"by": "ann"})["changed"]
    assert post(f"studies/{uid}/exclude", {"undo": True})["changed"]
    assert post("pause", {"kind": "destination", "name": "pacs"})["changed"]
    assert [one["paused"] for one in http.get("/api/v1/routes").json()] == [False]
    assert post("resume", {"kind": "destination", "name": "pacs"})["changed"]
    feed = http.get("/api/v1/changes", params={"limit": 5000}).json()
    assert "retry asked for by ann" in {one["reason"] for one in feed["changes"]}
    assert http.get("/api/v1/changes", params={"since": feed["next"]}).json() == {"changes": [], "next": feed["next"]}


def test_models_come_with_version_and_digest(http: httpx.Client) -> None:
    models = {one["name"]: one for one in http.get("/api/v1/models").json()}
    assert models["lung-ct"]["active"] is True
    assert len(models["lung-ct"]["digest"]) == 64
    assert (models["lung-ct"]["stage"], models["lung-ct"]["problem"]) == ("live", "")


def test_a_model_is_retired_and_turned_back_by_http_in_the_name_of_whoever_asks(http: httpx.Client) -> None:
    assert http.post("/api/v1/models/lung-ct/rollback", json={"by": "ann"}).status_code == 404  # nothing to go back to
    refused = http.post("/api/v1/models/lung-ct/versions/1.0.0/stage", json={"stage": "canary", "share": 0.5})
    assert (refused.status_code, "has not been tested" in refused.json()["detail"]) == (409, True)
    retired = http.post("/api/v1/models/lung-ct/versions/1.0.0/retire", json={"by": "ann", "why": "a better one comes"})
    assert retired.json()["changed"] == ["lung-ct@1.0.0: live -> retired"]
    newest = http.get("/api/v1/models/history", params={"model": "lung-ct", "limit": 1}).json()[0]
    assert (newest["before"], newest["after"], newest["by"], newest["why"]) == (
        "live",
        "retired",
        "ann",
        "a better one comes",
    )
    assert http.get("/api/v1/models/history", params={"model": "nothing"}).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "studies/1.2.3.4/story", None, 404),
        ("POST", "studies/1.2.3.4/retry", None, 404),
        ("POST", "pause", {"kind": "destination", "name": "nowhere"}, 400),
        ("POST", "pause", {"kind": "planet", "name": "mars"}, 422),
        ("GET", "studies/not~a~uid/story", None, 422),
        ("GET", "changes?since=-1", None, 422),
    ],
)
def test_what_is_wrong_is_a_problem_with_its_status(
    http: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    answer = http.request(method, f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_openapi_teaches_every_operation(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    paths = {path: operations for path, operations in document["paths"].items() if path.startswith("/api/v1")}
    assert len(paths) == 20
    assert all(one.get("summary") for operations in paths.values() for one in operations.values())
    assert "Story" in document["components"]["schemas"]
