"""Reading one image's file: what is wrong with it is said precisely, and never with anything from its patient."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.codecs import DIRECT_SYNTAXES, END_OF_ITEMS, decode_directly, ends_whole
from inference.errors import InputRefused

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.engine import ImageFile

__all__ = [
    "ModalityValues",
    "count_of",
    "decoded",
    "modality_values",
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
#: Without these (PS3.3 C.7.6.3, Type 1) nobody knows what a pixel's bits mean.
_BITS = {
    "BitsAllocated": "Bits Allocated (0028,0100)",
    "BitsStored": "Bits Stored (0028,0101)",
    "PixelRepresentation": "Pixel Representation (0028,0103)",
}
#: No CT's stored value stands for more Hounsfield units: 100 would leave ten shades between air and water.
_CT_SLOPE = 100.0


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
        ``no-pixels``, ``multi-sample``, ``unsupported-photometric`` or ``unsupported-bits``.
    """
    rows, columns = count_of(dataset, "Rows"), count_of(dataset, "Columns")
    if rows < 1 or columns < 1:
        raise InputRefused("no-pixels", f"an image has {rows} rows and {columns} columns")
    if "PixelData" not in dataset:
        raise InputRefused("no-pixels", "an image has no Pixel Data")
    samples = count_of(dataset, "SamplesPerPixel", default=1)
    if samples != 1:
        raise InputRefused("multi-sample", f"an image has {samples} samples a pixel; greyscale has 1")
    for keyword, words in _BITS.items():
        if value_of(dataset, keyword) is None:
            raise InputRefused("unsupported-bits", f"an image does not say its {words}")
    photometric = texts_of(dataset, "PhotometricInterpretation")
    if photometric not in (("MONOCHROME1",), ("MONOCHROME2",)):
        known = photometric[0] if photometric in (("PALETTE COLOR",), ("RGB",)) else "another value or none"
        raise InputRefused("unsupported-photometric", f"Photometric Interpretation is not MONOCHROME1 or 2 ({known})")
    allocated, stored = count_of(dataset, "BitsAllocated"), count_of(dataset, "BitsStored")
    if count_of(dataset, "HighBit", default=stored - 1) != stored - 1 or not 0 < stored <= allocated:
        raise InputRefused(
            "unsupported-bits", "Bits Stored, Bits Allocated and High Bit do not say where a pixel's value lies"
        )
    return rows, columns


def stored_values(dataset: Dataset) -> npt.NDArray[Any]:
    """Decode an image's (first frame's) stored values, shape (rows, columns), sign and unused bits put right.

    Raises
    ------
    InputRefused
        ``no-pixels``, naming the transfer syntax, if they cannot be decoded.
    """
    return next(decoded(dataset, (0,)))


