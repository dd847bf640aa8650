"""Binding a port, once, for whoever will serve it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from node.errors import AlreadyRunning, ConfigurationError

__all__ = ["is_loopback", "listen"]


def listen(section: str, host: str, port: int, backlog: int = 256) -> socket.socket:
    """Return a listening socket; complaints name the keys of ``section`` in the configuration.

    Without SO_REUSEPORT: two nodes must not share a port unknowingly.

    Raises
    ------
    AlreadyRunning
        When something listens there already.
    ConfigurationError
        When the address cannot be listened on at all.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"{section}.bind: {host} is no address of this machine ({error.strerror})") from None
    listening = socket.socket(family, kind, protocol)
    try:
        # So that a restart need not wait for the old connections' last packets; it shares the port with nobody.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(
                f"{section}.port: port {port} on {host} is in use: another node or program listens there; "
                f"stop it, or choose another {section}.port"
            ) from None
        key = f"{section}.port" if error.errno == errno.EACCES else f"{section}.bind"
        raise ConfigurationError(f"{key}: cannot listen on {host} port {port}: {error.strerror}") from None
    return listening


def is_loopback(bind: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False
