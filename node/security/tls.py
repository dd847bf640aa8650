"""TLS by the profiles of PS3.15: what is configured, contexts made of it, and what certificates say.

Both profiles stand on BCP 195 (RFC 8996, RFC 9325): TLS 1.2 and 1.3, ephemeral keys, authenticated encryption,
nothing older, no renegotiation, no compression. Every association is authenticated anew: sessions are not resumed.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

import structlog
from pydantic import SecretStr, model_validator

from node.errors import ConfigurationError
from node.sections import Host, Port, Section

__all__ = [
    "SOON",
    "as_own_peer",
    "Acceptor",
    "Certificates",
    "Expiry",
    "PeerTls",
    "Profile",
    "acceptor_context",
    "caller_context",
    "expiries",
    "names_of",
    "trouble",
    "why_failed",
]

_log = structlog.get_logger(__name__)
#: A certificate that ends within this time is told of.
SOON = timedelta(days=30)


class Profile(StrEnum):
    """A Secure Transport Connection Profile."""

    #: BCP 195 RFC 8996, 9325 TLS (PS3.15 B.12).
    BCP195 = "bcp195"
    #: Modified BCP 195 RFC 8996, 9325 TLS (PS3.15 B.13), as far as OpenSSL has its cipher suites.
    MODIFIED = "modified-bcp195"


#: Of TLS 1.2. Those of 1.3 are OpenSSL's: AES-GCM with 256 and 128 bits, and ChaCha20-Poly1305.
_AES_GCM = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)
_CIPHER_SUITES: dict[Profile, str] = {
    Profile.BCP195: _AES_GCM,
    Profile.MODIFIED: _AES_GCM + ":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "ECDHE-ECDSA-AES256-CCM:ECDHE-ECDSA-AES128-CCM",
}


class Acceptor(Section):
    """TLS for associations that others open."""

    port: Port = 2762
    #: Where to listen; the plain port's address unless it is said.
    bind: Host | None = None
    #: PEM: the node's certificate, those between it and its authority behind it.
    certificate: Path
    key: Path
    key_passcode: SecretStr | None = None
    #: PEM: whom the node believes when a client shows a certificate.
    authorities: Path | None = None
    client_certificates: Literal["required", "optional", "none"] = "required"
    profile: Profile = Profile.BCP195

    @model_validator(mode="after")
    def _whom_to_believe(self) -> Acceptor:
        if self.client_certificates != "none" and self.authorities is None:
            raise ValueError(
                "authorities: name the file of the authorities whose certificates clients show, "
                "or set client_certificates: none"
            )
        return self


class PeerTls(Section):
    """TLS for associations with a peer that the node opens; what is not said is as in ``dimse.tls``."""

    #: PEM: who vouches for the peer; the authorities of the machine where nothing is said anywhere.
    authorities: Path | None = None
    #: PEM: what the node shows; both or neither.
    certificate: Path | None = None
    key: Path | None = None
    key_passcode: SecretStr | None = None
    #: Whether the certificate has to be for the host that is called, and under which name, if not its own.
    check_host: bool = True
    server_name: Host | None = None
    profile: Profile = Profile.BCP195

    @model_validator(mode="after")
    def _both(self) -> PeerTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: give both or neither")
        return self


def as_own_peer(settings: Acceptor) -> PeerTls:
    """Return how the node calls itself: by its own certificate, which alone it believes."""
    return PeerTls(
        authorities=settings.certificate,
        certificate=settings.certificate,
        key=settings.key,
        key_passcode=settings.key_passcode,
        check_host=False,
        profile=settings.profile,
    )


def acceptor_context(settings: Acceptor) -> ssl.SSLContext:
    """Make the context for associations that others open.

    Raises
    ------
    ConfigurationError
        Naming the file and what is wrong with it.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings.profile)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    _load(context, settings.certificate, settings.key, settings.key_passcode, "dimse.tls")
    if settings.client_certificates != "none":
        assert settings.authorities is not None
        _believe(context, settings.authorities, "dimse.tls")
        required = settings.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def caller_context(settings: PeerTls) -> ssl.SSLContext:
    """Make the context for calling a peer.

    Raises
    ------
    ConfigurationError
        Naming the file and what is wrong with it.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings.profile)
    context.check_hostname = settings.check_host
    context.verify_mode = ssl.CERT_REQUIRED
    if settings.authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _believe(context, settings.authorities, "tls")
    if settings.certificate is not None and settings.key is not None:
        _load(context, settings.certificate, settings.key, settings.key_passcode, "tls")
    return context


def _context(protocol: int, profile: Profile) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Security level 2: keys of RSA have 2048 bits or more, those of elliptic curves 224 or more.
    context.set_ciphers(_CIPHER_SUITES[profile] + ":@SECLEVEL=2")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    # Whoever is listed as an authority is believed, a certificate in the middle of a chain too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path, passcode: SecretStr | None, section: str) -> None:
    for name, path in (("certificate", certificate), ("key", key)):
        _readable(path, f"{section}.{name}")
    try:
        # A passcode is never asked for at a terminal: without one, an empty one is tried.
        context.load_cert_chain(certificate, key, lambda: passcode.get_secret_value() if passcode else "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no PEM certificate and key that can be read"
        raise ConfigurationError(
            f"{section}.certificate, {section}.key: {certificate} and {key} do not work together ({reason})"
        ) from None


def _believe(context: ssl.SSLContext, authorities: Path, section: str) -> None:
    _readable(authorities, f"{section}.authorities")
    try:
        context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or "no PEM certificates"
        raise ConfigurationError(f"{section}.authorities: {authorities} cannot be used ({reason})") from None


def _readable(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(f"{key}: {path}: {error.strerror}") from None


def trouble(settings: Acceptor) -> str:
    """Say what is wrong with the files, or will be soon; empty where all is well."""
    try:
        acceptor_context(settings)
    except ConfigurationError as error:
        return f"{error}; associations go on with the files from before"
    soon = [one for one in expiries(settings.certificate) if one.left() < SOON]
    return "; ".join(f"{one.path} ends on {one.ends:%Y-%m-%d}" for one in soon)


class Certificates:
    """The acceptor's context, made anew when its files have changed.

    What cannot be used is told of once and the last good context stays. Not for several threads.

    Raises
    ------
    ConfigurationError
        When the files cannot be used to begin with.
    """

    def __init__(self, settings: Acceptor) -> None:
        self._settings = settings
        self._stamps = self._look()
        self._context = acceptor_context(settings)
        self._warn()

    def context(self) -> ssl.SSLContext:
        """Return the context for the next association."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = acceptor_context(self._settings)
            except ConfigurationError as error:
                _log.error("TLS files cannot be used; the last good ones stay in use", reason=str(error))
            else:
                _log.info("TLS files read anew")
                self._warn()
        return self._context

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in _files(self._settings))

    def _warn(self) -> None:
        for expiry in expiries(self._settings.certificate):
            if expiry.left() < SOON:
                _log.warning("certificate ends soon", file=str(expiry.path), ends=expiry.ends.isoformat())


