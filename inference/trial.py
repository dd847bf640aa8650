"""Loads a model where a node would, in an engine's process of its own, and runs it once on a made-up input.

So what cannot be loaded, or cannot answer at all, is told before a study finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.errors import EngineFailure
from inference.host import EngineHost

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["why_not_loaded"]


def why_not_loaded(card: Card) -> str:
    """Return why a model cannot be loaded and run here, within the limits of its card; "" where it can."""
    try:
        with EngineHost(card) as host:
            host.load()
            host.rehearse()
    except EngineFailure as failure:
        return failure.text
    return ""
