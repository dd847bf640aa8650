"""What the steps of a study's way stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.card import Card
from node.settings import Route, Settings
from storage.blobs import Blobs
from storage.database import Database

__all__ = ["Way"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the steps stand on; made once a process, after the fork."""

    settings: Settings
    database: Database
    blobs: Blobs
    incoming: Path
    scratch: Path
    cards: Mapping[str, Card]

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes, in their order."""
        return self.settings.route_list
