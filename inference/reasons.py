"""Why the gate makes no finding of an input or an answer, each reason with its standard code where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inference.findings import Code

__all__ = ["REASONS"]


def _dcm(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="DCM", meaning=meaning)


_OUT_OF_RANGE: Final = _dcm("114009", "Value out of range")  # CID 42
_NOT_SUPPORTED: Final = _dcm("110522", "Object Types not supported")  # CID 9300
_POSITIONING: Final = _dcm("111209", "Positioning")  # CID 7011
_PROCESSING: Final = _dcm("111219", "Inappropriate image processing")  # CID 7011

#: Every reason of the gate, with its code where a standard has one that says no more and no less.
REASONS: Final[Mapping[str, Code | None]] = {
    "modality": _NOT_SUPPORTED,
    "view": _POSITIONING,
    "body-part": None,
    "outside-intended-use": None,
    "photometric": _NOT_SUPPORTED,
    "matrix": _OUT_OF_RANGE,
    "pixel-spacing": _OUT_OF_RANGE,
    "slice-spacing": _OUT_OF_RANGE,
    "orientation": _POSITIONING,
    "coverage": _dcm("130576", "Anatomy coverage incomplete"),  # CID 6315
    "laterality": None,
    "contrast": _dcm("130580", "Inadequate contrast enhancement"),  # CID 6315
    "age": _OUT_OF_RANGE,
    "not-a-picture": _dcm("111213", "No image"),  # CID 7011
    "negative-image": _PROCESSING,
    "polarity-unknown": None,
    "narrow-range": None,
    "turned-image": _POSITIONING,
    "not-a-frontal-chest": None,
    "burned-in-annotation": None,
    "empty-mask": None,
    "volume-out-of-range": _OUT_OF_RANGE,
    "area-out-of-range": _OUT_OF_RANGE,
    "value-out-of-range": _OUT_OF_RANGE,
}
