"""The web side as a process: its port, its end, and its log."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog

from demo.peers import tcp_open, wait_until
from node.errors import AlreadyRunning
from node.listening import listen
from node.ops.logging import configure_logging
from node.web.application import run_web
from tests.dicom_factory import radiograph
from tests.web import WebNode


def test_a_port_that_is_taken_is_refused_by_name(web: WebNode) -> None:
    port = int(web.url.rpartition(":")[2])
    with pytest.raises(AlreadyRunning, match=str(port)):
        listen("http", "127.0.0.1", port)


def test_told_to_stop_it_ends_what_is_running_and_lets_the_port_go(web: WebNode) -> None:
    listening = listen("http", "127.0.0.1", 0)
    port = listening.getsockname()[1]
    stop = threading.Event()
    thread = threading.Thread(target=run_web, args=(listening, web.services, stop))
    thread.start()
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200, 20, "the web side")
    sending, go = threading.Event(), threading.Event()
    answers: list[int] = []

    def body():  # type: ignore[no-untyped-def]
        yield b"--B\r\n\r\n"
        sending.set()
        go.wait(20)
        yield b"no DICOM\r\n--B--"

    def send() -> None:
        headers = {"Content-Type": "multipart/related; boundary=B"}
        answer = httpx.post(f"http://127.0.0.1:{port}/dicom-web/studies", content=body(), headers=headers)
        answers.append(answer.status_code)

    sender = threading.Thread(target=send)
    sender.start()
    assert sending.wait(20)
    stop.set()
    wait_until(lambda: not tcp_open(port), 20, "the port to be let go")
    go.set()
    sender.join(20)
    thread.join(20)
    assert answers == [409]
    assert not thread.is_alive()


def test_the_log_tells_routes_and_never_what_was_searched_for(web: WebNode, tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(stream=stream)
    try:
        web.take_in(radiograph(tmp_path, np.ones((8, 8)), PatientID="SECRET-7"))
        web.http.get("/dicom-web/studies", params={"PatientID": "SECRET-7"})
        web.http.get("/dicom-web/studies", params={"PatientID": "SECRET-7", "limit": "x"})
        web.http.get("/dicom-web/studies/SECRET-7/metadata")
        web.http.get("/SECRET-7")
        web.http.post("/dicom-web/studies", content=b"SECRET-7", headers={"Content-Type": "application/dicom"})
        wait_until(lambda: stream.getvalue().count("request") >= 5, 10, "the log")
    finally:
        structlog.reset_defaults()
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "SECRET" not in stream.getvalue()
    requests = [line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "request"]
    assert [(line["route"], line["status"]) for line in requests] == [
        ("/dicom-web/studies", 200),
        ("/dicom-web/studies", 400),
        ("/dicom-web/studies/{study}/metadata", 404),
        ("(none)", 404),
        ("/dicom-web/studies", 409),
    ]


def test_the_process_says_how_long_it_has_lived(web: WebNode) -> None:
    answer = web.http.get("/health/live").json()
    # Told in tenths.
    assert 0 <= answer["seconds"] <= (datetime.now(UTC) - web.services.started_at).total_seconds() + 0.05


def test_the_description_loads_nothing_from_another_host(web: WebNode) -> None:
    page = web.http.get("/docs")
    assert re.findall(r"(?:https?:)?//[a-z]", page.text) == []
    loaded = re.findall(r"""(?:src|href)="([^"]+)\"""", page.text)
    assert sorted(Path(one).suffix for one in loaded) == [".css", ".js", ".png"]
    for one in [*loaded, "openapi.json"]:
        assert web.http.get(f"/{one}").status_code == 200, one
    assert "url(http" not in web.http.get("/docs/assets/swagger-ui.css").text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert '"validatorUrl": null' in page.text
    assert web.http.get("/docs/assets/../../pyproject.toml").status_code == 404


def test_where_a_token_is_set_the_description_has_a_place_for_it(
    web: WebNode, start_web: Callable[..., WebNode]
) -> None:
    guarded = start_web(http={"token": "a-long-token"}).http.get("/openapi.json").json()
    assert guarded["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert guarded["security"] == [{"bearer": []}]
    assert guarded["paths"]["/health/live"]["get"]["security"] == []
    assert "security" not in guarded["paths"]["/metrics"]["get"]
    assert "security" not in web.http.get("/openapi.json").json()
