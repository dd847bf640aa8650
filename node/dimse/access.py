"""Who may associate and what for: decided once, when an association is requested."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.listening import is_loopback
from node.peers import Peer, Service
from node.settings import DimseSettings

__all__ = ["Access", "Admitted", "Rejected"]

#: rejected-permanent, service-user (PS3.8 Table 9-21).
_CALLING_NOT_RECOGNIZED = (0x01, 0x01, 0x03)
_CALLED_NOT_RECOGNIZED = (0x01, 0x01, 0x07)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An association that may be: with whom, where the configuration names it, and what for."""

    name: str | None
    services: frozenset[Service]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """One that may not be: A-ASSOCIATE-RJ's result, source and reason (PS3.8 9.3.4), and why in words."""

    diagnostic: tuple[int, int, int]
    why: str


class Access:
    """The rules, as the configuration has them.

    Parameters
    ----------
    settings
        Our AE title, and what AEs may do that are not listed.
    peers
        Those that are listed, by name.
    """

    def __init__(self, settings: DimseSettings, peers: Mapping[str, Peer]) -> None:
        self._called = settings.ae_title.strip()
        self._listed = {peer.ae_title.strip(): (name, peer) for name, peer in peers.items()}
        self._strangers = frozenset(strangers(settings))

    def admit(self, *, called: str, calling: str, host: str) -> Admitted | Rejected:
        """Decide on a request by its AE titles and the address that it comes from."""
        if called.strip() != self._called:
            return Rejected(diagnostic=_CALLED_NOT_RECOGNIZED, why="the called AE title is not this node's")
        name, peer = self._listed.get(calling.strip(), (None, None))
        if peer is None:
            if not self._strangers:
                return Rejected(diagnostic=_CALLING_NOT_RECOGNIZED, why="the calling AE title is no peer's")
            return Admitted(name=None, services=self._strangers)
        if not _among(host, peer):
            return Rejected(diagnostic=_CALLING_NOT_RECOGNIZED, why=f"peer {name} may not call from this address")
        return Admitted(name=name, services=frozenset(peer.services))


def strangers(settings: DimseSettings) -> Collection[Service]:
    """Return what AEs that are not listed may ask for: unless it is said, everything on loopback, nothing beyond."""
    if settings.strangers is not None:
        return settings.strangers
    return tuple(Service) if is_loopback(settings.bind) else ()


def _among(host: str, peer: Peer) -> bool:
    if not peer.hosts:
        return True
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in peer.hosts)
