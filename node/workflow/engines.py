"""The engines of one performer: a process for each model that it runs, kept while there is use and room for it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from inference.card import Card
from inference.engine import Job
from inference.engines.choice import read_choice, tunable, why_unreadable
from inference.engines.modelfile import model_file
from inference.errors import EngineFailure
from inference.findings import Findings
from inference.host import EngineHost
from inference.ownership import write_whole
from inference.processtree import tree_resident_bytes
from inference.sizing import cores
from node.settings import PerformSettings, Settings

__all__ = [
    "Engines",
    "cache_of",
    "cores_of",
    "half_of_memory",
    "note_cores",
    "share_of_cores",
    "share_of_memory",
    "unreadable",
]

_log = structlog.get_logger("overread.engines")

#: How long a model is left alone that had no room, or whose server was not there; each time twice as long.
_FIRST_HELD_SECONDS = 5.0
_MOST_HELD_SECONDS = 60.0
#: The file in the engines' folder that says how many cores the node has.
_CORES = "cores"


@dataclass(slots=True)
class _Kept:
    host: EngineHost
    #: Which way was measured to be the fastest when it was started.
    way: str
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)


class Engines:
    """Engine processes by the digest of their model, started when first needed; several threads may run jobs.

    Parameters
    ----------
    folder
        For what the processes write.
    cache
        For what they have compiled and measured.
    cores
        How many each may use, where its card does not say.
    memory_mb
        What they may hold together: before another is started, those that are idle are ended, the one that has been
        so for longest first. One alone may always run, and hold no more than this whatever its card says.
    idle_seconds
        How long one is kept that has nothing to do.
    """

    def __init__(self, folder: Path, *, cache: Path, cores: int, memory_mb: float, idle_seconds: float) -> None:
        self._folder = folder
        self._cache = cache
        self._cores = cores
        self._memory_mb = memory_mb
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._taken: Counter[str] = Counter()
        self._most: dict[str, int] = {}
        self._held: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    def full(self) -> set[str]:
        """Return the digests of models that can take nothing more now: they run what they may, or are left alone."""
        now = time.monotonic()
        with self._lock:
            self._held = {name: until for name, until in self._held.items() if until > now}
            taken = {digest for digest, count in self._taken.items() if count >= self._most[digest]}
            return taken | set(self._held)

    def begin(self, digest: str, most: int) -> None:
        """Count a workitem towards its model's concurrency, from when it is taken to its last document."""
        with self._lock:
            self._taken[digest] += 1
            self._most[digest] = most

    def end(self, digest: str) -> None:
        """Count it no longer."""
        with self._lock:
            self._taken[digest] -= 1
            if not self._taken[digest]:
                del self._taken[digest], self._most[digest]

    def run(self, card: Card, job: Job, heartbeat: Callable[[], None]) -> Findings:
        """Run one job on its card's engine.

        Raises
        ------
        EngineFailure
            ``no-room``, if there is no memory for it beside those that are at work; and what
            :meth:`inference.host.EngineHost.run` raises.
        """
        try:
            kept = self._take(card)
            try:
                findings = kept.host.run(job, heartbeat=heartbeat)
                self._pauses.pop(card.digest, None)
                return findings
            finally:
                with self._lock:
                    kept.users -= 1
                    kept.used_at = time.monotonic()
        except EngineFailure as failure:
            if failure.reason in ("no-room", "unreachable"):
                self._hold(card.digest)
            raise

    def _hold(self, digest: str) -> None:
        with self._lock:
            if digest not in self._held:
                pause = self._pauses.get(digest, _FIRST_HELD_SECONDS)
                self._pauses[digest] = min(2 * pause, _MOST_HELD_SECONDS)
                self._held[digest] = time.monotonic() + pause

    def identity(self, card: Card) -> tuple[str, str] | None:
        """Return what runs a model and how precisely it computes; None where it is not loaded, or does not say."""
        with self._lock:
            kept = self._kept.get(card.digest)
            said = kept.host.loaded if kept is not None and kept.host.pid is not None else {}
        return (str(said["provider"]), str(said["precision"])) if said.get("provider") else None

    def close_idle(self, serving: Set[str]) -> None:
        """End the processes that have had nothing to do for long, or whose digest is not among those in use.

        One whose model was measured anew since it was started is ended as well, so that the next runs the new way.
        """
        long_ago = time.monotonic() - self._idle_seconds
        with self._lock:
            self._close(
                [
                    key
                    for key, one in self._kept.items()
                    if not one.users
                    and (one.used_at < long_ago or key not in serving or one.way != self._way_of(one.host.card))
                ]
            )

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._close(list(self._kept))

    def _take(self, card: Card) -> _Kept:
        with self._lock:
            kept = self._kept.get(card.digest)
            if kept is None:
                self._make_room(card)
                self._tell_unreadable(card)
                kept = self._kept[card.digest] = _Kept(
                    EngineHost(
                        card, folder=self._folder, cache=self._cache, cores=self._cores, memory_mb=self._memory_mb
                    ),
                    way=self._way_of(card),
                )
            kept.users += 1
            return kept

    def _tell_unreadable(self, card: Card) -> None:
        if why := unreadable(card, self._cache, self._cores):
            _log.warning("what was measured of a model cannot be read; ONNX Runtime runs it", model=card.name, why=why)

    def _way_of(self, card: Card) -> str:
        if not tunable(card):
            return ""
        try:
            choice = read_choice(card, model_file(card, ".onnx"), self._cache, self._cores)
        except EngineFailure:
            return ""
        return str(choice.way) if choice is not None else ""

    def _make_room(self, card: Card) -> None:
        """End idle processes until another fits in: one at work may still take all that its card lets it."""
        idle = sorted(
            (key for key, one in self._kept.items() if not one.users), key=lambda key: self._kept[key].used_at
        )
        wanted = self._limit_mb(card)
        while self._kept and self._held_mb() + wanted > self._memory_mb:
            if not idle:
                raise EngineFailure(
                    "no-room",
                    f"{card.name} may take {wanted:.0f} MB, beside the models at work that is "
                    f"more than {self._memory_mb:.0f} MB (perform.memory_mb)",
                )
            self._close([idle.pop(0)])

    def _held_mb(self) -> float:
        return sum(
            self._limit_mb(one.host.card) if one.users else _resident_mb(one.host) for one in self._kept.values()
        )

    def _limit_mb(self, card: Card) -> float:
        return min(card.resources.memory_mb, self._memory_mb)

    def _close(self, keys: list[str]) -> None:
        for key in keys:
            kept = self._kept.pop(key)
            _log.info("engine ended", model=kept.host.card.name, **kept.host.loaded)
            kept.host.close()


