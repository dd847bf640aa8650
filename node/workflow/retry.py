"""When to try again: a value, apart from whoever acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from node.settings import RetrySettings

__all__ = ["GiveUp", "TryAgain", "decide"]


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Try the same bytes once more, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Park it: the peer answers, and refuses."""


def decide(settings: RetrySettings, *, tries: int, refusals: int, refused: bool) -> TryAgain | GiveUp:
    """Decide after a failed try.

    Parameters
    ----------
    tries, refusals
        How many there were before this one.
    refused
        Whether the peer answered and refused. One that cannot be reached is waited for as long as it takes.
    """
    if refused and refusals + 1 >= settings.refusals:
        return GiveUp()
    # The exponent is bounded: 2**1000 is no float.
    return TryAgain(min(settings.maximum_seconds, settings.first_seconds * 2 ** min(tries, 30)))
