"""Reading what the index needs from the bytes of an object, however wrong they are.

Nothing here trusts a length, a nesting depth or a character set. What cannot be read at all is ``NotDicom``;
an element with an invalid value is kept as it was sent where it can be, and left out of the index where not.
"""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import PersonName

from storage.attributes import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS, WANTED, as_json
from storage.errors import NotDicom
from storage.inflating import Inflating
from storage.quickread import Elements, read_elements
from storage.scanning import scan

__all__ = ["Header", "Written", "dataset_digest", "file_digest", "read_header"]

_EQUIPMENT = 0x0018A001
#: Study, series, instance and SOP class; patient's id, name, birth date and sex.
_IDENTIFYING = (0x0020000D, 0x0020000E, 0x00080018, 0x00080016, 0x00100020, 0x00100010, 0x00100030, 0x00100040)
_CHUNK = 1 << 20
_UNDEFINED_LENGTH = 0xFFFFFFFF
#: What stands for a UID in objects of some anonymisers; it can be in an address and in a file's name.
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")

#: A value's own text must never stop an object from being taken in.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the index keeps of one object.

    ``identity`` holds the patient's id, name, birth date and sex, normalised so that two spellings of the same
    (padding, case, Unicode form, name groups) are equal; empty where the object says nothing. ``study``, ``series``
    and ``instance`` are DICOM JSON (PS3.18 Annex F); each is made when it is first asked for, since the index asks
    for the first two once a study and once a series.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    identity: dict[str, str]
    device_uids: frozenset[str]
    manufacturers: frozenset[str]
    digest: str
    size: int
    #: Why nothing is to be analysed on it, in words: it was taken in although it is truncated, or badly named.
    defect: str = ""
    source: Dataset | Elements = field(repr=False, compare=False)

    def elements(self, keywords: Sequence[str]) -> dict[str, Any]:
        """Return some elements as DICOM JSON; those that are absent or empty are left out."""
        return {tag: one for tag, one in as_json(self.source, keywords).items() if one.get("Value")}

    @cached_property
    def study(self) -> dict[str, Any]:
        """The study-level elements."""
        return as_json(self.source, STUDY_KEYWORDS)

    @cached_property
    def series(self) -> dict[str, Any]:
        """The series-level elements."""
        return as_json(self.source, SERIES_KEYWORDS)

    @cached_property
    def instance(self) -> dict[str, Any]:
        """The instance-level elements."""
        return as_json(self.source, INSTANCE_KEYWORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What is known of a Part 10 file from its writing, so that it need not be read again.

    ``beginning`` is its first bytes, ``digest`` the SHA-256 of all from ``dataset_start`` on.
    """

    beginning: bytes
    size: int
    digest: str
    dataset_start: int


def read_header(path: Path, written: Written | None = None) -> Header:
    """Read a DICOM Part 10 file's header and the SHA-256 of its dataset (without file meta).

    Parameters
    ----------
    path
        The file; not touched where what is known of it from its writing suffices.
    written
        That, where this process has just written it.

    Raises
    ------
    NotDicom
        With the reason: no Part 10 file, nested too deeply, or without what identifies it.
    """
    if written is not None:
        elements = read_elements(written.beginning, written.size, WANTED)
        # What has a group 0002 of its own behind ours has another digest than was computed.
        if elements is not None and elements.start == written.dataset_start:
            header = _plain_header(elements, written.digest, written.size)
            if header is not None:
                return header
    with path.open("rb") as file:
        start = _dataset_start(file)
        digest = _digest_from(file, start)
        size = file.tell()
        file.seek(0)
        dataset, end, truncated = _read(file, size)
        transfer_syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
        if not transfer_syntax:
            raise NotDicom("the file meta information has no Transfer Syntax UID (0002,0010)")
        if not _is_uid(transfer_syntax):
            raise NotDicom(
                "Transfer Syntax UID (0002,0010) is no UID: digits and dots, at most 64 characters (PS3.5 9.1)"
            )
        truncated = truncated or _missing(file, transfer_syntax, end, size)
    uids = {
        keyword: _uid(dataset, keyword)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    }
    equipment = _equipment(dataset)
    return Header(
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        transfer_syntax_uid=transfer_syntax,
        identity=_identity(dataset),
        device_uids=frozenset(_text(item, "DeviceUID") for item in equipment) - {""},
        manufacturers=frozenset(_text(item, "Manufacturer") for item in equipment) - {""},
        digest=digest,
        size=size,
        defect="; ".join(filter(None, (truncated, *_badly_named(uids)))),
        source=dataset,
    )


def _plain_header(elements: Elements, digest: str, size: int) -> Header | None:
    """Make a header of what is plainly there; None where pydicom should look."""
    study, series, instance, sop_class, *patient = map(elements.text, _IDENTIFYING)
    if _EQUIPMENT in elements or None in patient or any("=" in one for one in patient if one):
        return None
    if not all(uid and _is_uid(uid) for uid in (study, series, instance, sop_class, elements.transfer_syntax_uid)):
        return None
    assert study is not None and series is not None and instance is not None and sop_class is not None  # noqa: PT018
    return Header(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=instance,
        sop_class_uid=sop_class,
        transfer_syntax_uid=elements.transfer_syntax_uid,
        identity=_normalised(*map(str, patient)),
        device_uids=frozenset(),
        manufacturers=frozenset(),
        digest=digest,
        size=size,
        source=elements,
    )


def _read(file: BinaryIO, size: int) -> tuple[Dataset, int, str]:
    """Return the wanted elements with the file meta information, where reading them ended, and why so early."""
    try:
        read_preamble(file, False)
        meta = _read_file_meta_info(file)
        syntax = str(getattr(meta, "TransferSyntaxUID", ""))
        implicit, big_endian = syntax == ImplicitVRLittleEndian, syntax == ExplicitVRBigEndian
        if syntax == DeflatedExplicitVRLittleEndian:
            # PS3.5 A.5: inflated piece by piece, as far as the pixel data; the rest is inflated and not kept.
            stream = Inflating(file)
            found, end, truncated = scan(cast(BinaryIO, stream), WANTED, implicit=False, big_endian=False, size=None)
            stream.finish()
        else:
            # A syntax that is not known is explicit little endian like all but two (PS3.5 10, A.4).
            found, end, truncated = scan(file, WANTED, implicit=implicit, big_endian=big_endian, size=size)
        dataset = Dataset(cast(dict[BaseTag, DataElement | RawDataElement], found))
        dataset.set_original_encoding(implicit, not big_endian, dataset._character_set)
        dataset.file_meta = meta
        return dataset, end, truncated
    except NotDicom:
        raise
    except RecursionError:
        raise NotDicom("sequences are nested too deeply to be read") from None
    except InvalidDicomError:
        raise NotDicom("not a DICOM Part 10 file: no DICM prefix") from None
    except EOFError:
        raise NotDicom("truncated: the bytes end within an element") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything; all of it means the same here
        raise NotDicom(f"the dataset cannot be read ({type(error).__name__})") from None


def _missing(file: BinaryIO, syntax: str, position: int, size: int) -> str:
    """Say that the pixel data is longer than what is there; empty where it is not."""
    if syntax == DeflatedExplicitVRLittleEndian:
        return ""  # a deflated stream that ends early has been refused already
    file.seek(position)
    head = file.read(12)
    if position <= size and len(head) < 8:
        return ""
    if position <= size:
        # A syntax that is not known is explicit little endian like all but two (PS3.5 10, A.4).
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        if syntax == ImplicitVRLittleEndian:
            length, start = struct.unpack(order + "L", head[4:8])[0], position + 8
        elif head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UT", b"UC", b"UR", b"SQ"):
            length, start = struct.unpack(order + "L", head[8:12].ljust(4, b"\0"))[0], position + 12
        else:
            length, start = struct.unpack(order + "H", head[6:8])[0], position + 8
        if length == _UNDEFINED_LENGTH or start + length <= size:
            return ""
    return "truncated: an element is longer than what is left"


def _dataset_start(file: BinaryIO) -> int:
    """Return where the dataset begins, by walking group 0002 (PS3.10 7.1: Explicit VR Little Endian)."""
    file.seek(128)
    if file.read(4) != b"DICM":
        raise NotDicom("not a DICOM Part 10 file: no DICM prefix")
    while True:
        position = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            return position
        if head[4:6] in (b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF"):
            rest = file.read(4)
            if len(rest) < 4:
                raise NotDicom("truncated within the file meta information")
            length = struct.unpack("<L", rest)[0]
        else:
            length = struct.unpack("<H", head[6:8])[0]
        file.seek(length, 1)


def file_digest(path: Path) -> str:
    """Return SHA-256 of all the bytes of a file."""
    with path.open("rb") as file:
        return _digest_from(file, 0)


def dataset_digest(path: Path) -> str:
    """Return SHA-256 of a Part 10 file's dataset, without file meta: what an instance's row keeps.

    Raises
    ------
    NotDicom
        When it is no Part 10 file.
    """
    with path.open("rb") as file:
        return _digest_from(file, _dataset_start(file))


def _digest_from(file: BinaryIO, start: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _uid(dataset: Dataset, keyword: str) -> str:
    value = _text(dataset, keyword).strip("\0 ")
    if not value:
        raise NotDicom(f"the dataset has no {keyword}")
    if not _NAME.fullmatch(value):
        raise NotDicom(f"{keyword} is no UID: digits and dots, at most 64 characters (PS3.5 9.1)")
    return value


def _badly_named(uids: Mapping[str, str]) -> list[str]:
    """Say which of the names are no UIDs: findable, but no document of ours could refer to them."""
    return [f"{keyword} is no UID (PS3.5 9.1)" for keyword, value in uids.items() if not _is_uid(value)]


def _is_uid(value: str) -> bool:
    # Leading zeros in a component are common in the field and harm nobody.
    return len(value) <= 64 and all(part.isascii() and part.isdigit() for part in value.split("."))


def _equipment(dataset: Dataset) -> list[Dataset]:
    """Return the items of the Contributing Equipment Sequence; what is none, or cannot be read, says nothing."""
    try:
        sequence = dataset.get("ContributingEquipmentSequence")
        return [item for item in sequence or () if isinstance(item, Dataset)]
    except Exception:  # noqa: BLE001 - see _text
        return []


def _text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text; one that its VR does not allow as it was sent, or as nothing where it is no text at all.

    Hostile bytes raise anything: an unknown VR, a number of the wrong length, a character set that does not exist.
    """
    tag = Tag(keyword)
    if tag not in dataset:
        return ""
    sent = dataset._dict[tag].value
    try:
        value = dataset[tag].value
        pieces = value if isinstance(value, MultiValue) else [value]
        if value is None or all(isinstance(one, (str, PersonName)) for one in pieces):
            return str(value or "")
    except Exception:  # noqa: BLE001, S110 - see above
        pass
    return sent.decode("latin-1") if isinstance(sent, bytes) else ""


def _identity(dataset: Dataset) -> dict[str, str]:
    return _normalised(*(_text(dataset, one) for one in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")))


@lru_cache(maxsize=64)
def _normalised(patient_id: str, name: str, birth_date: str, sex: str) -> dict[str, str]:
    """Make two spellings of the same patient equal; of a name only the alphabetic group counts, where there is one."""
    name = name.split("=", maxsplit=1)[0] or name
    name = " ".join("^".join(part.strip() for part in name.split("^")).rstrip("^").split())
    fields = {"patient_id": patient_id, "name": name, "birth_date": birth_date, "sex": sex}
    return {
        key: unicodedata.normalize("NFKC", value).replace("\0", "").strip().casefold() for key, value in fields.items()
    }
