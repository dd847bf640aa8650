"""All models that a node has: one folder each, found by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from inference.card import Card, load_card
from inference.errors import CardError

__all__ = ["Registry"]


class Registry:
    """Cards by name, in the order of their names."""

    def __init__(self, cards: Iterable[Card]) -> None:
        self._cards = {card.name: card for card in sorted(cards, key=lambda card: card.name)}

    @classmethod
    def from_folder(cls, path: Path) -> Registry:
        """Load every ``<path>/<name>/card.yaml``; a folder without a card is no model.

        Raises
        ------
        CardError
            If the folder is absent, a card is wrong, or a card's name is not its folder's.
        """
        path = Path(path)
        if not path.is_dir():
            raise CardError(f"{path}: expected a folder with one folder a model")
        cards = []
        for file in sorted(path.glob("*/card.yaml")):
            card = load_card(file)
            if card.name != file.parent.name:
                raise CardError(f"{file}: name: expected {file.parent.name!r}, the folder's name, found {card.name!r}")
            cards.append(card)
        return cls(cards)

    def get(self, name: str) -> Card:
        """Return the card of a model.

        Raises
        ------
        CardError
            If there is no such model, with the names that there are.
        """
        try:
            return self._cards[name]
        except KeyError:
            known = ", ".join(self._cards) or "none"
            raise CardError(f"no model {name!r}; the models here: {known}") from None

    def names(self) -> tuple[str, ...]:
        """Return every model's name."""
        return tuple(self._cards)

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards.values())

    def __len__(self) -> int:
        return len(self._cards)

    def __contains__(self, name: object) -> bool:
        return name in self._cards
