"""What is wrong with a card in words: the key, what was expected and, where that is known, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["explained"]

_PATTERNS = {
    "sha256": "expected the 64 hexadecimal digits that sha256sum prints",
    "name": "expected small letters, digits and . _ -, beginning with a letter or a digit, at most 63",
    "version": "expected letters, digits and . _ + -, beginning with a letter or a digit, at most 64",
}
_BOUNDS = frozenset({"less_than", "less_than_equal", "greater_than", "greater_than_equal"})
#: What other tools call a step, and what the card has for it.
_STEPS = {
    "normalize": "a mean and a standard deviation for each channel belong into the graph (docs/models.md shows how)",
    "normalise": "a mean and a standard deviation for each channel belong into the graph (docs/models.md shows how)",
    "resize": "radiograph_input: {size: ...} resizes a radiograph, resample: {spacing_mm: ...} a volume",
    "sigmoid": "after the model: postprocess: - activation: {kind: sigmoid}",
    "softmax": "after the model: postprocess: - activation: {kind: softmax}",
}


def explained(errors: Iterable[Any], steps: Sequence[str], content: Mapping[Any, Any]) -> list[str]:
    """Return what pydantic found, a line for each mistake that stands for itself.

    Parameters
    ----------
    steps
        What ``preprocess`` knows.
    content
        What the card holds, for the names of its outputs.
    """
    found = list(errors)
    places = [tuple(one["loc"]) for one in found]
    return [_explained(one, steps, content) for one in found if not _follows(one, places)]


def _follows(error: Any, places: Sequence[tuple[Any, ...]]) -> bool:
    """Whether an error only says that what is wrong inside of a list is not in the list."""
    place = tuple(error["loc"])
    return error["type"] == "too_short" and any(one[: len(place)] == place and one != place for one in places)


def _explained(error: Any, steps: Sequence[str], content: Mapping[Any, Any]) -> str:
    place = [str(part) for part in error["loc"]]
    return f"{'.'.join(place) or 'card'}: {_said(error, place, steps)}{_whose(error['loc'], content)}"


def _whose(place: Sequence[Any], content: Mapping[Any, Any]) -> str:
    """Name the output that a place in a list of them means: nobody counts thirty."""
    if len(place) < 3 or place[0] != "outputs":
        return ""
    outputs = content.get("outputs")
    one = outputs[place[1]] if isinstance(outputs, list) and isinstance(place[1], int) else None
    name = one.get("name") if isinstance(one, Mapping) else None
    return f" (the output {name[:64]!r})" if isinstance(name, str) else ""


def _said(error: Any, place: Sequence[str], steps: Sequence[str]) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        if place[0] == "preprocess" and len(place) == 3:
            hint = f"; {_STEPS[place[2]]}" if place[2] in _STEPS else ""
            return f"unknown key; the steps are {', '.join(steps)}{hint}"
        return "unknown key"
    if kind == "missing":
        return "missing; this key is required"
    if kind == "string_pattern_mismatch" and place and place[-1] in _PATTERNS:
        return f"{_PATTERNS[place[-1]]}, found {str(given)[:80]!r}"
    if kind == "string_type" and isinstance(given, int | float):
        return f'expected text: write it in quotes, "{given}"'
    if kind in _BOUNDS and isinstance(given, int | float | str):
        return f"expected {str(error['msg']).removeprefix('Input should be ')}, found {str(given)[:80]}"
    return str(error["msg"]).removeprefix("Value error, ")
