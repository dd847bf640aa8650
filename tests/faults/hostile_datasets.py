"""Part 10 files that are wrong in every way, each made by a seed and a number alone.

Half of them are good files that something was done to; the others are written element by element by somebody who
lies about VRs, lengths, nesting and character sets.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pydicom
from pydicom import Dataset, FileMetaDataset
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from node.dimse.partten import file_head
from storage.attributes import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS
from tests.faults.mutations import lie, mutate

__all__ = ["CT", "SYNTAXES", "corpus", "encoded", "hostile_dataset", "hostile_file"]

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)
_VRS = (
    "AE",
    "AS",
    "AT",
    "CS",
    "DA",
    "DS",
    "DT",
    "FL",
    "FD",
    "IS",
    "LO",
    "LT",
    "OB",
    "OD",
    "OF",
    "OL",
    "OV",
    "OW",
    "PN",
    "SH",
    "SL",
    "SQ",
    "SS",
    "ST",
    "SV",
    "TM",
    "UC",
    "UI",
    "UL",
    "UN",
    "UR",
    "US",
    "UT",
    "UV",
)
_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_TAGS = tuple(
    sorted(
        {
            tag
            for one in (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS, "ContributingEquipmentSequence")
            if (tag := tag_for_keyword(one)) is not None
        }
    )
)
_CHARACTER_SETS = (
    b"ISO_IR 100",
    b"ISO_IR 192",
    b"\\ISO 2022 IR 87",
    b"ISO 2022 IR 6\\ISO 2022 IR 149",
    b"\\ISO 2022 IR 58",
    b"GB18030",
    b"ISO_IR 13",
    b"latin\\1",
    b"ISO_IR 999",
    b"\\" * 20,
    b"\xff\xfe",
)
#: A dataset of zeros behind a few bytes; more would only take longer.
_BOMB = 24 << 20
_BIGGEST_OF_THE_CORPUS = 12_000


@cache
def corpus(shared: Path | None = None) -> tuple[bytes, ...]:
    """Return good files: small synthetic ones in five transfer syntaxes, and the heads of real ones where they are."""
    files = [encoded(_good(), syntax) for syntax in SYNTAXES]
    for path in sorted(shared.rglob("*")) if shared is not None else ():
        data = path.read_bytes() if path.is_file() else b""
        if data[128:132] == b"DICM":
            files.append(data[:_BIGGEST_OF_THE_CORPUS])
    return tuple(files)


def hostile_file(seed: int, number: int, files: Sequence[bytes]) -> bytes:
    """Return the file of that number."""
    dice = Random(f"{seed}-{number}")
    if dice.random() < 0.5:
        return mutate(dice, dice.choice(files), files)
    syntax = dice.choice((*SYNTAXES, "1.2.3.4"))
    uid = generate_uid(entropy_srcs=[str(seed), str(number)])
    head = file_head(sop_class_uid=CT, sop_instance_uid=uid, transfer_syntax_uid=syntax, source_ae_title="FUZZ")
    return head + hostile_dataset(dice, uid, syntax)


def hostile_dataset(dice: Random, sop_instance_uid: str, syntax: str) -> bytes:
    """Return a dataset in a transfer syntax that is mostly right in what identifies it and wrong in the rest."""
    implicit, big = syntax == ImplicitVRLittleEndian, syntax == ExplicitVRBigEndian
    writer = _Writer(dice, implicit=implicit, big=big)
    identifying = {
        tag_for_keyword(keyword): value.encode() + b"\0" * (len(value) % 2)
        for keyword, value in (
            ("SOPClassUID", CT),
            ("SOPInstanceUID", sop_instance_uid),
            ("StudyInstanceUID", f"1.2.3.{dice.randrange(50)}"),
            ("SeriesInstanceUID", f"1.2.3.{dice.randrange(50)}.1"),
        )
    }
    tags = {*identifying, *dice.sample(_TAGS, dice.randint(0, 25)), *(dice.getrandbits(32) for _ in range(3))}
    order = sorted(tags) if dice.random() < 0.9 else list(tags)
    parts = []
    for tag in order:
        if tag in identifying and dice.random() < 0.97:
            parts.append(writer.element(tag, "UI", identifying[tag], honest=dice.random() < 0.99))
        else:
            parts.append(writer.anything(tag))
    if dice.random() < 0.5:
        parts.append(writer.element(0x7FE00010, "OW", bytes(64), honest=dice.random() < 0.8))
    data = b"".join(parts)
    if dice.random() < 0.1:
        data = mutate(dice, data)
    if syntax == DeflatedExplicitVRLittleEndian:
        data = _deflate(data, _BOMB if dice.random() < 0.02 else 0)
        if dice.random() < 0.3:
            data = mutate(dice, data)
    return data


class _Writer:
    """Writes elements in one encoding, and not always as it should."""

    def __init__(self, dice: Random, *, implicit: bool, big: bool) -> None:
        self._dice = dice
        self._implicit = implicit
        self._order = ">" if big else "<"

    def element(self, tag: int, vr: str, value: bytes, *, honest: bool = True) -> bytes:
        length = len(value) if honest else lie(self._dice, len(value))
        return self._head(tag, vr.encode(), length) + value

    def anything(self, tag: int, depth: int = 0) -> bytes:
        dice = self._dice
        vr = self._vr_of(tag) if dice.random() < 0.6 else dice.choice(_VRS)
        if vr == "SQ" and depth < 40:
            return self._sequence(tag, depth)
        value = self._value(tag, vr)
        stated = vr.encode() if dice.random() < 0.97 else dice.choice((b"XX", b"\0\0", b"sq", b"??", b"  "))
        return self._head(tag, stated, len(value) if dice.random() < 0.97 else lie(dice, len(value))) + value

    def _sequence(self, tag: int, depth: int) -> bytes:
        dice = self._dice
        deep = dice.random() < 0.1
        items = b""
        for _ in range(1 if deep else dice.randint(0, 3)):
            # One in ten goes down and down; the others stay shallow.
            inner = self._sequence(tag, depth + 1) if deep and depth < 40 else b""
            inner += b"".join(
                self.anything(one, 40 if depth else 39) for one in sorted(dice.sample(_TAGS, dice.randint(0, 3)))
            )
            open_ended = dice.random() < 0.4
            length = 0xFFFFFFFF if open_ended else len(inner)
            if dice.random() < 0.05:
                length = lie(dice, len(inner))
            items += struct.pack(self._order + "HHL", 0xFFFE, 0xE000, length) + inner
            if open_ended and dice.random() < 0.95:
                items += struct.pack(self._order + "HHL", 0xFFFE, 0xE00D, 0)
        if dice.random() < 0.4:
            if dice.random() < 0.95:
                items += struct.pack(self._order + "HHL", 0xFFFE, 0xE0DD, 0)
            return self._head(tag, b"SQ", 0xFFFFFFFF) + items
        return self._head(tag, b"SQ", len(items) if dice.random() < 0.95 else lie(dice, len(items))) + items

    def _head(self, tag: int, vr: bytes, length: int) -> bytes:
        group, element = tag >> 16, tag & 0xFFFF
        if self._implicit:
            return struct.pack(self._order + "HHL", group, element, length & 0xFFFFFFFF)
        if vr.decode("latin-1") in _LONG:
            return struct.pack(self._order + "HH2sHL", group, element, vr, 0, length & 0xFFFFFFFF)
        return struct.pack(self._order + "HH2sH", group, element, vr, length & 0xFFFF)

    def _vr_of(self, tag: int) -> str:
        try:
            return pydicom.datadict.dictionary_VR(tag)[:2]
        except KeyError:
            return self._dice.choice(_VRS)

    def _value(self, tag: int, vr: str) -> bytes:
        dice = self._dice
        if tag == 0x00080005 and dice.random() < 0.9:
            return dice.choice(_CHARACTER_SETS)
        kind = dice.random()
        if kind < 0.15:
            return b""
        if kind < 0.25:
            return dice.randbytes(dice.choice((1, 2, 3, 4, 7, 8, 16, 300)))
        sample = {
            "DA": b"20260102",
            "TM": b"101112.5",
            "DS": b"-1.5e3\\0.25",
            "IS": b"-12\\7",
            "PN": "Müller^Jörg=山田^太郎=やまだ".encode(dice.choice(("utf-8", "shift_jis", "gb18030")), "replace"),
            "UI": b"1.2.840.10008.1.2\0",
            "US": struct.pack(self._order + "H", dice.choice((0, 1, 512, 65535))),
            "UL": struct.pack(self._order + "L", dice.getrandbits(32)),
            "FD": struct.pack(self._order + "d", dice.choice((float("nan"), float("inf"), -0.0, 1e308))),
            "FL": struct.pack(self._order + "f", dice.choice((float("nan"), float("-inf"), 1.5))),
        }.get(vr, b"some text")
        if kind < 0.35:
            sample *= dice.choice((2, 30, 300))
        return mutate(dice, sample) if kind < 0.6 else sample


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """Return a Part 10 file in a transfer syntax; in a compressed one the pixel data becomes one fragment."""
    if UID(syntax).is_encapsulated:
        dataset.PixelData = encapsulate([bytes(64)])
        dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = BytesIO()
    pydicom.dcmwrite(
        buffer,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def _good() -> Dataset:
    dataset = Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CT,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.1",
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "AccessionNumber": "A1",
        "Modality": "CT",
        "Manufacturer": "Somebody",
        "ReferringPhysicianName": "Doe^Jane",
        "StudyDescription": "CT CHEST",
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "PatientID": "P1",
        "PatientBirthDate": "19600101",
        "PatientSex": "O",
        "PatientAge": "066Y",
        "SliceThickness": "1.25",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.2",
        "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.3",
        "InstanceNumber": "1",
        "ImagePositionPatient": [0.0, 0.5, -1.5],
        "Rows": 2,
        "Columns": 2,
        "BitsAllocated": 16,
        "PixelData": bytes(8),
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "L", "CT of chest"
    dataset.ProcedureCodeSequence = [code]
    asked = Dataset()
    asked.RequestedProcedureID, asked.ScheduledProtocolCodeSequence = "R1", [code]
    dataset.RequestAttributesSequence = [asked, asked]
    made = Dataset()
    made.Manufacturer, made.PurposeOfReferenceCodeSequence = "Other", [code]
    dataset.ContributingEquipmentSequence = [made]
    return dataset


def _deflate(data: bytes, zeros: int) -> bytes:
    deflating = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflating.compress(data)
    if zeros:
        packed += deflating.compress(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, zeros))
        packed += deflating.compress(bytes(zeros))
    return packed + deflating.flush()
