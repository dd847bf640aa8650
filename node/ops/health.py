"""Whether the node can do its work: alive is answering at all; ready is database, schema, disk and room."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from storage.database import Database, schema_versions
from storage.space import MINIMUM_FREE_BYTES, has_room

__all__ = ["Readiness"]


class Readiness:
    """Looks whether everything that the node stands on is there.

    Parameters
    ----------
    folder
        On the data directory's disk; written to for a moment.
    minimum_free
        Bytes of disk that must be free.
    """

    def __init__(self, database: Database, folder: Path, minimum_free: int = MINIMUM_FREE_BYTES) -> None:
        self._database = database
        self._folder = folder
        self._minimum_free = minimum_free
        self._schema: str | None = None

    def complaints(self) -> dict[str, str]:
        """Return what is wrong and with what; empty when ready."""
        found = {
            "database": self._database_complaint(),
            "data_dir": self._folder_complaint(),
            "disk": self._disk_complaint(),
        }
        return {name: complaint for name, complaint in found.items() if complaint}

    def _database_complaint(self) -> str:
        try:
            if self._schema is None:
                self._schema = schema_versions(self._database.url)[1]
            with self._database.read() as connection:
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
        except SQLAlchemyError as error:
            return f"cannot be read ({type(error).__name__}); see that it runs and that its address is right"
        if current != self._schema:
            return f"has schema version {current}, this software needs {self._schema}; start the node to upgrade it"
        return ""

    def _folder_complaint(self) -> str:
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(b"ready")
                file.flush()
        except OSError as error:
            return f"cannot be written to ({error.strerror}); see its owner and its disk"
        return ""

    def _disk_complaint(self) -> str:
        try:
            if has_room(self._folder, self._minimum_free):
                return ""
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            return f"cannot be asked for its free space ({error.strerror})"
        return f"{free} bytes are free and {self._minimum_free} are needed; make room"