def decoded(dataset: Dataset, frames: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    """Decode stored values frame by frame (counted from 0), each of shape (rows, columns).

    Sign is put right, and bits above Bits Stored, where old images carry overlays, are masked off.

    Raises
    ------
    InputRefused
        ``no-pixels``, naming the transfer syntax, if a frame cannot be decoded.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    meta = getattr(dataset, "file_meta", None)
    syntax = UID(str((meta and meta.get("TransferSyntaxUID")) or "1.2.840.10008.1.2"))
    name = syntax.name if syntax.name != str(syntax) else "an unknown one"
    directly = _decoded_directly(dataset, syntax)
    if directly is not None:
        yield directly
        return
    shape = (count_of(dataset, "Rows"), count_of(dataset, "Columns"))
    given = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for frame, _ in get_decoder(syntax).iter_array(dataset, raw=True, indices=list(frames)):
                values = np.asarray(frame)
                if values.shape != shape:
                    raise InputRefused(
                        "no-pixels", f"Pixel Data decodes to {values.shape}, not to its Rows and Columns"
                    )
                given += 1
                yield values
    except (InputRefused, MemoryError):
        raise
    except NotImplementedError as problem:
        raise InputRefused("no-pixels", f"no decoder for the transfer syntax {name} ({syntax})") from problem
    except Exception as problem:  # decoders are foreign code and fail in every way
        raise InputRefused(
            "no-pixels", f"Pixel Data is truncated or cannot be decoded (transfer syntax {name}, {syntax})"
        ) from problem
    if given != len(frames):
        raise InputRefused("no-pixels", f"Pixel Data holds {given} of {len(frames)} frames")


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
        or not _whole(dataset, Path(filename))
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


def _whole(dataset: Dataset, path: Path) -> bool:
    """Whether the codestream has its end; what is still in the file is not read for that."""
    element: Any = dataset.get_item("PixelData", keep_deferred=True)
    value, place = getattr(element, "value", None), getattr(element, "value_tell", None)
    if value is None and place is not None:
        with path.open("rb") as stream:
            stream.seek(place)
            return ends_whole(stream)
    # What has been read ends before the delimiter of its sequence.
    return isinstance(value, bytes) and ends_whole(io.BytesIO(value + END_OF_ITEMS))


@dataclass(frozen=True, slots=True)
class ModalityValues:
    """From stored values to what they measure (PS3.3 C.11.1): a linear rescale, or a look-up table in its place.

    Attributes
    ----------
    given
        Whether the image says so; where it does not, values are as stored.
    unit
        What they are measured in, as the image says it: Rescale Type (0028,1054), Modality LUT Type (0028,3004) or a
        PET's Units (0054,1001); "" where that is not said or unspecified. Of a CT it is always Hounsfield units, "HU".
    """

    slope: float
    intercept: float
    table: Dataset | None = None
    given: bool = True
    unit: str = ""

    @property
    def as_stored(self) -> bool:
        """Whether values stay what is stored, said or unsaid."""
        return self.table is None and self.slope == 1.0 and self.intercept == 0.0

    def of(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values: int32 where the rescale keeps whole numbers whole, else float32.

        Raises
        ------
        InputRefused
            ``unreadable``, if the look-up table cannot be applied.
        """
        if self.table is not None:
            return _looked_up(stored, self.table)
        if self.slope == 1.0 and self.intercept == int(self.intercept) and _fits(stored, int(self.intercept)):
            whole = stored.astype(np.int32)
            whole += int(self.intercept)
            return whole
        scaled = stored.astype(np.float32)
        scaled *= np.float32(self.slope)
        scaled += np.float32(self.intercept)
        return scaled


def _fits(stored: npt.NDArray[Any], intercept: int) -> bool:
    """Whether stored values and an intercept together stay within 32 bits and a sign."""
    if stored.dtype.itemsize < 4 or not stored.size:
        return True
    ends = np.iinfo(np.int32)
    return ends.min <= int(stored.min()) + intercept and int(stored.max()) + intercept <= ends.max


def modality_values(dataset: Dataset, modality: str) -> ModalityValues:
    """Return how an image's, or a Pixel Value Transformation's (PS3.3 C.7.6.16.2.9), stored values become values.

    A CT's become Hounsfield units or are refused; a PET's rescale differs from slice to slice and has to be there;
    anything else that has none is read as stored.

    Raises
    ------
    InputRefused
        ``missing-rescale`` or ``not-hounsfield``.
    """
    if "ModalityLUTSequence" in dataset:
        table = value_of(dataset, "ModalityLUTSequence")
        if not table or len(table) != 1:
            raise InputRefused("missing-rescale", "the Modality LUT Sequence does not hold one table")
        if modality == "CT" and texts_of(table[0], "ModalityLUTType") != ("HU",):
            raise InputRefused("not-hounsfield", "a CT image's Modality LUT does not give Hounsfield units")
        return ModalityValues(1.0, 0.0, dataset, unit=_unit(table[0], "ModalityLUTType"))
    given = [value_of(dataset, keyword) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if given == [None, None] and modality not in ("CT", "PT"):
        return ModalityValues(1.0, 0.0, given=False)
    try:
        slope, intercept = (float(value) for value in given)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InputRefused("missing-rescale", "Rescale Slope or Intercept is absent or no number") from problem
    most_slope, most_intercept = (_CT_SLOPE, 1e6) if modality == "CT" else (1e12, 1e12)
    if not 0 < slope <= most_slope or not abs(intercept) <= most_intercept:
        raise InputRefused("missing-rescale", "Rescale Slope or Intercept is not a possible one")
    if modality == "CT" and not _HOUNSFIELD.issuperset(texts_of(dataset, "RescaleType")):
        raise InputRefused("not-hounsfield", "Rescale Type says that the values are no Hounsfield units")
    return ModalityValues(slope, intercept, unit="HU" if modality == "CT" else _unit(dataset, "RescaleType"))


def _unit(dataset: Dataset, keyword: str) -> str:
    """Return a defined term of what values are measured in; "US" is the standard's word for unspecified."""
    unit = "".join(texts_of(dataset, keyword)[:1])
    return "" if unit == "US" else unit


def _looked_up(stored: npt.NDArray[Any], table: Dataset) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_modality_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values: npt.NDArray[Any] = np.asarray(apply_modality_lut(stored, table), dtype=np.float32)
    except MemoryError:
        raise
    except Exception as problem:  # a table is hostile bytes like any other
        raise InputRefused("unreadable", "the Modality LUT cannot be applied") from problem
    return values


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
