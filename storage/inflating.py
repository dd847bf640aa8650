"""A deflated dataset as a file that is inflated piece by piece: a few megabytes can stand for many gigabytes."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from storage.errors import NotDicom

__all__ = ["Inflating"]

_CHUNK = 1 << 18
#: So much of what was inflated is kept for going back: more than any reader of DICOM does.
_BEHIND = 1 << 16
_MAXIMUM = 2 << 30
#: Of values that are read, not skipped: the index asks for names, dates and codes.
_MAXIMUM_READ = 64 << 20


class Inflating(io.RawIOBase):
    """Reads on and a little back, and never holds more than one piece and what was asked for.

    Parameters
    ----------
    file
        At the first byte of a raw deflate stream (RFC 1951).
    maximum
        The largest dataset that is inflated, in bytes.
    maximum_read
        So many of its bytes are given out at most; the others can only be skipped.

    Raises
    ------
    NotDicom
        While reading: beyond a limit, or when the stream is none or ends early.
    """

    def __init__(self, file: BinaryIO, *, maximum: int = _MAXIMUM, maximum_read: int = _MAXIMUM_READ) -> None:
        super().__init__()
        self._file = file
        self._maximum = maximum
        self._left_to_read = maximum_read
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._held = bytearray()
        self._first = 0
        self._at = 0

    def tell(self) -> int:
        """Return the position in the inflated dataset."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move on, inflating and forgetting; or back a little."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a deflated dataset is not known")
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if target < self._first:
            raise io.UnsupportedOperation("what was inflated there is no longer held")
        self._at = target
        while self._end < target and self._more():
            self._forget()
        return target

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, or what is left."""
        if size is None or size < 0:
            size = self._maximum
        wanted = self._at + size
        if self._end < wanted:
            self._forget()
            while self._end < wanted and self._end - self._at <= self._left_to_read and self._more():
                pass
        at = self._at - self._first
        data = bytes(self._held[at : at + size])
        self._left_to_read -= len(data)
        if self._left_to_read < 0:
            raise NotDicom("the deflated dataset has values too long to be read")
        self._at += len(data)
        return data

    def finish(self) -> None:
        """Inflate what is left and forget it, to know that it is whole."""
        while self._more():
            self._at = self._end
            self._forget()

    @property
    def _end(self) -> int:
        return self._first + len(self._held)

    def _forget(self) -> None:
        gone = min(len(self._held), self._at - self._first - _BEHIND)
        if gone >= _CHUNK:
            del self._held[:gone]
            self._first += gone

    def _more(self) -> bool:
        """Inflate one more piece, if there is one."""
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(_CHUNK)
            try:
                piece = self._inflate.decompress(data, _CHUNK)
            except zlib.error:
                raise NotDicom("the deflated dataset cannot be inflated") from None
            if piece:
                self._held += piece
                if self._end > self._maximum:
                    raise NotDicom(f"the deflated dataset is longer than {self._maximum} bytes when it is inflated")
                return True
            if not data:
                raise NotDicom("truncated: the deflated dataset ends early")
        return False
