"""The attribute matching of PS3.4 C.2.2.2, on values as DICOM JSON has them.

A key's value is read once, by :func:`matcher`, and then asked of many elements. Text is compared as Unicode in its
composed form. It is case-sensitive, but for person names, which match whatever their case, width and composition.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from storage.errors import InvalidQuery

__all__ = [
    "EMPTY",
    "Matcher",
    "combined_matcher",
    "folded",
    "has_wildcard",
    "is_universal",
    "match_values",
    "matcher",
    "split_range",
    "value_list",
]

#: Tells whether one of an element's values matches.
Matcher = Callable[[Sequence[Any]], bool]

#: What asks for an attribute without a value, where Empty Value Matching was agreed on.
EMPTY = '""'

_LISTED = frozenset({"UI", "CS"})
_NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_TIMES = frozenset({"DA", "TM", "DT"})
#: Text in which a backslash is a character as any other (PS3.5 6.2): it cannot be asked for in lists.
_UNDIVIDED = frozenset({"LT", "ST", "UT", "UR"})
#: What has no wildcards beside those that are read otherwise anyway (PS3.4 C.2.2.2.4).
_LITERAL = frozenset({"AS"})

_OFFSET = r"[+-](?:0[0-9]|1[0-4])[0-5][0-9]"
_DATETIME = re.compile(rf"([0-9]{{4,14}}(?:\.[0-9]{{1,6}})?)({_OFFSET})?")
_MOMENT = {"DA": re.compile(r"[0-9.]+"), "TM": re.compile(r"[0-9:.]+"), "DT": _DATETIME}
#: Longer than any date and time, so that what is left open ends after everything that begins like it.
_WIDTH = 24


def is_universal(value: str) -> bool:
    """Tell whether a value matches everything, what has no such attribute included (PS3.4 C.2.2.2.3)."""
    return value.strip("* ") == ""


def has_wildcard(value: str) -> bool:
    """Tell whether a value holds a character that stands for others (PS3.4 C.2.2.2.4)."""
    return "*" in value or "?" in value


def value_list(value: str) -> list[str]:
    """Split a list of values: backslashes in DIMSE, commas over HTTP; neither occurs within a UID or a code string."""
    return [one.strip() for one in value.replace("\\", ",").split(",") if one.strip()]


def folded(text: str) -> str:
    """Bring two spellings of one text together: compatibility forms, composition and case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def match_values(vr: str, values: Sequence[Any], wanted: str) -> bool:
    """Tell whether one of an element's values matches; see :func:`matcher`."""
    return matcher(vr, wanted)(values)


def matcher(vr: str, wanted: str, *, empty_values: bool = False) -> Matcher:
    """Read what is wanted of an element, and return what tells whether one of its values is so.

    Parameters
    ----------
    vr
        The attribute's value representation (PS3.5 6.2).
    wanted
        A single value, a list, a range or a wildcard pattern, as the VR allows. Of several values, with backslashes
        between them, any will do.
    empty_values
        Whether two quotation marks ask for what has no value (Empty Value Matching).

    Raises
    ------
    InvalidQuery
        When ``wanted`` cannot be read as what the VR asks for.
    """
    if empty_values and wanted.strip() == EMPTY:
        return _is_empty
    if vr in _LISTED:
        parts = value_list(wanted)
    elif vr in _UNDIVIDED:
        parts = [wanted.strip()]
    else:
        parts = [one.strip() for one in wanted.split("\\")]
    if not parts or any(is_universal(one) for one in parts):
        return _anything
    tests = [_single(vr, one) for one in parts]
    if len(tests) == 1:
        only = tests[0]
        return lambda values: any(only(one) for one in values)
    return lambda values: any(test(one) for one in values for test in tests)


def combined_matcher(dates: str, times: str) -> Callable[[str, str], bool]:
    """Read a date and a time key as one range (PS3.4 C.2.2.2.5, combined date-time matching).

    The function that is returned takes an entity's date and time.
    """
    (first_date, _, last_date), (first_time, _, last_time) = split_range("DA", dates), split_range("TM", times)
    low = _digits(first_date) + (_time_of_day(first_time) if first_date else "")
    high = _digits(last_date) + (_digits(last_time) if last_date else "")

    def matches(date: str, time: str) -> bool:
        moment = _digits(date) + _time_of_day(time)
        return bool(date) and low <= moment <= high.ljust(_WIDTH, "9")

    return matches


