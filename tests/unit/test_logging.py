"""What the log says, and what it never says."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from demo.peers import wait_until
from node.ops.logging import configure_logging
from node.workflow.sweeps import tell_of_waits


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    configure_logging(stream=written)
    yield written
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_event_is_one_json_object_a_line_whoever_logs_it(stream: io.StringIO) -> None:
    structlog.get_logger("node.x").info("study complete", study="1.2.3", text="two\nlines, Ж")
    logging.getLogger("uvicorn.error").info("started on %s", "a port")
    ours, theirs = lines(stream)
    assert ours["event"] == "study complete"
    assert ours["text"] == "two\nlines, Ж"
    assert (ours["level"], ours["logger"]) == ("info", "node.x")
    assert ours["timestamp"].endswith("Z")
    assert theirs["event"] == "started on a port"


def test_what_is_bound_is_said_in_every_line_within(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(study="1.2.3", workitem="1.2.4"):
        structlog.get_logger().info("within")
        logging.getLogger("uvicorn.error").warning("within too")
    structlog.get_logger().info("outside")
    assert [line.get("workitem") for line in lines(stream)] == ["1.2.4", "1.2.4", None]


def test_sweeps_that_wait_are_told_once_and_in_words(stream: io.StringIO) -> None:
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone="UTC")
    tell_of_waits(scheduler)
    release, missed = threading.Event(), threading.Semaphore(0)
    scheduler.add_listener(lambda _: missed.release(), EVENT_JOB_MAX_INSTANCES)
    scheduler.add_job(release.wait, "interval", seconds=0.02, max_instances=1, coalesce=True)
    scheduler.start()
    try:
        assert all(missed.acquire(timeout=30) for _ in range(4))
        release.set()
        wait_until(lambda: "sweeps go on" in stream.getvalue(), 30, "the sweep is done")
    finally:
        release.set()
        scheduler.shutdown()
    said = [line["event"] for line in lines(stream)]
    assert said[0].startswith("sweeps wait, most likely for the database")
    assert said[1] == "sweeps go on"
    assert not [one for one in said if "maximum number of running instances" in one]


def test_nothing_under_a_patients_name_is_written(stream: io.StringIO) -> None:
    structlog.get_logger().info("x", PatientName="Doe", patient_id="7", PatientBirthDate="1970", study="1.2.3")
    [line] = lines(stream)
    assert line["study"] == "1.2.3"
    assert not {"PatientName", "patient_id", "PatientBirthDate"} & set(line)


def test_an_exception_is_told_by_type_and_place_and_not_by_its_message(stream: io.StringIO) -> None:
    try:
        raise ValueError("invalid value for PatientName: Doe^Jane")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("uvicorn.error").exception("failed too")
    assert "Doe" not in stream.getvalue()
    for line in lines(stream):
        assert line["exception"] == "ValueError"
        assert "test_logging.py" in line["at"][-1]


def test_libraries_that_write_what_they_read_are_quiet(stream: io.StringIO) -> None:
    for name in ("pynetdicom.service-c", "pydicom", "uvicorn.access", "sqlalchemy.engine"):
        logging.getLogger(name).info("(0010,0010) PN: 'Doe^Jane'")
    assert stream.getvalue() == ""
