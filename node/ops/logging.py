"""Logs: one JSON object a line on standard output, for our own events and for the libraries' alike, without PHI.

Bind what a piece of work is about once, and every line within says so::

    with structlog.contextvars.bound_contextvars(study=study_instance_uid, workitem=uid):
        ...
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

__all__ = ["configure_logging", "without_phi"]

#: Names, in any spelling, under which something about a patient might be logged.
_PHI = frozenset(
    {
        "patientname",
        "patientid",
        "patientbirthdate",
        "patientsex",
        "patientage",
        "patientaddress",
        "patient",
        "name",
        "birthdate",
        "dateofbirth",
        "otherpatientids",
        "otherpatientnames",
        "referringphysicianname",
        "physicianname",
        "operatorsname",
        "accessionnumber",
        "mrn",
        "dataset",
        "identifier",
        "query",
        "querystring",
    }
)
#: Libraries that would write what they read, datasets included, at lower levels.
_QUIET = (
    "apscheduler",
    "pynetdicom",
    "pydicom",
    "alembic",
    "sqlalchemy",
    "httpx",
    "httpcore",
    "hl7apy",
    "highdicom",
    "asyncio",
    "PIL",
)


def without_phi(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop what has a name under which something about a patient might stand (structlog processor)."""
    for key in list(event):
        if key.replace("_", "").replace("-", "").lower() in _PHI:
            del event[key]
    return event


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send everything that is logged, by whomever, to one stream as JSON lines. May be called again.

    Parameters
    ----------
    level
        Of our own loggers; the libraries stay at WARNING.
    stream
        Standard output unless said otherwise.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_phi,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _exceptions_without_values,
                structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    # Its warnings quote what they warn of; and each that differs from the others would be remembered for good.
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    for name in _QUIET:
        library = logging.getLogger(name)
        library.setLevel(logging.WARNING)
        # Some bring a handler of their own: everything goes one way.
        library.handlers.clear()
        library.propagate = True
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    # A line for each turn that a job misses, as long as the database is locked: node/workflow/sweeps.py says it once.
    logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True


def _exceptions_without_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Tell of an exception by its type and the places it came through: its message may hold a dataset's values."""
    info = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        event["exception"] = info[0].__name__
        places = []
        traceback = info[2]
        while traceback is not None:
            code = traceback.tb_frame.f_code
            places.append(f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} {code.co_name}")
            traceback = traceback.tb_next
        event["at"] = places[-8:]
    return event
