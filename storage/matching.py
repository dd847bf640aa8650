"""The attribute matching of PS3.4 C.2.2.2, on values as DICOM JSON has them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import InvalidQuery

__all__ = ["folded", "is_universal", "match_values", "value_list"]

_LISTED = frozenset({"UI", "CS"})
_NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_TIMES = frozenset({"DA", "TM", "DT"})


def is_universal(value: str) -> bool:
    """Tell whether a value matches everything, what has no such attribute included (PS3.4 C.2.2.2.3)."""
    return value.strip("* ") == ""


def value_list(value: str) -> list[str]:
    """Split a list of values: backslashes in DIMSE, commas over HTTP; neither occurs within a UID or a code string."""
    return [one.strip() for one in value.replace("\\", ",").split(",") if one.strip()]


def folded(text: str) -> str:
    """Bring two spellings of one text together: compatibility forms, composition and case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def match_values(vr: str, values: Sequence[Any], wanted: str) -> bool:
    """Tell whether one of an element's values matches.

    Parameters
    ----------
    vr
        The attribute's value representation (PS3.5 6.2).
    values
        The element's values as DICOM JSON has them: text, numbers, person names as objects.
    wanted
        A single value, a list, a range or a wildcard pattern, as the VR allows.

    Raises
    ------
    InvalidQuery
        When ``wanted`` cannot be read as what the VR asks for.
    """
    if vr == "PN":
        return any(_matches_name(_groups(one), wanted) for one in values)
    if vr in _TIMES:
        first, last = _range(vr, wanted)
        return any(first <= _time(vr, str(one)) <= last for one in values if one is not None and str(one))
    if vr in _NUMBERS:
        numbers = {_number(one, vr) for one in value_list(wanted)}
        return any(_as_number(one) in numbers for one in values)
    if vr in _LISTED:
        patterns = value_list(wanted)
        return any(_fits(pattern, str(one).strip()) for one in values for pattern in patterns)
    return any(_fits(wanted.strip(), str(one).strip()) for one in values if one is not None)


def _fits(pattern: str, text: str) -> bool:
    """Match ``*`` and ``?`` in time that no pattern can make exponential, as a backtracking expression would."""
    at = place = 0
    star, resume = -1, 0
    while at < len(text):
        if place < len(pattern) and pattern[place] == "*":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", text[at]):
            at += 1
            place += 1
        elif star >= 0:
            # The last star takes one more; those before it never need to.
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return not pattern[place:].strip("*")


def _groups(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        texts = [str(value.get(name) or "") for name in ("Alphabetic", "Ideographic", "Phonetic")]
    else:
        texts = str(value or "").split("=")
    return [folded(one).strip(" ^") for one in texts]


def _matches_name(groups: Sequence[str], wanted: str) -> bool:
    """Match a name group by group; what is asked without ``=`` may stand in any group (PS3.5 6.2.1)."""
    asked = [_without_trailing_delimiters(one) for one in folded(wanted).split("=")]
    if len(asked) == 1:
        return any(one and _fits(asked[0], one) for one in groups)
    return all(
        not part or _fits(part, groups[index] if index < len(groups) else "") for index, part in enumerate(asked)
    )


def _without_trailing_delimiters(text: str) -> str:
    return text.strip(" ").rstrip(" ^")


def _range(vr: str, wanted: str) -> tuple[str, str]:
    text = wanted.strip()
    # In a DT a hyphen may begin an offset; offsets are not compared here.
    first, hyphen, last = text.partition("-")
    for one in (first, last):
        if one.strip() and not re.fullmatch(r"[0-9:.+]+", one.strip()):
            raise InvalidQuery(f"a value for a {vr} attribute is neither a {vr} nor a range of them")
    if not hyphen:
        exact = _time(vr, text)
        return exact, exact
    low = _time(vr, first.strip()) if first.strip() else ""
    high = _digits(last) + "9" * 20 if last.strip() else "9" * 40
    return low, high


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def _time(vr: str, text: str) -> str:
    digits = _digits(re.split(r"[+-]", text, maxsplit=1)[0] if vr == "DT" else text)
    return digits if vr == "DA" else digits.ljust(20, "0")


def _number(text: str, vr: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidQuery(f"a value for a {vr} attribute is no number") from None


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
