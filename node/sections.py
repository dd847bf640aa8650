"""What sections of the configuration are made of: the base of each, and the types of values that several share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from storage.space import Least

__all__ = ["AETitle", "Free", "Host", "Port", "Seconds", "Section", "Token", "TransferSyntax", "UIDPrefix"]


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


def _is_transfer_syntax(name: str) -> str:
    from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]

    for uid, (_, kind, _, _, keyword) in UID_dictionary.items():
        if kind == "Transfer Syntax" and name in (uid, keyword):
            return str(uid)
    raise ValueError("expected the UID of a transfer syntax of DICOM, or its keyword, as in JPEG2000Lossless")


def _is_amount(written: str) -> str:
    Least.parse(written)
    return written


def _as_written(value: object) -> object:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Host = Annotated[str, AfterValidator(_is_host)]
#: What has to stay free: a number with or without a unit, or a share in percent.
Free = Annotated[str, BeforeValidator(_as_written), AfterValidator(_is_amount)]
Token = Annotated[SecretStr, AfterValidator(_fits_a_header)]
#: The UID of a transfer syntax; given as that or as PS3.6's keyword.
TransferSyntax = Annotated[str, AfterValidator(_is_transfer_syntax)]
#: A UID, or the beginning of some, which ends with a dot.
UIDPrefix = Annotated[str, Field(max_length=64, pattern=r"^[0-9]+(\.[0-9]+)*\.?$")]
