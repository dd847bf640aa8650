"""Copies of images without their patient: what a program of others gets.

What is kept is listed, not what is removed: geometry, acquisition and pixels, as numbers and coded strings. Names,
identifiers, dates, texts, private attributes, overlays and unlisted sequences are gone. UIDs are replaced by random
ones, the same everywhere in one run, and known backwards, so that an answer finds its image again. That is stricter
than PS3.15 Annex E, whose basic profile lists what goes. Pixels are not looked at: an image that says that it has text
burned in is refused.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from inference.codedstrings import harmless
from inference.errors import InputRefused
from inference.imagefile import count_of, open_image, texts_of, value_of
from inference.outgoing import require_no_text

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

    from inference.engine import ImageFile

__all__ = ["Pseudonyms", "write_copy"]

_GROUPS: Final = frozenset({0x0018, 0x0020, 0x0028, 0x0054})
_VALUES: Final = frozenset({"AT", "CS", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UI", "UL", "US", "UV"})
_TEXTS: Final = frozenset({"ConvolutionKernel", "Manufacturer", "ManufacturerModelName", "RescaleType"})
_SEQUENCES: Final = frozenset(
    {"ModalityLUTSequence", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "VOILUTSequence"}
)
_BULK: Final = frozenset(
    {"ExtendedOffsetTable", "ExtendedOffsetTableLengths", "LUTData", "PixelData"}
    | {f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")}
)
_IDENTITIES: Final = frozenset({"SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"})
_EMPTY: Final = (
    "AccessionNumber", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyDate", "StudyID", "StudyTime"
)  # fmt: skip


class Pseudonyms:
    """One run's replacements of UIDs, and what they stand for; ``patient`` is its random Patient ID."""

    def __init__(self) -> None:
        self.patient = uuid.uuid4().hex[:16]
        self._given: dict[str, str] = {}
        self._true: dict[str, str] = {}

    def of(self, uid: str, *, identity: bool = False) -> str:
        """Return what stands for a UID.

        The standard's own name no patient (PS3.6 Annex A: SOP Classes, transfer syntaxes, well-known frames of
        reference) and stay; but not as the ``identity`` of a study, series or image, nor where they are only begun as
        those are.
        """
        if not uid or (not identity and UID(uid, IGNORE).name != uid):
            return uid
        if uid not in self._given:
            self._given[uid] = f"2.25.{uuid.uuid4().int}"
            self._true[self._given[uid]] = uid
        return self._given[uid]

    def true(self, uid: str) -> str | None:
        """Return the UID that one of ours stands for, or None where it is none of ours."""
        return self._true.get(uid)

    def __contains__(self, uid: str) -> bool:
        return uid in self._true


