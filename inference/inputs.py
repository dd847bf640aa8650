"""What a model may read: its roles, which series may fill each, and the limits that the input is held against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from inference.fields import Limit, Strict
from inference.matching import check_condition

__all__ = ["InputRole", "Limits"]


class Limits(Strict):
    """What an input has to be for a finding to be made; outside it the documents say "not analysed", with the reason.

    ``unknown`` says, by the name of a limit, what becomes of an input that does not tell (an absent Patient's Age).
    """

    age_years: Limit | None = None
    pixel_spacing_mm: Limit | None = None
    #: Along the slices' normal.
    coverage_mm: Limit | None = None
    orientation: tuple[Literal["axial", "coronal", "sagittal"], ...] = ()
    photometric: tuple[Literal["MONOCHROME1", "MONOCHROME2"], ...] = ()
    laterality: tuple[Literal["L", "R", "B", "U"], ...] = ()
    #: The least and the most of both Rows and Columns.
    matrix: Limit | None = None
    contrast: Literal["with", "without"] | None = None
    #: What the pixels themselves have to look like.
    plausible: Literal["chest-radiograph"] | None = None
    unknown: dict[str, Literal["allow", "refuse"]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Limits:
        strange = sorted(set(self.unknown) - (set(type(self).model_fields) - {"unknown", "plausible", "matrix"}))
        if strange:
            raise ValueError(f"unknown: {strange[0]!r} is no limit whose value an input may lack")
        return self


class InputRole(Strict):
    """One role of an input set: which series may fill it, and which is best where several may."""

    role: str = Field(min_length=1)
    kind: Literal["volume", "radiograph"]
    match: dict[str, Any] = Field(default_factory=dict)
    optional: bool = False
    minimum_instances: int = Field(default=1, ge=1)
    select: Literal["best", "each"] = "best"
    prefer: tuple[Literal["axial", "original", "thinnest", "most_slices", "kernel"], ...] = ()
    kernel_preference: tuple[str, ...] = ()
    slice_spacing_mm: tuple[float, float] | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _sound(self) -> InputRole:
        check_condition(self.match, "match")
        if self.slice_spacing_mm and not 0 < self.slice_spacing_mm[0] <= self.slice_spacing_mm[1]:
            raise ValueError("slice_spacing_mm: expected [least, most] in mm, both above 0")
        return self
