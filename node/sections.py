"""What sections of the configuration are made of: the base of each, and the types of values that several share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

__all__ = ["AETitle", "Host", "Port", "Seconds", "Section", "Token"]


class Section(BaseModel):
    """A mapping of keys; one that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _fits_a_header(token: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
        raise ValueError("expected a token: printable ASCII characters without spaces, and not empty")
    return token


def _is_host(host: str) -> str:
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("expected a host name or an address") from None
    if not host or not host.isprintable() or " " in host:
        raise ValueError("expected a host name or an address")
    return host


AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Host = Annotated[str, AfterValidator(_is_host)]
Token = Annotated[SecretStr, AfterValidator(_fits_a_header)]
