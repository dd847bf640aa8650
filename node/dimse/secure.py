"""The acceptor's connection over TLS: reads and writes as the plain one does, after a handshake within a time."""

from __future__ import annotations

import socket
import ssl
import time

from pynetdicom.association import Association

from node.dimse.transport import QuickSocket
from node.security.channel import Channel

__all__ = ["SecureSocket"]

_REFUSED_SECONDS = 1.0


class SecureSocket(QuickSocket):
    """A connection over TLS; the association's thread makes the handshake before anything is read.

    Parameters
    ----------
    association, connection, timeout, longest_data, longest
        As for a plain one.
    context
        For the acceptor's side.
    """

    def __init__(
        self,
        association: Association,
        connection: socket.socket,
        timeout: float,
        longest_data: int,
        longest: int,
        context: ssl.SSLContext,
    ) -> None:
        secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        super().__init__(association, secured, timeout, longest_data, longest)
        self._channel = Channel(secured)

    def handshake(self) -> None:
        """Agree on keys, and see who the peer is, within the time for an association request.

        Raises
        ------
        OSError
            When it fails or does not end in time.
        """
        try:
            self._channel.handshake(self._requested_by)
        except ssl.SSLError:
            self._channel.let_read(_REFUSED_SECONDS)
            raise

    def names(self) -> frozenset[str] | None:
        """Return the names of the peer's certificate; None where it showed none."""
        return self._channel.names()

    @property
    def ready(self) -> bool:
        """Whether there is something to read; what is decrypted already no poll tells of."""
        if self.socket is not None and self._channel.pending():
            return True
        return super().ready

    def write_pdu(self, pdu: bytes | memoryview) -> None:
        """Send a PDU as a whole, whichever threads send.

        Raises
        ------
        OSError
            When the connection has ended, or the peer did not take it in time.
        """
        with self._writing:
            self._channel.send(pdu, time.monotonic() + self._timeout)

    def drain(self) -> bool:
        """Read what is there and forget it; False where the connection has ended."""
        self._first = self._last = 0
        try:
            return self._channel.receive_now(self._buffer) != 0
        except OSError:
            return False

    def _shutdown_socket(self) -> None:
        self._channel.close()

    def _receive(self, room: memoryview) -> int:
        return self._channel.receive(room, self._deadline)
