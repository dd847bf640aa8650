"""What the handlers of DIMSE-N requests share: every error becomes a status, and none says anything of a patient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt
from sqlalchemy.exc import SQLAlchemyError

from node.dimse.status import operation_status_for
from node.errors import OperationRefused, kind_and_place
from storage.errors import StorageError

__all__ = ["Answer", "answering", "calling_ae_title", "dataset_of"]

#: What pynetdicom takes from a handler.
Answer = tuple[Dataset | int, Dataset | None]

_log = structlog.get_logger(__name__)


def answering(operation: str, serve: Callable[[evt.Event], Answer]) -> Callable[[evt.Event], Answer]:
    """Make a handler of a function that raises: its errors answer with the status that the table has for them."""

    def handler(event: evt.Event) -> Answer:
        try:
            return serve(event)
        except Exception as error:  # noqa: BLE001 - this is the edge: every error becomes a status
            answer = operation_status_for(error)
            known = isinstance(error, (OperationRefused, StorageError, SQLAlchemyError, OSError))
            _log.warning(
                "request refused",
                operation=operation,
                calling_ae_title=calling_ae_title(event),
                status=f"0x{answer.code:04X}",
                reason=answer.comment,
                error=None if known else kind_and_place(error),
            )
            return answer.dataset, None

    return handler


def dataset_of(event: evt.Event, name: str) -> Dataset:
    """Return the dataset of a request by its name in pynetdicom.

    Raises
    ------
    OperationRefused
        With 0115 where there is none, or it cannot be read.
    """
    try:
        dataset: Any = getattr(event, name)
    except Exception as error:  # noqa: BLE001 - whatever the bytes were, they are no dataset
        raise OperationRefused(0x0115, f"the dataset cannot be read ({type(error).__name__})") from None
    if not isinstance(dataset, Dataset) or not len(dataset):
        raise OperationRefused(0x0115, "the request has no dataset")
    return dataset


def calling_ae_title(event: evt.Event) -> str:
    """Return who asks."""
    return str(event.assoc.requestor.ae_title).strip()
