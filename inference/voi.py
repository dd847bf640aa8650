"""Whether an image's own VOI LUT shows it as a negative: of all that a viewer does with it, this decides what is dense.

A window, or a table that rises, changes how bright and how steep; no value changes places with a brighter one. A table
that falls (some detectors store the negative, and put it right there) does, as MONOCHROME1 does after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import InputRefused
from inference.imagefile import count_of, value_of
from inference.reasons import REASONS

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

__all__ = ["falls"]

_REASON = "polarity-unknown"


def falls(dataset: Dataset, low: float, high: float) -> bool:
    """Return whether the VOI LUT Sequence (0028,3010) turns an image over; without one nothing does (PS3.3 C.11.2).

    Parameters
    ----------
    low, high
        Between which values of the image, after its modality LUT, the table is looked at.

    Raises
    ------
    InputRefused
        ``polarity-unknown``, if a table cannot be read, neither rises nor falls, or is one of several views of which
        another shows the opposite: which of them a viewer takes is its own choice.
    """
    tables = value_of(dataset, "VOILUTSequence")
    if not tables:
        return False
    ways = {_falls(dataset, table, low, high) for table in tables}
    if value_of(dataset, "WindowCenter") is not None and value_of(dataset, "WindowWidth") is not None:
        ways.add(False)
    if len(ways) > 1:
        raise _refused("its VOI LUTs and window show it in opposite ways")
    return ways.pop()


def _falls(dataset: Dataset, table: Any, low: float, high: float) -> bool:
    try:
        first, entries = _read(dataset, table)
    except MemoryError:
        raise
    except Exception as problem:  # a LUT is hostile bytes like any other
        raise _refused(f"its VOI LUT cannot be read ({type(problem).__name__})") from problem
    shown = entries[np.clip(np.rint(np.linspace(low, high, 256)) - first, 0, len(entries) - 1).astype(np.int64)]
    if abs(int(shown[-1] - shown[0])) < (shown.max() - shown.min()) / 2:
        raise _refused("its VOI LUT neither rises nor falls")
    return bool(shown[0] > shown[-1])


def _read(dataset: Dataset, table: Any) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the value that the first entry stands for, and the entries.

    LUT Descriptor (0028,3002) may say signed or unsigned, LUT Data (0028,3006) words or, of up to 8 bits, bytes.
    """
    count, first, bits = (int(one) for one in table["LUTDescriptor"].value)
    count = (count & 0xFFFF) or 65536
    if first > 32767 and count_of(dataset, "PixelRepresentation") == 1:
        first -= 65536
    data = table["LUTData"].value
    if isinstance(data, bytes):
        meta = getattr(dataset, "file_meta", None)
        syntax = meta.get("TransferSyntaxUID") if meta else None
        little = syntax is None or syntax.is_little_endian
        narrow = bits <= 8 and len(data) < 2 * count
        entries = np.frombuffer(data, np.uint8 if narrow else "<u2" if little else ">u2")
    else:
        entries = np.atleast_1d(np.asarray(data))
    entries = entries[:count].astype(np.int64)
    if not len(entries):
        raise ValueError("no entries")
    return first, entries


def _refused(why: str) -> InputRefused:
    return InputRefused(
        _REASON, f"whether dense is bright in the radiograph is not known, since {why}", REASONS[_REASON]
    )
