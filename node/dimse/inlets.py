"""Where associations come in: the plain port, the one for TLS, or both, each bound once for all receivers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from node.listening import listen
from node.security.tls import Certificates
from node.settings import DimseSettings

__all__ = ["Inlet", "bind", "bound"]

_BACKLOG = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlet:
    """A socket that several processes accept on, and what is shown there; None where it is plain."""

    listening: socket.socket
    certificates: Certificates | None = None


def bind(host: str, port: int, section: str = "dimse") -> socket.socket:
    """Return a listening socket that several processes may accept on; see :func:`node.listening.listen`."""
    listening = listen(section, host, port, _BACKLOG)
    # A sibling may take a connection between the wait and the accept.
    listening.setblocking(False)
    return listening


@contextmanager
def bound(settings: DimseSettings) -> Iterator[tuple[Inlet, ...]]:
    """Bind what is configured, and let go of it at the end.

    Raises
    ------
    ConfigurationError
        When an address cannot be listened on, or the files for TLS cannot be used.
    AlreadyRunning
        When a port is taken.
    """
    inlets = []
    with ExitStack() as stack:
        if settings.tls is not None:
            certificates = Certificates(settings.tls)
            listening = bind(settings.tls.bind or settings.bind, settings.tls.port, "dimse.tls")
            inlets.append(Inlet(listening=stack.enter_context(listening), certificates=certificates))
        if settings.plain:
            inlets.append(Inlet(listening=stack.enter_context(bind(settings.bind, settings.port))))
        yield tuple(inlets)
