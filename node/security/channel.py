"""A connection over TLS that one thread may read from while others write to it, each within a time.

OpenSSL's connections are not made for two threads at once, and wait on by themselves when the kernel's time limits
(SO_RCVTIMEO) strike in the middle of a record. So the socket never blocks, every call to OpenSSL is made alone, and
waiting is done between the calls.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from node.security.tls import names_of

__all__ = ["Channel"]

T = TypeVar("T")

#: One record; more would be copied for nothing when a write is taken in part.
_RECORD = 16 * 1024


class Channel:
    """A connection over TLS, before its handshake.

    Parameters
    ----------
    connection
        Connected and wrapped; becomes non-blocking.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._descriptor = connection.fileno()
        self._alone = threading.Lock()
        self._ended = False

    def handshake(self, deadline: float) -> None:
        """Agree on keys, and see who the peer is.

        Raises
        ------
        OSError
            When it fails or does not end by then (monotonic time).
        """
        self._attempt(self.connection.do_handshake, deadline)

    def names(self) -> frozenset[str] | None:
        """Return the names of the peer's certificate; see :func:`node.security.tls.names_of`."""
        with self._alone:
            return names_of(self.connection)

    def pending(self) -> bool:
        """Whether something is decrypted already, of which no poll tells."""
        with self._alone:
            return not self._ended and self.connection.pending() > 0

    def receive(self, room: memoryview, deadline: float) -> int:
        """Read what comes next; 0 where the connection has ended.

        Raises
        ------
        OSError
            When the connection breaks, or nothing comes in time.
        """
        return self._attempt(lambda: self.connection.recv_into(room), deadline)

    def receive_now(self, room: memoryview) -> int | None:
        """Read what is there; 0 where the connection has ended, None where nothing is there yet."""
        try:
            with self._alone:
                return 0 if self._ended else self.connection.recv_into(room)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """Send all of it.

        Raises
        ------
        OSError
            When the connection has ended, or the peer does not take all of it in time.
        """
        left = memoryview(data)
        while left:
            piece = left[:_RECORD]
            left = left[self._attempt(lambda piece=piece: self.connection.send(piece), deadline) :]  # type: ignore[misc]

    def close(self) -> None:
        """Say that nothing more comes (RFC 8446 6.1) and close, from any thread.

        Not while OpenSSL works on it in another: it would go on with the number of a descriptor that the next
        connection may have by then, and what Python's ssl has taken leave of it would send in the clear.
        """
        with self._alone:
            if self._ended:
                return
            self._ended = True
            with contextlib.suppress(OSError, ValueError):
                self.connection.unwrap()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

    def let_read(self, seconds: float) -> None:
        """Give the other side a moment to read why it was refused: closing on what it has sent would take that away."""
        with contextlib.suppress(OSError, TimeoutError):
            socket.socket.shutdown(self.connection, socket.SHUT_WR)
            deadline = time.monotonic() + seconds
            while True:
                self._wait(select.POLLIN, deadline)
                if not socket.socket.recv(self.connection, _RECORD):
                    return

    def _attempt(self, action: Callable[[], T], deadline: float) -> T:
        while True:
            with self._alone:
                if self._ended:
                    raise ConnectionError("the connection has been closed")
                try:
                    return action()
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                    # The peer may have Nagle's algorithm on, and wait for our acknowledgement to send the rest.
                    self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
            self._wait(event, deadline)

    def _wait(self, event: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        waiting = select.poll()
        waiting.register(self._descriptor, event)
        if left <= 0 or not waiting.poll(left * 1000):
            raise TimeoutError("the other side took too long")