def _files(settings: Acceptor) -> Iterator[Path]:
    for path in (settings.certificate, settings.key, settings.authorities):
        if path is not None:
            yield path


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def names_of(connection: ssl.SSLSocket) -> frozenset[str] | None:
    """Return the names that the peer's verified certificate carries, in lower case; None where it showed none.

    Common names, alternative names of every kind (RFC 5280 4.2.1.6), and ``sha256:`` with the certificate's digest.
    """
    binary = connection.getpeercert(binary_form=True)
    if binary is None:
        return None
    shown = connection.getpeercert() or {}
    names = {f"sha256:{hashlib.sha256(binary).hexdigest()}"}
    for _, value in _pairs(shown.get("subjectAltName", ())):
        names.add(value)
    for part in shown.get("subject", ()):
        names |= {value for kind, value in _pairs(part) if kind == "commonName"}
    return frozenset(name.casefold() for name in names)


def _pairs(values: object) -> Iterator[tuple[str, str]]:
    assert isinstance(values, tuple)
    for one in values:
        if isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], str):
            yield one


def why_failed(error: OSError) -> str:
    """Say in words why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message or error.reason}"
    if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
        return "the other side hung up"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error) or type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """When a certificate in a file ends."""

    path: Path
    ends: datetime

    def left(self) -> timedelta:
        """How long it still holds; negative once it does not."""
        return self.ends - datetime.now(UTC)


def expiries(path: Path) -> list[Expiry]:
    """Return when each certificate of a PEM file ends; empty where none can be read."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    found = []
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    for piece in text.split(begin)[1:]:
        try:
            ends = _not_after(ssl.PEM_cert_to_DER_cert(begin + piece.partition(end)[0] + end))
        except (ValueError, IndexError):
            continue
        found.append(Expiry(path=path, ends=ends))
    return found


def _not_after(certificate: bytes) -> datetime:
    """Read notAfter of a certificate in DER (RFC 5280 4.1)."""
    (_, outer), *_ = _der(certificate)
    (_, body), *_ = _der(outer)
    fields = [field for field in _der(body) if field[0] != _VERSION]
    # serialNumber, signature, issuer, validity
    (_, _), (kind, value) = list(_der(fields[3][1]))[:2]
    form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC)


_VERSION, _UTC_TIME = 0xA0, 0x17


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take the elements of a DER encoding apart: tag and content of each (X.690 8.1)."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield tag, data[at : at + length]
        at += length
