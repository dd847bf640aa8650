"""The Application Entities that the node knows: who they are, where they are called, and what each may ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator

from node.sections import AETitle, Host, Port, Seconds, Section
from node.security.tls import PeerTls

__all__ = ["Address", "Login", "Peer", "Service"]


class Service(StrEnum):
    """What a peer may ask of the node."""

    ECHO = "echo"
    STORE = "store"
    FIND = "find"
    MOVE = "move"
    GET = "get"
    #: Storage Commitment, Push Model (PS3.4 Annex J).
    COMMIT = "commit"
    #: Modality Performed Procedure Step (PS3.4 Annex F).
    MPPS = "mpps"


class Login(Section):
    """A user name, and a passcode where one is asked for."""

    username: Annotated[str, Field(min_length=1)]
    passcode: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where an Application Entity is called."""

    ae_title: str
    host: str
    port: int
    #: Where it is called over TLS.
    tls: PeerTls | None = None
    #: Whom the node names as its user when it calls (PS3.7 D.3.3.7).
    login: Login | None = None


class Peer(Section):
    """One Application Entity: for every use, whether it calls the node or is called."""

    ae_title: AETitle
    #: Where it is called; both or neither.
    host: Host | None = None
    port: Port | None = None
    #: Called over TLS, where there is such a section; ``true`` for one in which all is as in dimse.tls.
    tls: PeerTls | None = None
    login: Login | None = None
    #: Where it may call from; empty means anywhere.
    hosts: tuple[IPvAnyNetwork, ...] = ()
    services: tuple[Service, ...] = (Service.ECHO, Service.STORE)
    #: How many associations it may have at the same time; without a number, as many as there may be in all.
    maximum_associations: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    #: How its user proves itself when it calls (PS3.7 D.3.3.7).
    username: Annotated[str, Field(min_length=1)] | None = None
    passcode: SecretStr | None = None
    user_identity: Literal["required", "optional"] = "required"
    #: Names of which its TLS certificate has to carry one when it calls; it then may call over TLS only.
    certificates: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    timeout_seconds: Seconds = 30
    #: The quiet period of studies that come from it, where it is another than completion.quiet_seconds.
    quiet_seconds: Seconds | None = None
    #: Whether it is asked by C-FIND how many instances it has of a study that came from it.
    count: bool = False
    #: How it hears what the node commits to: over the association on which it asked, where that is still open a
    #: moment later, else over one of the node's; or always over one of the node's.
    commitment_report: Literal["either", "new"] = "either"
    #: Whether it is told of each study that has come in (Instance Availability Notification).
    availability: bool = False

    @property
    def address(self) -> Address | None:
        """Where it is called; None where only it calls."""
        if self.host is None or self.port is None:
            return None
        return Address(self.ae_title, self.host, self.port, self.tls, self.login)

    @field_validator("tls", mode="before")
    @classmethod
    def _as_section(cls, value: Any) -> Any:
        # From the environment it comes as text.
        return {"true": {}, "false": None}.get(str(value).lower(), value) if isinstance(value, (bool, str)) else value

    @model_validator(mode="after")
    def _whole(self) -> Peer:
        if (self.host is None) != (self.port is None):
            raise ValueError("host and port: give both, or neither for a peer that only calls")
        if self.passcode is not None and self.username is None:
            raise ValueError("passcode: give the username that it belongs to")
        if self.host is None and self.availability:
            raise ValueError("availability: a peer that is told of studies needs a host and a port")
        if self.host is None and self.commitment_report == "new":
            raise ValueError("commitment_report: a peer that is called with its report needs a host and a port")
        return self
