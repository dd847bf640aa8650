"""Ends an HTTP request when its time is over, however slowly the other side goes on sending."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any

__all__ = ["HangUp"]


class HangUp:
    """Shuts a request's connection after ``seconds``; httpx's own limit is for each read, and restarts with each byte.

    ::

        with HangUp(30) as hang_up, client.stream("GET", url, extensions={"trace": hang_up.trace}) as response:
            ...
        if hang_up.expired: ...
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> HangUp:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Learn of the connection (httpx's request extension ``trace``)."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self.expired:
                    self._shut()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The connection's, not TLS's: whoever reads from it wakes up.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