def cache_of(settings: Settings) -> Path:
    """Return where engines keep compiled models and measured choices; it may be deleted at any time."""
    return settings.data_dir / "engines"


def note_cores(settings: Settings) -> None:
    """Write down how many cores the node has: what is measured for it from a shell is to hold for as many.

    A service may be held to some of the machine's cores (systemd's ``CPUAffinity``), and a shell beside it is not.
    """
    try:
        # The node's own, whosever the data directory is: compiled models are kept in no other folder.
        cache_of(settings).mkdir(exist_ok=True)
        write_whole(cache_of(settings) / _CORES, f"{cores()}\n")
    except OSError as problem:
        _log.warning("how many cores there are cannot be written down", why=problem.strerror, file=problem.filename)


def cores_of(settings: Settings) -> int:
    """Return how many cores an engine of the node's gets, as its last start has said; asked from wherever it may be."""
    try:
        noted = int((cache_of(settings) / _CORES).read_text(encoding="ascii"))
    except (OSError, ValueError):
        noted = 0
    return share_of_cores(settings.perform, noted if noted > 0 else cores())


def share_of_cores(perform: PerformSettings, there: int) -> int:
    """Return how many of these cores an engine of one performer gets, where its card does not say."""
    return max(1, there // perform.workers)


def share_of_memory(perform: PerformSettings) -> float:
    """Return what the engines of one performer may hold together, in MB."""
    return (perform.memory_mb or half_of_memory()) / perform.workers


def half_of_memory() -> float:
    """Return half of the machine's memory in MB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**21


def unreadable(card: Card, cache: Path, count: int) -> str:
    """Return why what was measured for a card cannot be read; "" where it can, or nothing was."""
    if not tunable(card):
        return ""
    try:
        return why_unreadable(card, model_file(card, ".onnx"), cache, count)
    except EngineFailure:
        # Its engine will say what is wrong with the card.
        return ""


def _resident_mb(host: EngineHost) -> float:
    pid = host.pid
    return tree_resident_bytes(pid) / 2**20 if pid is not None else 0.0
