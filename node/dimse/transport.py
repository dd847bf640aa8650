"""The acceptor's connection: reads whole PDUs, each within a time, and can be woken.

It acknowledges at once (TCP_QUICKACK before each read), since senders that leave Nagle's algorithm on wait some 40 ms
an object for a delayed acknowledgement; it refuses lengths that no PDU of ours can have, and gives each PDU one
deadline, so that a peer that sends a byte now and then does not stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from typing import cast

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

__all__ = ["CONNECTION_CLOSED", "IDLE_SECONDS", "QuickSocket", "TooLong", "timeval", "write_pdu"]

CONNECTION_CLOSED = "Evt17"
IDLE_SECONDS = 0.1
#: How long to wait in a state that only a timer or the peer's hanging up ends.
_ENDING_SECONDS = 0.01
_PDU_HEAD = struct.Struct(">BxL")
_PDU_TYPES = range(1, 8)
_P_DATA_TF = 4
_READ_AHEAD = 32 * 1024


class TooLong(ValueError):
    """A P-DATA-TF that is longer than the peer was told to send."""


class QuickSocket(AssociationSocket):
    """A connected socket that reads whole PDUs, acknowledges at once and can be woken.

    Parameters
    ----------
    association
        Its owner.
    connection
        Accepted; becomes blocking, with a time limit on every PDU and every write.
    timeout
        That limit, in seconds. The association request has to be there within the association's ``acse_timeout``.
    longest_data
        The longest P-DATA-TF, as it was announced to the peer (PS3.8 D.1); read without asking for more memory.
    longest
        The longest PDU of any other kind that is read.
    """

    def __init__(
        self, association: Association, connection: socket.socket, timeout: float, longest_data: int, longest: int
    ) -> None:
        connection.setblocking(True)
        # Kernel limits rather than settimeout(), which would cost a poll(2) beside every read.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(timeout))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._longest = longest
        self._longest_data = longest_data
        self._timeout = timeout
        self._limit = timeout
        self._writing = threading.Lock()
        self._requested_by = time.monotonic() + (association.acse_timeout or timeout)
        self._deadline = 0.0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._connection = connection.fileno()
        # One read often brings a command and its dataset.
        self._buffer = memoryview(bytearray(longest_data + _READ_AHEAD))
        self._first = self._last = 0
        self._poll.register(self._connection, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        super().__init__(association, client_socket=connection)

    def send(self, bytestream: bytes) -> None:
        """Send a PDU; a connection that cannot take it has ended."""
        try:
            self.write_pdu(bytestream)
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)

    def write_pdu(self, pdu: bytes | memoryview) -> None:
        """Send a PDU as a whole, whichever threads send.

        Raises
        ------
        OSError
            When the connection has ended, or the peer did not take it in time.
        """
        with self._writing:
            write_pdu(self.socket, pdu, self._timeout)

    def wake(self) -> None:
        """End the wait of whoever waits in ``ready``."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def hang_up(self) -> None:
        """End the connection, from any thread: whoever reads or writes finds its end."""
        connection = self.socket
        if connection is not None:
            with contextlib.suppress(OSError):
                # The socket's own, which leaves what lies over it to the thread that uses it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def end(self) -> None:
        """Free the wake-up descriptor; the reader's thread has ended."""
        if self._wake >= 0:
            descriptor, self._wake = self._wake, -1
            os.close(descriptor)

    @property
    def ready(self) -> bool:
        """Whether there is something to read; waits for it, or to be woken, where nothing else is to do."""
        if self.socket is None or not self._is_connected:
            # The state machine runs to its end without a connection; only its timers are left to wait for.
            select.select([], [], [], 0.001)
            return False
        dul = self.assoc.dul
        if self._last > self._first:
            return True
        seconds = _ENDING_SECONDS if dul.state_machine.current_state == "Sta13" else IDLE_SECONDS
        try:
            events = self._poll.poll(seconds * 1000 if dul.event_queue.empty() else 0)
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)
            return False
        readable = False
        for descriptor, _ in events:
            if descriptor == self._connection:
                readable = True
            else:
                os.eventfd_read(self._wake)
        return readable

    def read_pdu(self) -> memoryview | None:
        """Read one whole PDU (PS3.8 9.3.1), of an unknown type only its head; None where the connection ends within.

        What is returned lies in the connection's own buffer and holds until the next call.

        Raises
        ------
        OSError
            When it did not come in time, or is announced to be longer than any PDU of ours may be.
        TooLong
            When it is longer than what the peer was told.
        """
        self._deadline = time.monotonic() + self._timeout
        if self.assoc.dul.state_machine.current_state in ("Sta1", "Sta2"):
            self._deadline = min(self._deadline, self._requested_by)
        size = _PDU_HEAD.size
        if not self._hold(size):
            return None
        kind, length = _PDU_HEAD.unpack_from(self._buffer, self._first)
        if kind in _PDU_TYPES:
            if kind == _P_DATA_TF and length > self._longest_data:
                raise TooLong(f"a P-DATA-TF of {length} bytes; {self._longest_data} were announced as the longest")
            if length > self._longest:
                raise OSError(f"a PDU of {length} bytes was announced; the longest accepted is {self._longest}")
            size += length
            if not self._hold(size):
                return None
        first, self._first = self._first, self._first + size
        return self._buffer[first : self._first]

    def drain(self) -> bool:
        """Read what is there and forget it; False where the connection has ended."""
        self._first = self._last = 0
        try:
            return cast(socket.socket, self.socket).recv_into(self._buffer, 0, socket.MSG_DONTWAIT) > 0
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _hold(self, size: int) -> bool:
        """Read until so many bytes are held; False where the connection ends before."""
        while self._last - self._first < size:
            if self._first == self._last:
                self._first = self._last = 0
            if self._first + size > len(self._buffer):
                held = self._buffer[self._first : self._last]
                room = self._buffer if size <= len(self._buffer) else memoryview(bytearray(size))
                room[: len(held)] = held
                self._buffer, self._first, self._last = room, 0, len(held)
            count = self._receive(self._buffer[self._last :])
            if not count:
                return False
            self._last += count
        return True

    def _receive(self, room: memoryview) -> int:
        """Read what comes next, within the PDU's time; 0 where the connection has ended."""
        connection = cast(socket.socket, self.socket)
        self._limit_read(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            return connection.recv_into(room)
        except BlockingIOError:
            raise TimeoutError("a PDU did not come in time") from None

    def _limit_read(self, connection: socket.socket) -> None:
        """Let the next read take no longer than the PDU has left; where it has come quickly, the limit stays."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("a PDU did not come in time")
        if self._timeout - left < min(1.0, self._timeout / 10):
            left = self._timeout
        if left != self._limit:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(left))
            self._limit = left


def write_pdu(connection: socket.socket | None, pdu: bytes | memoryview, seconds: float) -> None:
    """Send a PDU over a connection whose writes have a limit (SO_SNDTIMEO), in so many seconds altogether.

    Raises
    ------
    OSError
        When the connection has ended, or the peer did not take all of it in time.
    """
    if connection is None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    deadline = time.monotonic() + seconds
    left = memoryview(pdu)
    while left:
        try:
            left = left[connection.send(left) :]
        except BlockingIOError:
            raise TimeoutError("a PDU was not taken in time") from None
        if left and time.monotonic() > deadline:
            raise TimeoutError("a PDU was not taken in time")


def timeval(seconds: float) -> bytes:
    """Return a limit as SO_RCVTIMEO and SO_SNDTIMEO want it."""
    microseconds = max(1, int(seconds * 1_000_000))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))
