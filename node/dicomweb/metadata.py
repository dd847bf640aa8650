"""A stored object as DICOM JSON, its bulk data left where it is and named by address (PS3.18 10.4.1.1.2, Annex F)."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from storage.errors import StorageError, Unknown

__all__ = ["Unreadable", "bulk_value", "metadata", "opened"]

#: Binary values beyond this are told of by address.
_INLINE = 1024
#: Values beyond this are not even read, unless they are text.
_DEFERRED = 64 * 1024
#: Python's own recursion would end the reading somewhere deeper, and not where we choose.
_MAXIMUM_DEPTH = 50
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW"})
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})


class Unreadable(StorageError):
    """A stored object that the index could read, but that cannot be told as a whole."""


def metadata(path: Path, url: str) -> dict[str, Any]:
    """Return everything but the bulk data of a stored object.

    Parameters
    ----------
    url
        The instance's address; bulk data is at ``/bulkdata/`` below it.

    Raises
    ------
    Unreadable
        When the object cannot be read, or is nested more deeply than anybody means.
    """
    try:
        dataset = opened(path)
        told = _dataset(dataset, f"{url}/bulkdata", 0)
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything
        raise Unreadable(f"the object cannot be read as a whole ({type(error).__name__})") from None
    told["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return dict(sorted(told.items()))


def bulk_value(path: Path, steps: str) -> bytes:
    """Return the bytes of one binary value, in little endian (PS3.18 8.7.3.5).

    Parameters
    ----------
    steps
        What follows ``/bulkdata/`` in an address: a tag, or tags and item numbers (from 0) that lead to it.

    Raises
    ------
    Unknown
        When there is no such value.
    """
    parts = steps.split("/")
    try:
        file = opened(path)
        syntax = file.file_meta.TransferSyntaxUID
        dataset: Dataset = file
        for sequence, item in zip(parts[:-1:2], parts[1:-1:2], strict=True):
            dataset = dataset[Tag(int(sequence, 16))].value[int(item)]
        element = dataset[Tag(int(parts[-1], 16))]
        value = element.value
    except Exception:  # noqa: BLE001 - an address that is none, or bytes that cannot be read: nothing is there
        raise Unknown("the instance has no such bulk data") from None
    if not isinstance(value, bytes):
        raise Unknown("the instance has no such bulk data")
    width = _WORDS.get(element.VR, 1)
    if syntax == ExplicitVRBigEndian and width > 1 and len(value) % width == 0:
        import numpy as np

        return np.frombuffer(value, f"u{width}").byteswap().tobytes()
    return value


def opened(path: Path) -> pydicom.FileDataset:
    """Return a stored object whose large values stay in its file until they are asked for."""
    dataset = pydicom.dcmread(path, defer_size=_DEFERRED)
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        # There, places within the dataset are no places within the file.
        return pydicom.dcmread(path)
    return dataset


def _dataset(dataset: Dataset, url: str, depth: int) -> dict[str, Any]:
    if depth > _MAXIMUM_DEPTH:
        raise Unreadable(f"sequences are nested more than {_MAXIMUM_DEPTH} deep")
    told = {}
    for tag in sorted(dataset.keys()):
        if tag.element == 0 or tag.group < 8:
            continue
        element = _element(dataset, tag, url, depth)
        if element is not None:
            told[f"{int(tag):08X}"] = element
    return told


def _element(dataset: Dataset, tag: BaseTag, url: str, depth: int) -> dict[str, Any] | None:
    raw: Any = dataset.get_item(tag)
    address = f"{url}/{int(tag):08X}"
    if int(tag) in _PIXELS:
        vr = raw.VR if raw is not None and raw.VR in ("OB", "OW", "OF", "OD") else "OW"
        return {"vr": vr, "BulkDataURI": address}
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length and raw.VR in _BINARY - {"UN"}:
        return {"vr": raw.VR, "BulkDataURI": address}
    try:
        element = dataset[tag]
    except Unreadable:
        raise
    except Exception:  # noqa: BLE001 - one value that cannot be read must not hide the others
        return {"vr": raw.VR} if isinstance(raw, RawDataElement) and raw.VR else None
    return _told(element, address, depth)


def _told(element: DataElement, address: str, depth: int) -> dict[str, Any]:
    vr = element.VR
    if vr == "SQ":
        items = [_dataset(item, f"{address}/{number}", depth + 1) for number, item in enumerate(element.value)]
        return {"vr": vr, "Value": items} if items else {"vr": vr}
    if isinstance(element.value, bytes):
        vr = vr if len(vr) == 2 else "UN"
        if not element.value:
            return {"vr": vr}
        if len(element.value) > _INLINE:
            return {"vr": vr, "BulkDataURI": address}
        return {"vr": vr, "InlineBinary": base64.b64encode(element.value).decode()}
    try:
        return _finite(element.to_json_dict(None, bulk_data_threshold=1 << 30))
    except Exception:  # noqa: BLE001 - a value that breaks its VR's rules is told as it was sent
        values = element.value if element.VM > 1 else [element.value]
        vr = vr if len(vr) == 2 else "US"
        return {"vr": vr, "Value": [None if one is None else str(one) for one in values]}


def _finite(element: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: such a number is told as text (PS3.18 F.2.5)."""
    told = dict(element)
    if "Value" in told:
        told["Value"] = [
            str(one) if isinstance(one, float) and not math.isfinite(one) else one for one in told["Value"]
        ]
    return told
