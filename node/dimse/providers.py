"""Who answers the messages of the services beside Verification and Storage: one list for every receiver."""

from __future__ import annotations

from pynetdicom import evt

from node.dimse.association import Handlers
from node.dimse.commitment_messages import Report
from node.dimse.commitment_scp import CommitmentProvider
from node.dimse.commitment_scu import hear
from node.dimse.find import Finder
from node.dimse.operations import answering
from node.dimse.procedure_steps import create_step, set_step
from node.dimse.retrieve import Retriever
from node.settings import Settings
from storage import delivery_commitments
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
    provider = CommitmentProvider(database, blobs, settings.peers, settings.dimse.ae_title)

    def take(report: Report) -> bool:
        with database.write() as connection:
            return delivery_commitments.take_report(
                connection, report.transaction_uid, committed=report.committed, failed=report.failed
            )

    return [
        (evt.EVT_C_FIND, Finder(database, settings.dimse.ae_title).find),
        (evt.EVT_C_MOVE, retriever.move),
        (evt.EVT_C_GET, retriever.get),
        (evt.EVT_N_ACTION, answering("N-ACTION", provider.requested)),
        (evt.EVT_N_EVENT_REPORT, answering("N-EVENT-REPORT", lambda event: hear(event, take))),
        (evt.EVT_N_CREATE, answering("N-CREATE", lambda event: create_step(event, database))),
        (evt.EVT_N_SET, answering("N-SET", lambda event: set_step(event, database))),
    ]