def write_copy(
    file: ImageFile,
    path: Path,
    pseudonyms: Pseudonyms,
    *,
    keep: Collection[str] = (),
    burned_in: bool = False,
    decompress: bool = True,
) -> Dataset:
    """Write an image without its patient.

    Parameters
    ----------
    keep
        Keywords of further attributes that stay.
    burned_in
        Whether an image that says that it has text in its pixels may be handed out.
    decompress
        Write pixels as they are, in Explicit VR Little Endian; many programs read no other.

    Returns
    -------
    pydicom.Dataset
        The copy's attributes.

    Raises
    ------
    InputRefused
        ``unreadable``, ``burned-in-annotation``, ``unsupported-bits`` or ``no-pixels``.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    source = open_image(file)
    if not burned_in:
        require_no_text(source)
    copy = Dataset()
    with warnings.catch_warnings():
        # What is invalid in a source is not ours to report here.
        warnings.simplefilter("ignore")
        for element in _kept(source, keep, pseudonyms):
            copy.add(element)
        for keyword in _EMPTY:
            if keyword not in copy:
                setattr(copy, keyword, "")
        copy.PatientName = "ANONYMOUS^"
        copy.PatientID = pseudonyms.patient
        copy.PatientIdentityRemoved = "YES"
        copy.DeidentificationMethod = "Overread: listed attributes kept, UIDs replaced"
        if not copy.get("SOPInstanceUID") or not copy.get("SOPClassUID"):
            raise InputRefused("unreadable", "an image has no SOP Class or Instance UID")
        if not value_of(copy, "PixelData"):
            raise InputRefused("no-pixels", "an image has no Pixel Data")
        syntax = source.file_meta.TransferSyntaxUID
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = copy.SOPClassUID
        meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
        native = not syntax.is_compressed or syntax.is_deflated
        meta.TransferSyntaxUID = ExplicitVRLittleEndian if native and syntax != ExplicitVRBigEndian else syntax
        copy.file_meta = meta
        try:
            if syntax.is_compressed and not syntax.is_deflated and decompress:
                copy["PixelData"].VR = "OB"
                copy["PixelData"].is_undefined_length = True
                copy.decompress(generate_instance_uid=False)
            if not copy.file_meta.TransferSyntaxUID.is_compressed:
                _cut_behind_pixels(copy)
                _clear_spare_bits(copy)
            copy.save_as(path, enforce_file_format=True)
        except (OSError, MemoryError, InputRefused):
            raise
        except Exception as problem:  # decoders and writers are foreign code and fail in every way
            raise InputRefused(
                "no-pixels", f"an image cannot be decoded for the program ({type(problem).__name__})"
            ) from problem
    return copy


def _cut_behind_pixels(copy: Dataset) -> None:
    """Cut native pixels after the last one: what follows is shown by nobody, and may hold anything."""
    # Of YBR_FULL_422 two pixels share their colour (PS3.3 C.7.6.3.1.2).
    halved = texts_of(copy, "PhotometricInterpretation") == ("YBR_FULL_422",)
    values = (
        count_of(copy, "Rows")
        * count_of(copy, "Columns")
        * (2 if halved else count_of(copy, "SamplesPerPixel", default=1))
        * count_of(copy, "NumberOfFrames", default=1)
    )
    length = (values * count_of(copy, "BitsAllocated", default=16) + 7) // 8
    pixels = copy["PixelData"]
    if len(pixels.value) > length + length % 2 or any(pixels.value[length:]):
        pixels.value = pixels.value[:length] + bytes(length % 2)


def _clear_spare_bits(copy: Dataset) -> None:
    """Clear the bits of native pixels that hold no value: there old images carry overlays, with names drawn in them.

    Above a signed value its sign is written, as most that write such images do.
    """
    allocated = count_of(copy, "BitsAllocated", default=16)
    stored = count_of(copy, "BitsStored", default=allocated)
    if count_of(copy, "HighBit", default=stored - 1) == stored - 1 == allocated - 1:
        return
    if (
        count_of(copy, "HighBit", default=stored - 1) != stored - 1
        or allocated not in (8, 16, 32)
        or not 1 <= stored <= allocated
    ):
        raise InputRefused(
            "unsupported-bits", "Bits Stored, Bits Allocated and High Bit do not say where a pixel's value lies"
        )
    pixels = copy["PixelData"]
    order: Literal["<", ">"] = ">" if copy.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    kind = "i" if count_of(copy, "PixelRepresentation") == 1 else "u"
    # What is no whole pixel is padding to an even length.
    whole = len(pixels.value) // (allocated // 8) * (allocated // 8)
    values = np.frombuffer(pixels.value[:whole], f"{order}{kind}{allocated // 8}")
    values = values << (allocated - stored) >> (allocated - stored)
    pixels.value = values.astype(values.dtype.newbyteorder(order), copy=False).tobytes() + bytes(whole % 2)


def _kept(dataset: Dataset, keep: Collection[str], pseudonyms: Pseudonyms) -> Iterator[DataElement]:
    from pydicom import DataElement, Sequence
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset as Item

    for tag in list(dataset.keys()):
        keyword = keyword_for_tag(tag)
        if not keyword or tag.is_private:
            continue
        try:
            element = dataset[tag]
            if element.VR == "SQ":
                inside = keyword in _SEQUENCES or (tag.group in _GROUPS and _functional(dataset))
                if not inside:
                    continue
                items = []
                for one in element.value:
                    item = Item()
                    item.update({part.tag: part for part in _kept(one, (), pseudonyms)})
                    items.append(item)
                yield DataElement(tag, "SQ", Sequence(items))
            elif element.VR == "UI":
                if keyword == "SOPClassUID" and UID(element.value).is_valid:
                    # What kind of object it is names nobody, and the standard has kinds that pydicom does not know.
                    yield element
                elif tag.group in _GROUPS or tag.group == 0x0008:
                    yield DataElement(tag, "UI", _replaced(element.value, pseudonyms, keyword in _IDENTITIES))
            elif element.VR == "CS" and keyword not in keep and _plain(tag.group, element.VR):
                yield DataElement(tag, "CS", _coded(keyword, element.value))
            elif keyword in _BULK or keyword in _TEXTS or keyword in keep or _plain(tag.group, element.VR):
                yield element
        except (OSError, MemoryError):
            raise
        except Exception:  # noqa: BLE001, S112 - what cannot be parsed cannot be known to be harmless: it stays behind
            continue


def _plain(group: int, vr: str) -> bool:
    return (vr in _VALUES and group in _GROUPS) or (vr == "CS" and group == 0x0008)


def _functional(dataset: Dataset) -> bool:
    """Whether these are the contents of a sequence: the ones in there that are listed hold frames' geometry."""
    return "SOPInstanceUID" not in dataset


def _replaced(value: Any, pseudonyms: Pseudonyms, identity: bool) -> Any:
    if isinstance(value, str):
        return pseudonyms.of(value, identity=identity)
    return [pseudonyms.of(str(one), identity=identity) for one in value] if value else value


def _coded(keyword: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return harmless(keyword, value or "")
    return [harmless(keyword, str(one)) for one in value]
