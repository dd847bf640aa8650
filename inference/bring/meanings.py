"""Whether the meaning that a card gives a known code is that code's: a slip here is another finding in a record."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inference.bring.chest_codes import ANATOMY, FINDINGS

if TYPE_CHECKING:
    from inference.card import Card
    from inference.findings import Code

__all__ = ["foreign_meanings"]

#: Words that say nothing of which concept is meant.
_EMPTY = frozenset({"and", "body", "disorder", "finding", "morphologic", "observable", "structure", "the"})


def foreign_meanings(card: Card) -> tuple[str, ...]:
    """Return a line for each output whose code is known under words of which its own meaning shares none.

    Known is what PS3.16 has, as pydicom lists it, and what this project's tables have. A synonym may share no word
    either, so this is nothing to refuse.
    """
    lines = []
    for output in card.outputs:
        known = _known(output.code)
        words = _words(output.code.meaning)
        if known and words and not any(_alike(one, other) for name in known for one in _words(name) for other in words):
            lines.append(
                f"{output.name}: {output.code.value} ({output.code.scheme}) is {known[0]!r}, and the card calls it "
                f"{output.code.meaning!r}: look the code up"
            )
    return tuple(lines)


def _known(code: Code) -> list[str]:
    """Return the meanings under which a code is known, this project's own first."""
    own = [meaning for value, scheme, meaning in (*FINDINGS.values(), *ANATOMY.values()) if _is(code, value, scheme)]
    # A second to import, and only who adds a model asks.
    from pydicom.sr.codedict import codes

    listed = getattr(codes, code.scheme, None) if code.scheme in codes.schemes() else None
    found = listed.concepts.values() if listed is not None else ()
    return [*own, *(str(one.meaning) for one in found if one.value == code.value)]


def _is(code: Code, value: str, scheme: str) -> bool:
    return (code.value, code.scheme) == (value, scheme)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]{3,}", text.lower())) - _EMPTY


def _alike(one: str, other: str) -> bool:
    """Whether two words are the same, or one in the plural."""
    return one.startswith(other) or other.startswith(one)
