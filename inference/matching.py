"""The one rule language of routes and cards: conditions over DICOM attributes, with the reasons for each verdict.

A condition is a mapping of attribute keyword to what is wanted, all of which must hold, plus three combinators::

    Modality: CT                             equal (without regard to case)
    BodyPartExamined: [CHEST, THORAX]        one of
    StudyDescription: "*CHEST*"              wildcards * and ?
    SliceThickness: {min: 0.5, max: 5}       numbers
    StudyDate: {min: "20240101"}             dates, as DICOM writes them
    any: [ ... ]   all: [ ... ]   not: { ... }

A multi-valued attribute matches when one of its values does. An absent or empty attribute matches nothing but
``not``. An unknown keyword is refused when the rule is read, since a mistyped rule that never matches is worse
than one that does not load.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

__all__ = ["Verdict", "check_condition", "evaluate", "keywords"]

_COMBINATORS = ("any", "all", "not")
#: Value representations whose ranges are of text that sorts as it counts (PS3.5 6.2), and how a bound is written.
_TEXT_RANGES = {
    "DA": (r"\d{8}", 'a date in quotes, as DICOM writes it: "20240131"'),
    "TM": (r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", 'a time in quotes, as DICOM writes it: "0830"'),
    "DT": (r"\d{4,14}(\.\d{1,6})?", 'a date and time in quotes, as DICOM writes it: "20240131083000"'),
}
#: What the node derives and that DICOM has as no keyword of its own.
DERIVED_KEYWORDS = frozenset({"CallingAETitle"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds, and why: one line a leaf that was looked at."""

    matched: bool
    reasons: tuple[str, ...]


def check_condition(condition: object, where: str) -> None:
    """Refuse a condition that cannot be meant.

    Raises
    ------
    ValueError
        Naming the place and what was expected.
    """
    if not isinstance(condition, Mapping):
        raise ValueError(  # noqa: TRY004 - one kind of error for whoever reads rules
            f"{where}: expected a mapping of DICOM keywords, found {type(condition).__name__}"
        )
    for key, wanted in condition.items():
        here = f"{where}.{key}"
        if key in ("any", "all"):
            if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted:
                raise ValueError(f"{here}: expected a list of conditions")
            for number, inner in enumerate(wanted):
                check_condition(inner, f"{here}[{number}]")
        elif key == "not":
            check_condition(wanted, here)
        elif key not in DERIVED_KEYWORDS and (not isinstance(key, str) or tag_for_keyword(key) is None):
            raise ValueError(f"{here}: not a DICOM keyword (PS3.6) nor one of any, all, not")
        elif isinstance(wanted, Mapping):
            _check_range(key, wanted, here)
        else:
            _check_values(wanted, here)


def _check_range(keyword: str, wanted: Mapping[str, Any], here: str) -> None:
    if not wanted or set(wanted) - {"min", "max"}:
        raise ValueError(f"{here}: a range has min, max or both, and nothing else")
    representation = "" if keyword in DERIVED_KEYWORDS else dictionary_VR(keyword)
    pattern, expected = _TEXT_RANGES.get(representation, (None, "a number"))
    for end, bound in wanted.items():
        if pattern is None:
            sound = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
        else:
            sound = isinstance(bound, str) and re.fullmatch(pattern, bound) is not None
        if not sound:
            raise ValueError(f"{here}.{end}: expected {expected}, found {bound!r}")
    if len(wanted) == 2 and wanted["min"] > wanted["max"]:
        raise ValueError(f"{here}: min is above max, so that nothing can match")


def _check_values(wanted: Any, here: str) -> None:
    values = _values(wanted)
    if not values:
        raise ValueError(f"{here}: expected a value, a list, a wildcard or a range")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)):
            raise ValueError(  # noqa: TRY004 - one kind of error for whoever reads rules
                f"{here}: expected text or a number, found {one!r}; put text that YAML reads otherwise in quotes"
            )


def keywords(condition: Mapping[str, Any]) -> set[str]:
    """Return every attribute keyword that a condition looks at."""
    found: set[str] = set()
    for key, wanted in condition.items():
        if key in ("any", "all"):
            for inner in wanted:
                found |= keywords(inner)
        elif key == "not":
            found |= keywords(wanted)
        else:
            found.add(key)
    return found


def evaluate(condition: Mapping[str, Any], attributes: Mapping[str, Any]) -> Verdict:
    """Hold a checked condition against attributes (keyword to value or list of values).

    Returns
    -------
    Verdict
        With a reason for every leaf that was looked at, in the order of the rule.
    """
    reasons: list[str] = []
    matched = True
    for key, wanted in condition.items():
        verdict = _evaluate_key(key, wanted, attributes)
        matched = matched and verdict.matched
        reasons.extend(verdict.reasons)
    return Verdict(matched, tuple(reasons))


def _evaluate_key(key: str, wanted: Any, attributes: Mapping[str, Any]) -> Verdict:
    if key in _COMBINATORS:
        if key == "not":
            inner = evaluate(wanted, attributes)
            return Verdict(not inner.matched, tuple(f"not ({reason})" for reason in inner.reasons))
        verdicts = [evaluate(condition, attributes) for condition in wanted]
        if key == "all":
            return Verdict(all(v.matched for v in verdicts), tuple(r for v in verdicts for r in v.reasons))
        hits = [v for v in verdicts if v.matched]
        shown = hits[:1] or verdicts
        return Verdict(bool(hits), tuple(r for v in shown for r in v.reasons))
    found = _values(attributes.get(key))
    matched = any(_leaf(wanted, value) for value in found)
    shown_value = "\\".join(str(value) for value in found) if found else "absent"
    return Verdict(matched, (f"{key} {'is' if matched else 'is not'} {_show(wanted)} ({shown_value})",))


def _leaf(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Mapping):
        return _in_range(wanted, value)
    return any(_equal(one, value) for one in _values(wanted))


def _equal(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        number = _number(value)
        return number is not None and number == float(wanted)
    pattern = str(wanted).strip().casefold()
    text = str(value).strip().casefold()
    if "*" in pattern or "?" in pattern:
        return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text) is not None
    return pattern == text


def _in_range(wanted: Mapping[str, Any], value: Any) -> bool:
    lower, upper = wanted.get("min"), wanted.get("max")
    if any(isinstance(bound, str) for bound in (lower, upper)):
        text = str(value)
        return (lower is None or text >= str(lower)) and (upper is None or text <= str(upper))
    number = _number(value)
    if number is None:
        return False
    return (lower is None or number >= float(lower)) and (upper is None or number <= float(upper))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return [one for one in value if one not in (None, "")]
    return [value]


def _show(wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        return f"in {wanted.get('min', '')}..{wanted.get('max', '')}"
    return " or ".join(str(one) for one in _values(wanted))
