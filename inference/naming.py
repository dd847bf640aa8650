"""What outputs are called: by name and code they have to stand apart, and samples name none that there is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.coding import OPEN_SCHEME

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["check_names"]


def check_names(card: Card) -> None:
    """Hold what outputs are called against each other: what is said of one must not stand for another.

    Raises
    ------
    ValueError
        With the part of the card that is wrong.
    """
    names: set[str] = set()
    coded: dict[tuple[str, str], str] = {}
    for output in card.outputs:
        if output.name in names:
            raise ValueError(f"outputs: the name {output.name!r} stands twice")
        names.add(output.name)
        key = output.code.scheme, output.code.value
        # A code that is still open stands for none.
        if key in coded and output.code.scheme != OPEN_SCHEME:
            raise ValueError(
                f"outputs: {coded[key]!r} and {output.name!r} have the same code, {key[1]} ({key[0]}): documents "
                "could not tell them apart; where no standard has one for each, take a scheme that begins with 99"
            )
        coded[key] = output.name
    for sample in card.samples:
        strange = sorted(set(sample.expect) - names)
        if strange:
            known = ", ".join(sorted(names))
            raise ValueError(f"samples: {sample.name!r} expects {strange[0]!r}; the outputs are {known}")
