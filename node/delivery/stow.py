"""Delivers by STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from inference.hangup import HangUp
from node.delivery.port import Delivered, Outcome, ProbeResult, Refused, Unreachable
from node.dimse.scu import identify
from node.dimse.status import Category, category, meaning
from node.settings import StowDestination

__all__ = ["StowAdapter"]

_CHUNK = 1 << 20
#: A store response for one instance has some hundred bytes.
_LONGEST_ANSWER = 1 << 20
#: So slow may the way to the destination be, in bytes a second.
_SLOWEST = 100_000
#: InvalidURL is no HTTPError; ValueError is how httpx complains about the environment's proxies.
_NO_ANSWER = (httpx.HTTPError, httpx.InvalidURL, ValueError)
_FAILED_SOP_SEQUENCE = "00081198"
_REFERENCED_SOP_SEQUENCE = "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_FAILURE_REASON = "00081197"
_WARNING_REASON = "00081196"


class StowAdapter:
    """A PACS that takes documents by STOW-RS.

    Parameters
    ----------
    name
        In the configuration.
    settings
        Its DICOMweb root, and the bearer token where it wants one.
    """

    def __init__(self, name: str, settings: StowDestination) -> None:
        self.name = name
        self._url = settings.url.rstrip("/")
        # An address may carry a password; what is told about it does not.
        self._told = str(httpx.URL(self._url).copy_with(userinfo=b""))
        self._timeout = settings.timeout_seconds
        self._headers = {"Accept": "application/dicom+json", "Accept-Encoding": "identity"}
        if settings.token is not None:
            self._headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"

    def deliver(self, document: Path) -> Outcome:
        """Store one document, and believe only what the response says of this very instance."""
        found = identify(document)
        if isinstance(found, str):
            return Refused(f"the document {found}")
        boundary = uuid.uuid4().hex
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        # With a length rather than in chunks: some servers take no chunked body.
        head, tail = _frame(boundary)
        try:
            size = len(head) + document.stat().st_size + len(tail)
            response, content = self._ask(
                "POST",
                f"{self._url}/studies",
                self._timeout + size / _SLOWEST,
                headers={**self._headers, "Content-Type": kind, "Content-Length": str(size)},
                content=_body(document, head, tail),
            )
        except OSError as error:
            return Refused(f"the document cannot be read: {error.strerror}")
        except _NO_ANSWER as error:
            return Unreachable(f"no answer from {self._told}: {type(error).__name__}")
        return self._judge(response, content, found.sop_instance_uid)

    def probe(self) -> ProbeResult:
        """Ask for one study (QIDO-RS)."""
        try:
            response, _ = self._ask(
                "GET", f"{self._url}/studies", self._timeout, headers=self._headers, params={"limit": "1"}
            )
        except _NO_ANSWER as error:
            return ProbeResult(False, f"no answer from {self._told}: {type(error).__name__}")
        return ProbeResult(response.is_success, f"{self._told} answered {_line(response)}")

    def _ask(self, method: str, url: str, seconds: float, **request: Any) -> tuple[httpx.Response, bytes]:
        """Send a request and return the answer with as much of its body as is believed, within so many seconds."""
        # httpx's own limit is for each read: a peer that sends a byte now and then would never meet it.
        with (
            HangUp(seconds) as hang_up,
            httpx.Client(timeout=self._timeout) as client,
            client.stream(method, url, extensions={"trace": hang_up.trace}, **request) as response,
        ):
            content = bytearray()
            # As it came: what is sent compressed although we said that we take none could be of any length.
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > _LONGEST_ANSWER:
                    break
        if hang_up.expired:
            raise httpx.ReadTimeout("the answer did not come in time")
        return response, bytes(content)

    def _judge(self, response: httpx.Response, content: bytes, sop_instance_uid: str) -> Outcome:
        code = response.status_code
        answer, brief = f"{self._told} answered {_line(response)}", f"{self._told} answered {code}"
        if code in (408, 425, 429) or code >= 500:
            return Unreachable(answer, brief=brief)
        if len(content) > _LONGEST_ANSWER:
            tail = f"; with more than {_LONGEST_ANSWER} bytes, which are not read"
            return Refused(answer + tail, brief=brief + tail)
        said = _json(content)
        failure = _item(said, _FAILED_SOP_SEQUENCE, sop_instance_uid)
        if failure is not None:
            reason = _number(failure, _FAILURE_REASON)
            if reason is None:
                return Refused(f"{answer}; failed without a reason", brief=brief)
            kind = Unreachable if category(reason) is Category.BUSY else Refused
            return kind(f"{answer}; {meaning(reason)}", brief=f"{brief}; {meaning(reason)}")
        if code not in (200, 202):
            return Refused(answer, brief=brief)
        stored = _item(said, _REFERENCED_SOP_SEQUENCE, sop_instance_uid)
        if stored is None:
            return Refused(f"{answer}; it does not say that the instance is stored", brief=brief)
        warning = _number(stored, _WARNING_REASON)
        note = "" if warning is None else f"the peer warned: {meaning(warning)}"
        return Delivered(answer, brief=brief, note=note)


def _frame(boundary: str) -> tuple[bytes, bytes]:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), f"\r\n--{boundary}--\r\n".encode()


def _body(document: Path, head: bytes, tail: bytes) -> Iterator[bytes]:
    yield head
    with document.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
    yield tail


def _line(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _item(said: Any, sequence: str, sop_instance_uid: str) -> dict[str, Any] | None:
    """Return what a store response's sequence says of one instance (PS3.18 Table 10.5.3-2 and Annex F)."""
    dataset = said[0] if isinstance(said, list) and said else said
    if not isinstance(dataset, dict):
        return None
    for item in _values(dataset, sequence):
        if isinstance(item, dict) and sop_instance_uid in _values(item, _REFERENCED_SOP_INSTANCE_UID):
            return item
    return None


def _values(dataset: dict[str, Any], tag: str) -> list[Any]:
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _number(item: dict[str, Any], tag: str) -> int | None:
    values = _values(item, tag)
    return values[0] if values and isinstance(values[0], int) else None
