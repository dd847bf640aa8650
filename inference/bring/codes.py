"""Codes for what a foreign model's labels name: those that the standard itself gives, and an open place for all others.

A label is coded only where its words are, letter for letter, the name of a concept in the context groups from which
DICOM takes segmented property types (PS3.16 CID 7151 and its parts, CID 7140 for the brain), or one of a few names of
FreeSurfer's that mean such a concept. Everything else an engineer must code: a guess would stand in a patient's record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from inference.coding import OPEN_SCHEME, why_no_code
from inference.errors import CardError
from inference.findings import Code

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["ABNORMAL", "ANATOMY", "open_code", "category_of", "open_names", "parse_code", "suggest"]

ANATOMY = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
ABNORMAL = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
#: Context groups of PS3.16, in the order in which they are asked, and the category (CID 7150) that they stand for.
_GROUPS = ((7192, ANATOMY), (7140, ANATOMY), (7194, ABNORMAL), (7191, _TISSUE))
#: Names of FreeSurfer's look-up table (and British spellings) whose concept PS3.16 has under another name.
_ALIASES = {
    "greymatter": "graymatter",
    "cerebellumwhitematter": "cerebellarwhitematter",
    "cerebellumcortex": "cerebellarcortex",
    "inferiorlateralventricle": "inferiorhornoflateralventricle",
    "inflatvent": "inferiorhornoflateralventricle",
    "thalamusproper": "thalamus",
    "caudate": "caudatenucleus",
    "pallidum": "globuspallidus",
    "accumbensarea": "nucleusaccumbens",
    "3rdventricle": "thirdventricle",
    "4thventricle": "fourthventricle",
    "csf": "cerebrospinalfluid",
    "brainmask": "brain",
    "urinarybladder": "bladder",
}


def suggest(label: str) -> tuple[Code, Code] | None:
    """Return (code, category) of a label that names a concept of PS3.16, or None."""
    from pydicom.sr.codedict import codes

    key = re.sub(r"[^a-z0-9]", "", label.lower())
    key = _ALIASES.get(key, key)
    for number, category in _GROUPS:
        group = getattr(codes, f"cid{number}")
        for name in group.dir():
            if name.lower() == key:
                found = getattr(group, name)
                return Code(value=found.value, scheme=found.scheme_designator, meaning=found.meaning), category
    return None


def category_of(code: Code) -> Code:
    """Return the category of a code that somebody gave: that of its context group, else an anatomical structure."""
    from pydicom.sr.codedict import codes

    for number, category in _GROUPS:
        group = getattr(codes, f"cid{number}")
        for name in group.dir():
            found = getattr(group, name)
            if (found.value, found.scheme_designator) == (code.value, code.scheme):
                return category
    return ANATOMY


def open_code(label: str) -> Code:
    """Return the place that stands for a code until somebody fills it in."""
    return Code(value="open", scheme=OPEN_SCHEME, meaning=label[:64])


def open_names(card: Card) -> tuple[str, ...]:
    """Return the outputs of a card whose codes are still open: such a card may not run on patients."""
    return tuple(output.name for output in card.outputs if output.code.scheme == OPEN_SCHEME)


def parse_code(text: str, names: Iterable[str]) -> tuple[str, Code]:
    """Read ``label=VALUE,SCHEME,MEANING``; the meaning may hold commas.

    Raises
    ------
    CardError
        If it is written otherwise, or names no label of the model.
    """
    label, equals, code = text.partition("=")
    parts = [part.strip() for part in code.split(",", 2)]
    label, known = label.strip(), list(names)
    if not equals or len(parts) != 3 or not all(parts):
        raise CardError(f"{text!r}: expected label=VALUE,SCHEME,MEANING, such as spleen=78961009,SCT,Spleen")
    if label not in known:
        raise CardError(f"{text!r}: the model has no label {label!r}; it has {', '.join(known)}")
    if len(parts[0]) > 16 or len(parts[1]) > 16 or len(parts[2]) > 64:
        raise CardError(f"{text!r}: a code's value and scheme have at most 16 characters, its meaning 64 (PS3.3 8.1)")
    problem = why_no_code(parts[0], parts[1])
    if problem:
        raise CardError(f"{text!r}: {problem}")
    return label, Code(value=parts[0], scheme=parts[1], meaning=parts[2])


def as_values(code: Code) -> dict[str, Any]:
    """Return a code as a card writes it."""
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}
