"""Reading one image's file: what is wrong with it is said precisely, and never with anything from its patient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.codecs import DIRECT_SYNTAXES, decode_directly
from inference.errors import InputRefused

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = [
    "count_of",
    "hounsfield_rescale",
    "open_image",
    "padding_mask",
    "require_pixels",
    "stored_values",
    "texts_of",
    "value_of",
]

#: Values longer than this stay in the file until they are asked for: headers are read first, pixels one by one.
_DEFER = 2048
#: Rescale Types (0028,1054) whose output is Hounsfield units; absent means so for CT (PS3.3 C.8.2.1).
_HOUNSFIELD = frozenset({"", "HU", "HU_MOD"})


def open_image(file: ImageFile) -> Dataset:
    """Parse an image's attributes, leaving long values in the file.

    Raises
    ------
    InputRefused
        ``unreadable``, if the bytes are no DICOM object or break off within its attributes.
    OSError
        If the file is not there: the node's trouble, not the image's.
    """
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(file.path, defer_size=_DEFER)
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # hostile bytes fail in every way that a parser has
        raise InputRefused("unreadable", f"an image cannot be parsed ({type(problem).__name__})") from problem


def require_pixels(dataset: Dataset) -> tuple[int, int]:
    """Return (rows, columns) of a one-sample greyscale image.

    Raises
    ------
    InputRefused
        ``no-pixels``, ``multi-sample`` or ``unsupported-photometric``.
    """
    rows, columns = count_of(dataset, "Rows"), count_of(dataset, "Columns")
    if rows < 1 or columns < 1:
        raise InputRefused("no-pixels", f"an image has {rows} rows and {columns} columns")
    if "PixelData" not in dataset:
        raise InputRefused("no-pixels", "an image has no Pixel Data")
    samples = count_of(dataset, "SamplesPerPixel", default=1)
    if samples != 1:
        raise InputRefused("multi-sample", f"an image has {samples} samples a pixel; greyscale has 1")
    photometric = texts_of(dataset, "PhotometricInterpretation")
    if photometric not in (("MONOCHROME1",), ("MONOCHROME2",)):
        known = photometric[0] if photometric in (("PALETTE COLOR",), ("RGB",)) else "another value or none"
        raise InputRefused("unsupported-photometric", f"Photometric Interpretation is not MONOCHROME1 or 2 ({known})")
    return rows, columns


def stored_values(dataset: Dataset) -> npt.NDArray[Any]:
    """Decode an image's stored values, shape (rows, columns), sign and unused bits put right.

    Raises
    ------
    InputRefused
        ``no-pixels``, naming the transfer syntax, if they cannot be decoded.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    meta = getattr(dataset, "file_meta", None)
    syntax = UID(str((meta and meta.get("TransferSyntaxUID")) or "1.2.840.10008.1.2"))
    name = syntax.name if syntax.name != str(syntax) else "an unknown one"
    directly = _decoded_directly(dataset, syntax)
    if directly is not None:
        return directly
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values, _ = get_decoder(syntax).as_array(dataset, raw=True, index=0)
    except MemoryError:
        raise
    except NotImplementedError as problem:
        raise InputRefused("no-pixels", f"no decoder for the transfer syntax {name} ({syntax})") from problem
    except Exception as problem:  # decoders are foreign code and fail in every way
        raise InputRefused(
            "no-pixels", f"Pixel Data is truncated or cannot be decoded (transfer syntax {name}, {syntax})"
        ) from problem
    values = np.asarray(values)
    if values.shape != (count_of(dataset, "Rows"), count_of(dataset, "Columns")):
        raise InputRefused("no-pixels", f"Pixel Data decodes to {values.shape}, not to its Rows and Columns")
    return values


def _decoded_directly(dataset: Dataset, syntax: str) -> npt.NDArray[Any] | None:
    """Decode by the short way where the header is that of one plain greyscale image."""
    filename = getattr(dataset, "filename", None)
    if syntax not in DIRECT_SYNTAXES or not isinstance(filename, (str, Path)) or not filename:
        return None
    stored = count_of(dataset, "BitsStored")
    if (
        # Of a file that breaks off, GDCM fills the rest with the last value; pydicom does not see such pixels at all.
        "PixelData" not in dataset
        or count_of(dataset, "NumberOfFrames", default=1) != 1
        or count_of(dataset, "SamplesPerPixel", default=1) != 1
        or count_of(dataset, "HighBit", default=stored - 1) != stored - 1
    ):
        return None
    return decode_directly(
        Path(filename),
        rows=count_of(dataset, "Rows"),
        columns=count_of(dataset, "Columns"),
        bits_allocated=count_of(dataset, "BitsAllocated"),
        bits_stored=stored,
        signed=count_of(dataset, "PixelRepresentation") == 1,
    )


def hounsfield_rescale(dataset: Dataset) -> tuple[float, float]:
    """Return (slope, intercept) from stored values to HU.

    Raises
    ------
    InputRefused
        ``missing-rescale`` or ``not-hounsfield``.
    """
    if "ModalityLUTSequence" in dataset:
        raise InputRefused("not-hounsfield", "a CT image has a Modality LUT in place of a linear rescale")
    try:
        slope, intercept = float(value_of(dataset, "RescaleSlope")), float(value_of(dataset, "RescaleIntercept"))
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("missing-rescale", "Rescale Slope or Intercept is absent or no number") from problem
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope <= 0 or abs(intercept) > 1e6:
        raise InputRefused("missing-rescale", "Rescale Slope or Intercept is not a possible one")
    if not _HOUNSFIELD.issuperset(texts_of(dataset, "RescaleType")):
        raise InputRefused("not-hounsfield", "Rescale Type says that the values are no Hounsfield units")
    return slope, intercept


def padding_mask(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Return where the image is padded (PS3.3 C.7.5.1.1.2), or None where it names no padding."""
    first = _padding(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _padding(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    mask: npt.NDArray[np.bool_] = stored == low if low == high else (stored >= low) & (stored <= high)
    return mask


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value, or None where it is absent or empty; values are parsed only here.

    Raises
    ------
    InputRefused
        ``unreadable``, naming the attribute, if its bytes are none of its kind.
    """
    if keyword not in dataset:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = dataset[keyword].value
    except (OSError, MemoryError):
        raise
    except Exception as problem:  # hostile bytes fail in every way that a parser has
        raise InputRefused("unreadable", f"{keyword} cannot be parsed ({type(problem).__name__})") from problem
    return None if isinstance(value, (str, bytes)) and not value else value


def count_of(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return an attribute's value as an integer, or a default where it is absent or empty.

    Raises
    ------
    InputRefused
        ``unreadable``, naming the attribute, if it is no integer.
    """
    value = value_of(dataset, keyword)
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("unreadable", f"{keyword} is no number") from problem


def texts_of(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return an attribute's values as stripped upper-case text; none where it is absent or empty."""
    value = value_of(dataset, keyword)
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    return tuple(str(one).strip().upper() for one in value)


def _padding(dataset: Dataset, keyword: str) -> int | None:
    try:
        number = int(value_of(dataset, keyword))
    except (TypeError, ValueError, OverflowError, InputRefused):
        return None
    # Some writers give the signed value with an unsigned representation, or the other way round.
    signed = count_of(dataset, "PixelRepresentation") == 1
    if signed and number > 32767:
        return number - 65536
    return number + 65536 if not signed and number < 0 else number
