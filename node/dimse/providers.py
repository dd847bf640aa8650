"""Who answers the messages of the services beside Verification and Storage: one list for every receiver."""

from __future__ import annotations

from pynetdicom import evt

from node.dimse.find import Finder
from node.dimse.retrieve import Retriever
from node.dimse.scp import Handlers
from node.settings import Settings
from storage.blobs import Blobs
from storage.database import Database

__all__ = ["handlers"]


def handlers(settings: Settings, database: Database, blobs: Blobs) -> Handlers:
    """Return the handlers of one receiver; called in its process, once.

    Parameters
    ----------
    settings
        Of the whole node.
    database, blobs
        Opened in this process.
    """
    retriever = Retriever(settings, database, blobs)
    return [
        (evt.EVT_C_FIND, Finder(database, settings.dimse.ae_title).find),
        (evt.EVT_C_MOVE, retriever.move),
        (evt.EVT_C_GET, retriever.get),
    ]
