"""Decoding Pixel Data where pydicom's own way to the decoder costs more than the decoding.

pydicom asks GDCM for its buffer as text and encodes that back to bytes, which for a radiograph of five million pixels
takes as long as the decoding itself. GDCM can write into a buffer of ours; that is used for single images of JPEG
Lossless and JPEG-LS, checked to give the same values, and left wherever the header is not plain.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DIRECT_SYNTAXES", "END_OF_ITEMS", "decode_directly", "ends_whole"]

#: JPEG Lossless (any process 14), JPEG-LS lossless: syntaxes whose values do not depend on the decoder.
DIRECT_SYNTAXES = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"})

#: Sequence Delimitation Item, of length 0.
END_OF_ITEMS = b"\xfe\xff\xdd\xe0\0\0\0\0"
_ITEM = b"\xfe\xff\x00\xe0"
_END_OF_IMAGE = b"\xff\xd9"
#: Fragments are padded to even length (PS3.5 A.4); some writers pad further.
_PADDING = 64


def ends_whole(stream: BinaryIO) -> bool:
    """Whether encapsulated Pixel Data (PS3.5 A.4) is there to its end, and its JPEG codestream closed by EOI.

    GDCM fills with invented pixels what a codestream lacks, and says that it has succeeded. A wrong byte within is not
    found: most end on the same bit, and no decoder tells (docs/geometry.md).

    Parameters
    ----------
    stream
        At the first item, the Basic Offset Table. Only the ends of the fragments are read.
    """
    tail = b""
    while True:
        head = stream.read(8)
        if len(head) < 8:
            return False
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if head == END_OF_ITEMS:
            return tail.rstrip(b"\0").endswith(_END_OF_IMAGE)
        if tag != _ITEM or length == 0xFFFFFFFF:
            return False
        last = min(length, _PADDING)
        stream.seek(length - last, 1)
        end = stream.read(last)
        if len(end) < last:
            return False
        tail = end or tail


def decode_directly(
    path: Path, *, rows: int, columns: int, bits_allocated: int, bits_stored: int, signed: bool
) -> npt.NDArray[Any] | None:
    """Decode the only frame of a greyscale image straight into an array.

    Parameters
    ----------
    path
        The DICOM file; its transfer syntax is one of :data:`DIRECT_SYNTAXES`.
    rows, columns, bits_allocated, bits_stored, signed
        What its header says (PS3.3 C.7.6.3). The high bit is taken to be the highest of the bits stored.

    Returns
    -------
    numpy.ndarray or None
        Stored values, (rows, columns), bits beyond those stored cleared or, where signed, filled with the sign; None
        where GDCM cannot do it or sees another image than the header describes: take pydicom's way then.
    """
    if bits_allocated not in (8, 16) or not 1 <= bits_stored <= bits_allocated:
        return None
    try:
        import gdcm
    except ImportError:
        return None
    reader = gdcm.ImageRegionReader()
    reader.SetFileName(str(path))
    if not reader.ReadInformation():
        return None
    image = reader.GetImage()
    if [image.GetDimension(0), image.GetDimension(1)] != [columns, rows] or image.GetNumberOfDimensions() != 2:
        return None
    layout = image.GetPixelFormat()
    if layout.GetSamplesPerPixel() != 1 or layout.GetBitsAllocated() != bits_allocated:
        return None
    region = gdcm.BoxRegion()
    region.SetDomain(0, columns - 1, 0, rows - 1, 0, 0)
    reader.SetRegion(region)
    buffer = bytearray(rows * columns * bits_allocated // 8)
    if reader.ComputeBufferLength() != len(buffer) or not reader.ReadIntoBuffer(buffer):
        return None
    values = np.frombuffer(buffer, dtype=f"<{'i' if signed else 'u'}{bits_allocated // 8}").reshape(rows, columns)
    spare = bits_allocated - bits_stored
    if spare:
        # The shift back to the right carries the sign where there is one.
        values <<= spare
        values >>= spare
    return values
