"""The port behind which bytes are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol


class Blobs(Protocol):
    """Bytes under names that are never used twice."""

    def adopt(self, path: Path) -> str:
        """Take a file over as it is and return its name; durable on return."""

    def settle(self, path: Path, descriptor: int | None = None) -> None:
        """Make a file durable before it is taken over; ``descriptor`` is open for writing to it, where one is."""

    def adopt_settled(self, paths: Sequence[Path]) -> list[str]:
        """Take settled files over and return their names; durable on return, and none is taken on an error."""

    def path(self, name: str) -> Path:
        """Return a local file that holds the bytes."""

    def delete(self, name: str) -> None:
        """Forget the bytes; nothing happens where there are none."""

    def names(self, shard: str | None = None) -> Iterator[str]:
        """Go through every name that is kept, or those of one shard."""

    def shards(self) -> list[str]:
        """Return the parts that can be gone through alone, by the beginnings of their names, the newest first."""

    def changed_at(self, name: str) -> int | None:
        """Return when the bytes took their name, in nanoseconds; None where there are none."""