def split_range(vr: str, wanted: str) -> tuple[str, str, str]:
    """Split a DA, TM or DT key into first, hyphen and last; a single value is both first and last.

    Raises
    ------
    InvalidQuery
        When it is neither a value nor a range of them.
    """
    text = wanted.strip()
    moment = _MOMENT[vr]
    begin = moment.match(text)
    first = begin.group() if begin else ""
    rest = text[len(first) :].strip()
    hyphen, last = rest[:1], rest[1:].strip()
    if hyphen not in ("", "-") or (last and not moment.fullmatch(last)) or not (first or last or hyphen):
        raise InvalidQuery(f"a value for a {vr} attribute is neither a {vr} nor a range of them")
    return first, hyphen, last if hyphen else first


def _anything(_values: Sequence[Any]) -> bool:
    return True


def _is_empty(values: Sequence[Any]) -> bool:
    return all(one is None or not any(_groups(one)) for one in values)


def _single(vr: str, wanted: str) -> Callable[[Any], bool]:
    """Return what tells whether one value is as wanted."""
    if vr == "PN":
        return _name(wanted)
    if vr == "DT":
        return _datetime(wanted)
    if vr in _TIMES:
        return _moment(vr, wanted)
    if vr in _NUMBERS:
        numbers = {_number(one, vr) for one in value_list(wanted)}
        return lambda one: _as_number(one) in numbers
    pattern = _composed(wanted)
    if vr in _LITERAL or not has_wildcard(pattern):
        return lambda one: one is not None and _composed(str(one).strip()) == pattern
    return lambda one: one is not None and _fits(pattern, _composed(str(one).strip()))


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


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
    return [_without_trailing_delimiters(folded(one)) for one in texts]


def _name(wanted: str) -> Callable[[Any], bool]:
    """Match a name group by group; what is asked without ``=`` may stand in any group (PS3.5 6.2.1)."""
    asked = [_without_trailing_delimiters(one) for one in folded(wanted).split("=")]
    if len(asked) == 1:
        return lambda value: any(one and _fits(asked[0], one) for one in _groups(value))

    def matches(value: Any) -> bool:
        groups = _groups(value)
        return all(
            not part or _fits(part, groups[index] if index < len(groups) else "") for index, part in enumerate(asked)
        )

    return matches


def _without_trailing_delimiters(text: str) -> str:
    return text.strip(" ").rstrip(" ^")


def _moment(vr: str, wanted: str) -> Callable[[Any], bool]:
    first, hyphen, last = split_range(vr, wanted)
    value = _digits if vr == "DA" else _time_of_day
    if not hyphen:
        exact = value(first)
        return lambda one: one is not None and value(str(one)) == exact
    low, high = (value(first) if first else ""), _digits(last).ljust(_WIDTH, "9")
    return lambda one: bool(one) and low <= value(str(one)) <= high


def _datetime(wanted: str) -> Callable[[Any], bool]:
    """Match a date and time; where the key and the value both have an offset from UTC, by the instant they name."""
    first, hyphen, last = split_range("DT", wanted)
    low, low_offset = _parts(first)
    high, high_offset = _parts(last)

    def matches(value: Any) -> bool:
        text = str(value or "").strip()
        if not text:
            return False
        if not hyphen:
            return _local(text, low_offset).ljust(_WIDTH, "0") == low.ljust(_WIDTH, "0")
        return (not low or low.ljust(_WIDTH, "0") <= _local(text, low_offset).ljust(_WIDTH, "0")) and (
            not high or _local(text, high_offset).ljust(_WIDTH, "0") <= high.ljust(_WIDTH, "9")
        )

    return matches


def _parts(text: str) -> tuple[str, timedelta | None]:
    """Split a DT into its digits and its offset from UTC."""
    found = _DATETIME.fullmatch(text)
    if found is None:
        return _digits(re.split(r"[+-]", text, maxsplit=1)[0]), None
    digits, offset = _digits(found[1]), found[2]
    if offset is None:
        return digits, None
    shift = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
    return digits, -shift if offset[0] == "-" else shift


def _local(text: str, offset: timedelta | None) -> str:
    """Return a DT's digits as a clock with this offset would have shown them; an offset that is not said is any."""
    digits, own = _parts(text)
    if offset is None or own is None or len(digits) < 10:
        return digits
    precision = min(len(digits), 14) & ~1
    layout = "%Y%m%d%H%M%S"[: precision - 2]
    try:
        moved = datetime.strptime(digits[:precision], layout) - own + offset
    except (ValueError, OverflowError):
        return digits
    # A value that is exact to the hour only moves by whole hours; its minutes are not known.
    return moved.strftime(layout) + digits[precision:]


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def _time_of_day(text: str) -> str:
    return _digits(text).ljust(_WIDTH, "0")


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
