"""Who may associate and what for: decided once, when an association is requested."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from node.listening import is_loopback
from node.peers import Peer, Service
from node.settings import DimseSettings

__all__ = ["EVERYONE", "Access", "Admitted", "Identity", "Rejected", "Request"]

#: Under this name :meth:`Access.limits` has the limit on all associations together.
EVERYONE = ""

#: Result, source, reason (PS3.8 Table 9-21). Rejected-permanent by the service-user:
_CONTEXT_NAME_NOT_SUPPORTED = (0x01, 0x01, 0x02)
_CALLING_NOT_RECOGNIZED = (0x01, 0x01, 0x03)
_CALLED_NOT_RECOGNIZED = (0x01, 0x01, 0x07)
#: By the service-provider, ACSE: what a refused user gets (PS3.7 D.3.3.7).
_USER_REFUSED = (0x01, 0x02, 0x01)

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_USERNAME, _USERNAME_AND_PASSCODE = 1, 2
_KINDS = {3: "a Kerberos service ticket", 4: "a SAML assertion", 5: "a JSON web token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a requestor says of its user (User Identity Negotiation, PS3.7 Table D.3-14)."""

    kind: int
    primary: bytes
    secondary: bytes = b""
    wants_answer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What of an association request, and of the connection that it came by, access depends on.

    ``certificate`` has the names that the peer's TLS certificate carries: None where it showed none.
    """

    called: str
    calling: str
    host: str
    application_context: str = _APPLICATION_CONTEXT
    identity: Identity | None = None
    certificate: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An association that may be: with whom, where the configuration names it, and what for.

    ``identified`` says that the user is verified, and is to be told so where it asked to be.
    """

    name: str | None
    services: frozenset[Service]
    identified: bool = False


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
        Our AE titles, and what AEs may do that are not listed.
    peers
        Those that are listed, by name.
    """

    def __init__(self, settings: DimseSettings, peers: Mapping[str, Peer]) -> None:
        self._called = frozenset(one.strip() for one in (settings.ae_title, *settings.called_ae_titles))
        self._listed = {peer.ae_title.strip(): (name, peer) for name, peer in peers.items()}
        self._strangers = frozenset(strangers(settings))
        self.limits: Mapping[str, int] = {EVERYONE: settings.maximum_associations} | {
            name: peer.maximum_associations for name, peer in peers.items() if peer.maximum_associations is not None
        }

    def admit(self, request: Request) -> Admitted | Rejected:
        """Decide on a request by its AE titles, the address that it comes from, its user and its certificate."""
        if request.application_context != _APPLICATION_CONTEXT:
            return Rejected(diagnostic=_CONTEXT_NAME_NOT_SUPPORTED, why="the application context is not DICOM's")
        if request.called.strip() not in self._called:
            return Rejected(diagnostic=_CALLED_NOT_RECOGNIZED, why="the called AE title is not this node's")
        name, peer = self._listed.get(request.calling.strip(), (None, None))
        if peer is None:
            if not self._strangers:
                return Rejected(diagnostic=_CALLING_NOT_RECOGNIZED, why="the calling AE title is no peer's")
            return Admitted(name=None, services=self._strangers)
        if not _among(request.host, peer):
            return Rejected(diagnostic=_CALLING_NOT_RECOGNIZED, why=f"peer {name} may not call from this address")
        if peer.certificates and not _carries(request.certificate, peer.certificates):
            shown = "its certificate is not the peer's" if request.certificate is not None else "it shows none"
            return Rejected(
                diagnostic=_CALLING_NOT_RECOGNIZED, why=f"peer {name} is known by a certificate, and {shown}"
            )
        if not peer.services:
            return Rejected(diagnostic=_CALLING_NOT_RECOGNIZED, why=f"peer {name} may ask for no service")
        if refused := _refused_user(request.identity, peer):
            return Rejected(diagnostic=_USER_REFUSED, why=f"peer {name}: {refused}")
        identified = peer.username is not None and request.identity is not None
        return Admitted(name=name, services=frozenset(peer.services), identified=identified)


def strangers(settings: DimseSettings) -> Collection[Service]:
    """Return what AEs that are not listed may ask for: unless it is said, everything on loopback, nothing beyond."""
    if settings.strangers is not None:
        return settings.strangers
    return tuple(Service) if all(is_loopback(one) for one in settings.addresses) else ()


def _among(host: str, peer: Peer) -> bool:
    if not peer.hosts:
        return True
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in peer.hosts)


def _carries(shown: frozenset[str] | None, wanted: Collection[str]) -> bool:
    return shown is not None and not shown.isdisjoint(one.casefold() for one in wanted)


def _refused_user(identity: Identity | None, peer: Peer) -> str:
    """Say why a user is refused; empty where it is not. A peer without a user name may show whatever it likes."""
    if peer.username is None:
        return ""
    if identity is None:
        return "no user was named" if peer.user_identity == "required" else ""
    if identity.kind in _KINDS:
        return f"{_KINDS[identity.kind]} cannot be verified here; user name and passcode are expected"
    if identity.kind not in (_USERNAME, _USERNAME_AND_PASSCODE):
        return "an unknown kind of user identity"
    # Both are compared in constant time, and both always, so that the time says nothing of which was wrong.
    right = _same(identity.primary, peer.username)
    if peer.passcode is not None:
        given = identity.secondary if identity.kind == _USERNAME_AND_PASSCODE else b""
        right &= _same(given, peer.passcode.get_secret_value())
    return "" if right else "wrong user name or passcode"


def _same(given: bytes, expected: str) -> bool:
    """Compare without telling by the time how much is right; digests, so that not even the length is told."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected.encode()).digest())
