"""What the index reads of a deflated dataset costs little, however much it stands for."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.errors import NotDicom
from storage.headers import read_header
from storage.inflating import Inflating
from tests.dicom_factory import ct_series

_MEGABYTE = 1 << 20


def deflated(folder: Path, pixel_megabytes: int) -> tuple[Path, Path]:
    """Return a CT image and the same with so much zero pixel data, deflated (PS3.5 A.5)."""
    (plain,) = ct_series(folder, np.zeros((1, 16, 16)))
    dataset = pydicom.dcmread(plain)
    del dataset.PixelData
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    without = folder / "without.dcm"
    dataset.save_as(without)
    content = without.read_bytes()
    with without.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        start = file.tell()
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, pixel_megabytes * _MEGABYTE)
    path = folder / "deflated.dcm"
    with path.open("wb") as file:
        file.write(content[:start])
        file.write(bomb.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS) + pixels))
        for _ in range(pixel_megabytes):
            file.write(bomb.compress(bytes(_MEGABYTE)))
        file.write(bomb.flush())
    return plain, path


def test_gigabytes_of_deflated_pixels_are_indexed_without_being_held(tmp_path: Path) -> None:
    plain, path = deflated(tmp_path, pixel_megabytes=256)
    assert path.stat().st_size < _MEGABYTE
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * _MEGABYTE
    expected = read_header(plain)
    assert header.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    assert (header.sop_instance_uid, header.identity) == (expected.sop_instance_uid, expected.identity)
    assert (header.study, header.series, header.instance) == (expected.study, expected.series, expected.instance)


def test_a_deflated_dataset_that_ends_early_or_is_none_is_no_dicom(tmp_path: Path) -> None:
    _, path = deflated(tmp_path, pixel_megabytes=4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(NotDicom, match="truncated"):
        read_header(path)
    with pytest.raises(NotDicom, match="cannot be inflated"):
        Inflating(BytesIO(b"\xff" * 100)).finish()


def test_inflating_ends_at_its_limits() -> None:
    bomb = zlib.compress(bytes(8 * _MEGABYTE), wbits=-zlib.MAX_WBITS)
    with pytest.raises(NotDicom, match="longer than 4194304 bytes"):
        Inflating(BytesIO(bomb), maximum=4 * _MEGABYTE).finish()
    with pytest.raises(NotDicom, match="too long to be read"):
        Inflating(BytesIO(bomb), maximum_read=_MEGABYTE).read(2 * _MEGABYTE)
    Inflating(BytesIO(bomb), maximum=8 * _MEGABYTE).finish()


def test_what_was_inflated_can_be_skipped_and_gone_back_to_a_little() -> None:
    data = np.random.default_rng(1).bytes(3 * _MEGABYTE)
    stream = Inflating(BytesIO(zlib.compress(data, wbits=-zlib.MAX_WBITS)))
    assert stream.read(10) == data[:10]
    stream.seek(2 * _MEGABYTE)
    assert stream.read(100) == data[2 * _MEGABYTE :][:100]
    stream.seek(-40_000, 1)
    assert stream.read(200) == data[stream.tell() - 200 :][:200]
    stream.seek(3 * _MEGABYTE - 5)
    assert stream.read(100) == data[-5:]
    assert stream.read(1) == b""
    with pytest.raises(OSError, match="no longer held"):
        stream.seek(0)
