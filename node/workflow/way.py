"""What the steps of a study's way stand on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.settings import Route, Settings
from node.workflow.engines import cache_of
from node.workflow.models import Models
from storage.blobs import Blobs, FileBlobs
from storage.database import Database

__all__ = ["Way", "results_folder"]


def results_folder(settings: Settings) -> Blobs:
    """Return the folder of kept results' files: it may be emptied, and is made when it is needed."""
    return FileBlobs(settings.data_dir.absolute() / "results")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the steps stand on; made once a process, after the fork."""

    settings: Settings
    database: Database
    blobs: Blobs
    incoming: Path
    scratch: Path
    models: Models

    @property
    def engine_cache(self) -> Path:
        """Return where engines keep compiled models and measured choices; it may be deleted at any time."""
        return cache_of(self.settings)

    @property
    def results(self) -> Blobs:
        """Return the files of results that are kept for the next time."""
        return results_folder(self.settings)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes, in their order."""
        return self.settings.route_list

    @property
    def heat_maps(self) -> Path:
        """Where the maps lie that explain findings, one file a workitem."""
        return self.settings.data_dir.absolute() / "heat-maps"

    @property
    def shadows(self) -> Path:
        """Where masks lie that shadows have made: they are compared, and never become documents."""
        return self.settings.data_dir.absolute() / "shadows"
