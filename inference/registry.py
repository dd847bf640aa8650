"""All versions of all models that a node has on disk, found by name or by name and version.

::

    <models>/<name>/card.yaml                 one version: what is shipped
    <models>/<name>/<version>/card.yaml       any number of further ones beside it
    <data_dir>/models/<name>/<version>/...    what was added at run time, laid out the same

Which of them runs is not decided here: that is a stage, and stages are the node's state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from inference.card import Card, load_card
from inference.errors import CardError

__all__ = ["Registry", "card_sha256", "card_of", "parted", "version_folder"]

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Registry:
    """Cards by name and version, in the order of their names.

    Parameters
    ----------
    cards
        At most one of each name and version.
    problems
        Folders whose card could not be loaded, with the reason: such a version is there and cannot run.
    """

    def __init__(self, cards: Iterable[Card], problems: Mapping[Path, str] | None = None) -> None:
        ordered = sorted(cards, key=lambda card: (card.name, card.version))
        self._cards = {(card.name, card.version): card for card in ordered}
        self.problems: Mapping[Path, str] = dict(problems or {})

    @classmethod
    def from_folder(cls, path: Path, *, lenient: bool = False, hashed: bool = True) -> Registry:
        """Load every ``<path>/<name>/card.yaml`` and ``<path>/<name>/<version>/card.yaml``.

        A folder without a card is no model.

        Parameters
        ----------
        lenient
            Keep what cannot be loaded as a problem, and go on.
        hashed
            As of :func:`inference.card.load_card`.

        Raises
        ------
        CardError
            If the folder is absent, a card is wrong, its name or version is not its folder's, or a version is there
            twice.
        """
        path = Path(path)
        if not path.is_dir():
            if lenient:
                return cls(())
            raise CardError(f"{path}: expected a folder with one folder a model")
        cards: dict[tuple[str, str], Card] = {}
        problems: dict[Path, str] = {}
        for file in sorted((*path.glob("*/card.yaml"), *path.glob("*/*/card.yaml"))):
            if file.relative_to(path).parts[0].startswith("."):
                continue
            try:
                card = card_of(file, path, hashed=hashed)
                if (card.name, card.version) in cards:
                    first = cards[card.name, card.version].path
                    raise CardError(f"{file}: version: {card.version!r} of {card.name} stands in {first} already")
            except CardError as problem:
                if not lenient:
                    raise
                problems[file.parent] = str(problem)
                continue
            cards[card.name, card.version] = card
        return cls(cards.values(), problems)

    def merged(self, other: Registry) -> Registry:
        """Return both; where both have a version, this one's stands."""
        return Registry({**other._cards, **self._cards}.values(), {**other.problems, **self.problems})

    def get(self, name: str) -> Card:
        """Return the card of ``name@version``, or of ``name`` where it has one version only.

        Raises
        ------
        CardError
            If there is no such model or version, with those that there are.
        """
        model, version = parted(name)
        found = self.versions(model)
        if version is not None:
            found = tuple(card for card in found if card.version == version)
        if len(found) == 1:
            return found[0]
        if found:
            known = ", ".join(card.version for card in found)
            raise CardError(f"model {model!r} has versions {known}: name one, as {model}@{found[-1].version}")
        named = self.names() if version is None else (f"{one.name}@{one.version}" for one in self)
        known = ", ".join(named) or "none"
        raise CardError(f"no model {name!r}; the models here: {known}")

    def versions(self, name: str) -> tuple[Card, ...]:
        """Return every version of a model."""
        return tuple(card for card in self if card.name == name)

    def names(self) -> tuple[str, ...]:
        """Return every model's name."""
        return tuple(dict.fromkeys(card.name for card in self))

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards.values())

    def __len__(self) -> int:
        return len(self._cards)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        model, version = parted(name)
        return any(card.name == model and version in (None, card.version) for card in self)


def parted(reference: str) -> tuple[str, str | None]:
    """Part ``lung-ct@1.0.0`` into name and version; without a version it means whichever is live."""
    name, at, version = reference.partition("@")
    return name, version if at else None


def version_folder(root: Path, name: str, version: str) -> Path:
    """Return where a version lies that was added at run time.

    Raises
    ------
    CardError
        If the version cannot be a folder's name.
    """
    if not _VERSION.fullmatch(version):
        raise CardError(f"version: {version!r} of {name}: expected up to 64 letters, digits and . _ + -")
    return root / name / version


def card_of(file: Path, root: Path, *, hashed: bool = True) -> Card:
    """Load a card that lies in ``root`` as models do; ``hashed`` as of :func:`inference.card.load_card`.

    Raises
    ------
    CardError
        If it is wrong, or its name or version is not its folder's.
    """
    card = load_card(file, hashed=hashed)
    name, *rest = file.relative_to(root).parent.parts
    if card.name != name:
        raise CardError(f"{file}: name: expected {name!r}, the folder's name, found {card.name!r}")
    if rest and card.version != rest[0]:
        raise CardError(f"{file}: version: expected {rest[0]!r}, the folder's name, found {card.version!r}")
    return card


def card_sha256(card: Card) -> str:
    """Return the hex SHA-256 of a card's own bytes, which name the SHA-256 of every file of the version."""
    return hashlib.sha256(card.path.read_bytes()).hexdigest()
