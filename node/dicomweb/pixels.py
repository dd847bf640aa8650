"""Frames and whole objects in the transfer syntax that a caller asks for (PS3.18 8.7.3.5, 10.4)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_frames
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from node.dicomweb.metadata import opened
from node.errors import NotAcceptable
from node.transcoding import write_uncompressed
from storage.errors import Unknown

__all__ = ["FRAME_TYPES", "as_explicit_little_endian", "frames"]

#: How the frames of an encapsulated transfer syntax are called on their own: PS3.18 Table 8.7.3-5.
FRAME_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}


def as_explicit_little_endian(path: Path) -> bytes:
    """Return a stored object as a Part 10 file in Explicit VR Little Endian.

    Raises
    ------
    NotAcceptable
        When its pixel data cannot be decoded here.
    """
    written = io.BytesIO()
    try:
        write_uncompressed(path, ExplicitVRLittleEndian, written)
    except Exception as error:  # noqa: BLE001 - decoders and hostile bytes raise anything
        raise NotAcceptable(
            f"the object cannot be given in Explicit VR Little Endian ({type(error).__name__}); "
            "ask for transfer-syntax=* to get it as it is stored"
        ) from None
    return written.getvalue()


def frames(path: Path, numbers: Sequence[int], *, stored: bool) -> tuple[str, list[bytes]]:
    """Return some frames of an image and the transfer syntax that they are in.

    Parameters
    ----------
    numbers
        Frame numbers from 1.
    stored
        As they are stored; otherwise decoded to little endian samples.

    Raises
    ------
    Unknown
        When the object has no such frame.
    NotAcceptable
        When the frames cannot be decoded here.
    """
    dataset = opened(path)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if "PixelData" not in dataset or not numbers or min(numbers) < 1 or max(numbers) > count:
        raise Unknown(f"the instance has no such frame (it has {count if 'PixelData' in dataset else 0})")
    try:
        if syntax.is_encapsulated and stored:
            last = max(numbers)
            found = dict(enumerate(islice(generate_frames(dataset.PixelData, number_of_frames=count), last), start=1))
            return str(syntax), [found[number] for number in numbers]
        if syntax.is_encapsulated or syntax == ExplicitVRBigEndian or dataset.get("BitsAllocated") == 1:
            return str(ExplicitVRLittleEndian), [_decoded(dataset, number) for number in numbers]
        return str(ExplicitVRLittleEndian), list(_native(path, dataset, numbers))
    except Unknown:
        raise
    except Exception as error:  # noqa: BLE001 - decoders and hostile bytes raise anything
        raise NotAcceptable(
            f"the frames cannot be decoded here ({type(error).__name__}); "
            'ask for type="application/octet-stream"; transfer-syntax=* to get them as they are stored'
        ) from None


def _native(path: Path, dataset: Any, numbers: Sequence[int]) -> Iterator[bytes]:
    """Read frames from where they lie, without the others."""
    size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
    raw = dataset.get_item("PixelData")
    in_file = isinstance(raw, RawDataElement) and raw.value is None
    length = raw.length if in_file else len(dataset.PixelData)
    if size == 0 or size * max(numbers) > length:
        raise Unknown("the pixel data is shorter than its frames")
    if not in_file:
        yield from (dataset.PixelData[(number - 1) * size : number * size] for number in numbers)
        return
    with path.open("rb") as file:
        for number in numbers:
            file.seek(raw.value_tell + (number - 1) * size)
            yield file.read(size)


def _decoded(dataset: Any, number: int) -> bytes:
    import numpy as np
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(UID(dataset.file_meta.TransferSyntaxUID))
    array, _ = decoder.as_array(dataset, index=number - 1, raw=True)
    if dataset.BitsAllocated == 1:
        return np.packbits(array.astype(np.uint8).ravel(), bitorder="little").tobytes()
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
