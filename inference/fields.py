"""What the parts of a model's card are made of: strict models, coded concepts and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from inference.coding import why_no_code
from inference.findings import Code

__all__ = ["CodeField", "Limit", "OneOf", "Strict"]


class Strict(BaseModel):
    """A part of a card: unknown keys are refused, numbers are finite, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OneOf(Strict):
    """A step: a mapping with exactly one key, the step's name, over its parameters."""

    @model_validator(mode="after")
    def _one(self) -> OneOf:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        (name,) = self.model_fields_set
        if getattr(self, name) is None:
            raise ValueError(f"{name}: expected its parameters; {{}} where it has none")
        return self


def _code(value: object) -> object:
    if isinstance(value, Code):
        return value
    expected = {"value", "scheme", "meaning"}
    if not isinstance(value, Mapping) or set(value) != expected or not all(value[k] for k in expected):
        raise ValueError("expected a code: {value, scheme, meaning}")
    code = Code(value=str(value["value"]), scheme=str(value["scheme"]), meaning=str(value["meaning"]))
    problem = why_no_code(code.value, code.scheme)
    if problem:
        raise ValueError(problem)
    return code


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] <= value[1]:
        raise ValueError("expected [least, most], the least first")
    return value


#: A coded concept as a card writes it.
CodeField = Annotated[Code, BeforeValidator(_code)]
#: [least, most], both included.
Limit = Annotated[tuple[float, float], AfterValidator(_ordered)]
