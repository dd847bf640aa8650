"""Multipart/related in both directions, without ever holding a part in memory (RFC 2046 5.1, RFC 2387)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from node.errors import BadRequest

__all__ = ["MultipartReader", "Part", "PartBegins", "PartData", "PartEnds", "new_boundary", "written"]

_MAXIMUM_HEADERS = 16 * 1024
_MAXIMUM_PADDING = 256


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part's headers, names in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of the part's bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part is whole."""


Event = PartBegins | PartData | PartEnds


class MultipartReader:
    """Turns the chunks of a body into events; holds at most one chunk, one delimiter and one block of headers.

    Lines may end in CRLF or, as some senders write them, in LF: the first delimiter decides for the whole body.
    """

    def __init__(self, boundary: str) -> None:
        if not boundary or len(boundary) > 256:
            raise BadRequest("multipart/related needs a boundary parameter")
        self._mark = b"--" + boundary.encode("latin-1", "replace")
        self._delimiter = b""
        self._buffer = bytearray()
        self._ahead = 0
        self._state = self._preamble

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take more of the body and give what it holds.

        Raises
        ------
        BadRequest
            When the framing is broken.
        """
        self._buffer += chunk
        while (events := self._state()) is not None:
            yield from events

    def close(self) -> None:
        """Say that the body is over.

        Raises
        ------
        BadRequest
            When the closing delimiter never came.
        """
        if self._state != self._epilogue:
            raise BadRequest("the multipart body ends without its closing boundary")

    def _preamble(self) -> list[Event] | None:
        match = re.search(rb"(?:^|\n)" + re.escape(self._mark) + rb"([ \t]*)(\r?\n|--)", self._buffer)
        if match is None:
            limit = _MAXIMUM_HEADERS + len(self._mark)
            if len(self._buffer) > limit:
                raise BadRequest("the multipart body does not begin with its boundary")
            return None
        if match.group(2) == b"--":
            return self._end()
        self._delimiter = (b"\r\n" if match.group(2) == b"\r\n" else b"\n") + self._mark
        del self._buffer[: match.end()]
        self._state = self._headers
        return []

    def _headers(self) -> list[Event] | None:
        match = re.match(rb"\r?\n", self._buffer) or re.search(rb"\r?\n\r?\n", self._buffer)
        if match is None:
            if len(self._buffer) > _MAXIMUM_HEADERS:
                raise BadRequest("a part's headers are larger than 16 KiB")
            return None
        if match.end() > _MAXIMUM_HEADERS:
            raise BadRequest("a part's headers are larger than 16 KiB")
        headers = {}
        for line in bytes(self._buffer[: match.start()]).decode("latin-1").splitlines():
            name, colon, value = line.partition(":")
            if not colon:
                raise BadRequest("a line among a part's headers has no colon")
            headers[name.strip().lower()] = value.strip()
        # An empty part's delimiter follows at once: leave it the line end that it begins with.
        line_end = self._delimiter[: -len(self._mark)]
        self._buffer[: match.end()] = line_end
        self._ahead = len(line_end)
        self._state = self._content
        return [PartBegins(headers)]

    def _content(self) -> list[Event] | None:
        start = 0
        while True:
            found = self._buffer.find(self._delimiter, start)
            if found < 0:
                keep = len(self._delimiter) - 1
                return self._give(len(self._buffer) - keep)
            after = found + len(self._delimiter)
            match = re.match(rb"[ \t]*(\r?\n|--)", bytes(self._buffer[after : after + _MAXIMUM_PADDING]))
            if match is None:
                if len(self._buffer) - after < _MAXIMUM_PADDING and re.fullmatch(
                    rb"[ \t]*[\r-]?", bytes(self._buffer[after:])
                ):
                    return self._give(found)
                # Only something that begins like the delimiter.
                start = found + 1
                continue
            events: list[Event] = [PartData(bytes(self._buffer[self._ahead : found]))] if found > self._ahead else []
            events.append(PartEnds())
            if match.group(1) == b"--":
                self._end()
                return events
            del self._buffer[: after + match.end()]
            self._state = self._headers
            return events

    def _give(self, count: int) -> list[Event] | None:
        if count <= self._ahead:
            return None
        data = bytes(self._buffer[self._ahead : count])
        del self._buffer[:count]
        self._ahead = 0
        return [PartData(data)]

    def _end(self) -> list[Event]:
        self._buffer.clear()
        self._state = self._epilogue
        return []

    def _epilogue(self) -> list[Event] | None:
        self._buffer.clear()
        return None


@dataclass(frozen=True, slots=True)
class Part:
    """One part to write: its headers and its bytes, piece by piece."""

    headers: Mapping[str, str]
    content: Iterable[bytes]


def new_boundary() -> str:
    """Return a boundary that no content holds."""
    return uuid.uuid4().hex


def written(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    """Give the bytes of a multipart body."""
    first = True
    for part in parts:
        head = "".join(f"{name}: {value}\r\n" for name, value in part.headers.items())
        lead = "" if first else "\r\n"
        yield f"{lead}--{boundary}\r\n{head}\r\n".encode()
        yield from part.content
        first = False
    yield f"\r\n--{boundary}--\r\n".encode()
