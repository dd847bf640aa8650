"""A CT series becomes a volume in the patient's axes and masks come back on its pixels, or it is refused precisely."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from inference.engine import ImageFile
from inference.errors import InputRefused
from inference.imagefile import ModalityValues
from inference.volume import Volume, read_volume
from tests.dicom_factory import AXIAL, ct_series

#: Label to a ball's centre in LPS (mm), radius and HU: no two alike in any axis.
BALLS = {
    1: ((-14.0, -6.0, 11.0), 7.0, 500),
    2: ((15.0, 5.0, 9.0), 6.0, 1500),
    3: ((3.0, 13.0, -13.0), 5.0, 2500),
}
AXES = [np.array(v, float) * s for v in ((1, 0, 0), (0, 1, 0), (0, 0, 1)) for s in (1, -1)]
RIGHT_ANGLES = [(tuple(r), tuple(c)) for r, c in itertools.product(AXES, AXES) if abs(r @ c) < 0.5]


def phantom(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """HU at LPS points (..., 3): air, and the three balls."""
    hu = np.full(points.shape[:-1], -1000, np.int32)
    for centre, radius, value in BALLS.values():
        hu[np.linalg.norm(points - np.array(centre), axis=-1) < radius] = value
    return hu


def labels_of(hu: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Which ball each voxel belongs to."""
    labels = np.zeros(hu.shape, np.uint8)
    for label, (_, _, value) in BALLS.items():
        labels[hu == value] = label
    return labels


def acquire(
    folder: Path, row: Sequence[float], column: Sequence[float], *, seed: int = 0, **attributes: Any
) -> list[ImageFile]:
    """Scan the phantom on an anisotropic grid of any orientation; files come back shuffled."""
    shape, spacing = (30, 44, 40), (2.0, 1.1, 1.3)
    normal = np.cross(row, column)
    half = [(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
    origin = -half[0] * normal - half[1] * np.array(column) - half[2] * np.array(row)
    k, r, c = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    points = origin + k[..., None] * normal + r[..., None] * np.array(column) + c[..., None] * np.array(row)
    random = np.random.default_rng(seed)
    paths = ct_series(
        folder,
        phantom(points),
        spacing=spacing,
        orientation=(*row, *column),
        origin=origin,
        order=random.permutation(shape[0]) + 1,
        **attributes,
    )
    return [ImageFile(pydicom.dcmread(paths[i]).SOPInstanceUID, paths[i]) for i in random.permutation(shape[0])]


def rotation(seed: int, degrees: float) -> npt.NDArray[np.float64]:
    """A rotation by an angle about a random axis (Rodrigues)."""
    axis = np.random.default_rng(seed).normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def assert_at_home(volume: Volume, files: list[ImageFile]) -> None:
    """Every ball lies at its patient point in the volume, and its mask on exactly its pixels in every image."""
    labels = labels_of(volume.array)
    for label, (centre, _, _) in BALLS.items():
        voxels = np.argwhere(labels == label)
        assert len(voxels) > 20
        found = (volume.affine @ np.append(voxels.mean(axis=0), 1.0))[:3]
        assert np.linalg.norm(found - centre) < 0.7
    masks = volume.to_source(labels)
    assert volume.keys == tuple(file.key for file in files)
    for mask, file in zip(masks, files, strict=True):
        dataset = pydicom.dcmread(file.path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert (mask == labels_of(hu)).all()
    # Axes: slices towards the head, rows towards the back, columns towards the patient's left.
    assert (np.diag(volume.affine[[2, 1, 0], :3]) > 0.7 * np.array(volume.spacing_mm)).all()
    assert abs(np.linalg.det(volume.affine[:3, :3])) == pytest.approx(2.0 * 1.1 * 1.3, rel=1e-6)


@pytest.mark.parametrize(("row", "column"), RIGHT_ANGLES)
def test_a_series_of_any_axes_comes_back_on_the_same_patient_points(
    tmp_path: Path, row: tuple[float, ...], column: tuple[float, ...]
) -> None:
    files = acquire(tmp_path, row, column)
    assert_at_home(read_volume(files), files)


@pytest.mark.parametrize("seed", range(6))
def test_an_oblique_series_comes_back_on_the_same_patient_points(tmp_path: Path, seed: int) -> None:
    row, column = RIGHT_ANGLES[seed * 4]
    turn = rotation(seed, 10 + 4 * seed)
    files = acquire(tmp_path, tuple(turn @ row), tuple(turn @ column), seed=seed)
    assert_at_home(read_volume(files), files)


def test_the_patients_right_lies_in_the_first_columns_however_the_patient_lay(tmp_path: Path) -> None:
    for name, row, column in [
        ("supine", (1, 0, 0), (0, 1, 0)),
        ("prone", (-1, 0, 0), (0, -1, 0)),
        ("mirrored", (-1, 0, 0), (0, 1, 0)),
    ]:
        volume = read_volume(acquire(tmp_path / name, row, column))
        right = np.argwhere(volume.array == BALLS[1][2])[:, 2].mean()
        left = np.argwhere(volume.array == BALLS[2][2])[:, 2].mean()
        assert right < volume.array.shape[2] / 2 < left


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    volume = read_volume(acquire(tmp_path, (1, 0, 0), (0, 1, 0)))
    with pytest.raises(ValueError, match="shape"):
        volume.to_source(np.zeros((1, 2, 3), np.uint8))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_hounsfield_units_are_those_of_the_scanner_in_every_transfer_syntax(
    tmp_path: Path, syntax: str, signed: bool
) -> None:
    hu = np.random.default_rng(1).integers(-1024, 3000, (3, 64, 64))
    hu[:, :32] = np.linspace(-1000, 1000, 64).astype(int)
    files = series(tmp_path, hu, signed=signed, intercept=-1024.0 if not signed else 0.0, transfer_syntax=syntax)
    assert (read_volume(files).array == hu).all()


def test_a_rescale_that_differs_from_slice_to_slice_is_applied_slice_by_slice(tmp_path: Path) -> None:
    hu = np.random.default_rng(2).integers(-500, 500, (4, 8, 8))
    files = series(tmp_path, hu)
    changed = pydicom.dcmread(files[2].path)
    stored = ((hu[2] + 2000) * 2).astype("<u2")
    changed.RescaleSlope, changed.RescaleIntercept = "0.5", "-2000"
    changed.PixelData = stored.tobytes()
    changed.save_as(files[2].path)
    assert (read_volume(files).array == hu).all()


def test_unused_bits_above_bits_stored_are_not_read(tmp_path: Path) -> None:
    hu = np.random.default_rng(3).integers(-1024, 3000, (3, 8, 8))
    files = series(tmp_path, hu, BitsStored=12, HighBit=11)
    for file in files:
        dataset = pydicom.dcmread(file.path)
        overlay = np.frombuffer(dataset.PixelData, "<u2") | 0x8000
        dataset.PixelData = overlay.tobytes()
        dataset.save_as(file.path)
    assert (read_volume(files).array == hu).all()


def test_padding_outside_the_scanners_field_is_air(tmp_path: Path) -> None:
    hu = np.full((3, 8, 8), 40)
    hu[:, :2] = -2000
    hu[:, 2] = 3000
    files = series(tmp_path, hu, signed=True, intercept=0.0, PixelPaddingValue=3000, PixelRepresentation=1)
    array = read_volume(files).array
    assert (array[:, :3] == -1024).all()
    assert (array[:, 3:] == 40).all()


def test_the_coverage_is_the_series_own(tmp_path: Path) -> None:
    coverage = read_volume(series(tmp_path, np.zeros((5, 4, 4)), spacing=(2.5, 1, 1))).coverage
    assert (coverage.images, coverage.spacing_mm, coverage.extent_mm) == (5, pytest.approx(2.5), pytest.approx(12.5))


def test_a_localizer_within_the_series_is_left_out_and_named(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((5, 4, 4)))
    scout = series(
        tmp_path / "scout",
        np.zeros((1, 6, 4)),
        orientation=(1, 0, 0, 0, 0, -1),
        frame_of_reference_uid=pydicom.dcmread(files[0].path).FrameOfReferenceUID,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    volume = read_volume([files[0], *scout, *files[1:]])
    assert volume.left_out == (scout[0].key,)
    assert volume.keys == tuple(file.key for file in files)


def series(folder: Path, hu: npt.ArrayLike, **how: Any) -> list[ImageFile]:
    return [ImageFile(path.stem, path) for path in ct_series(folder, hu, **how)]


def refusal(files: Sequence[ImageFile], **how: Any) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read_volume(files, **how)
    assert "Phantom" not in caught.value.text
    return caught.value


def edit(file: ImageFile, **values: Any) -> ImageFile:
    dataset = pydicom.dcmread(file.path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file.path)
    return file


def test_a_missing_inner_slice_is_refused_with_its_place(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((9, 4, 4)), spacing=(2, 1, 1), origin=(0, 0, -20))
    refused = refusal([*files[:4], *files[5:]])
    assert refused.reason == "gap-in-series"
    assert "between -14.0 and -10.0 mm" in refused.text


def test_a_missing_end_slice_shows_in_the_coverage_alone(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((9, 4, 4)))
    assert read_volume(files[1:]).coverage.images == 8


def test_two_phases_in_one_place_are_refused(tmp_path: Path) -> None:
    shared = {"frame_of_reference_uid": "2.25.1", "origin": (0, 0, -20)}
    files = series(tmp_path / "a", np.zeros((5, 4, 4)), **shared)
    later = series(tmp_path / "b", np.zeros((5, 4, 4)), **shared)
    refused = refusal(files + later)
    assert refused.reason == "duplicate-positions"
    assert "5 images" in refused.text
    assert "-20.0 mm" in refused.text


def test_one_image_given_twice_is_refused(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((5, 4, 4)))
    assert refusal([*files, files[2]]).reason == "duplicate-positions"


def test_slices_at_uneven_distances_are_refused(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((6, 4, 4)), origin=(0, 0, 0), spacing=(2, 1, 1))
    edit(files[3], ImagePositionPatient=[0, 0, 6.5])
    assert refusal(files).reason == "irregular-spacing"


def test_slices_at_two_distances_that_add_up_are_refused(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((31, 4, 4)), origin=(0, 0, 0), spacing=(1, 1, 1))
    for number in range(16, 31):
        edit(files[number], ImagePositionPatient=[0, 0, round(15 + 1.095 * (number - 15), 3)])
    refused = refusal(files)
    assert refused.reason == "irregular-spacing"
    assert "0.7 mm from where" in refused.text
    # Half of them lie within half a slice of where they are told.
    assert read_volume(files[6:25]).coverage.images == 19


def test_two_orientations_are_refused_with_the_number_of_each(tmp_path: Path) -> None:
    shared = {"frame_of_reference_uid": "2.25.1"}
    axial = series(tmp_path / "a", np.zeros((5, 4, 4)), **shared)
    coronal = series(tmp_path / "b", np.zeros((3, 4, 4)), orientation=(1, 0, 0, 0, 0, -1), **shared)
    refused = refusal(axial + coronal)
    assert refused.reason == "mixed-orientations"
    assert "5, 3 images" in refused.text


def test_a_stack_that_leans_further_than_any_gantry_is_refused_with_its_angle(tmp_path: Path) -> None:
    angle = np.radians(40)
    files = series(tmp_path, np.zeros((6, 4, 4)), step=(0, 2 * np.tan(angle), 2))
    refused = refusal(files)
    assert refused.reason == "gantry-tilt"
    assert "40.0 degrees" in refused.text


def test_a_slice_aside_of_the_stack_is_refused(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((6, 4, 4)), origin=(0, 0, 0), spacing=(2, 1, 1))
    edit(files[3], ImagePositionPatient=[9, 0, 6])
    assert refusal(files).reason == "slices-aside"


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_an_image_without_its_place_is_refused_by_the_attributes_name(tmp_path: Path, keyword: str) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    edit(files[1], **{keyword: None})
    refused = refusal(files)
    assert refused.reason == "missing-geometry"
    assert keyword in refused.text


@pytest.mark.parametrize(
    ("keyword", "words"),
    [("PixelRepresentation", "Pixel Representation"), ("BitsStored", "Bits Stored"), ("BitsAllocated", "Allocated")],
)
def test_an_image_that_does_not_say_what_its_bits_mean_is_refused_by_the_attributes_name(
    tmp_path: Path, keyword: str, words: str
) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    edit(files[1], **{keyword: None})
    refused = refusal(files)
    assert refused.reason == "unsupported-bits"
    assert words in refused.text


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "missing-geometry"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "missing-geometry"),
        ({"PixelSpacing": [0, 1]}, "missing-geometry"),
        ({"PixelSpacing": ["1e-9", "1e-9"]}, "missing-geometry"),
        ({"PixelSpacing": ["1000", "1"]}, "missing-geometry"),
        ({"ImagePositionPatient": ["0", "0", "1e9"]}, "missing-geometry"),
        ({"PixelSpacing": [0.8, 0.9]}, "varying-pixel-spacing"),
        ({"FrameOfReferenceUID": "2.25.7"}, "mixed-frames-of-reference"),
        ({"Rows": 0}, "no-pixels"),
        ({"PixelData": b""}, "no-pixels"),
        ({"PixelData": b"\0\0"}, "no-pixels"),
        ({"PixelData": None}, "no-pixels"),
        ({"SamplesPerPixel": 3}, "multi-sample"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported-photometric"),
        ({"NumberOfFrames": "2"}, "multi-frame"),
        ({"RescaleSlope": None}, "missing-rescale"),
        ({"RescaleSlope": "0"}, "missing-rescale"),
        ({"RescaleSlope": "100000"}, "missing-rescale"),
        ({"RescaleType": "MGML"}, "not-hounsfield"),
        ({"Modality": "MR"}, "mixed-modalities"),
        ({"HighBit": 11}, "unsupported-bits"),
    ],
    ids=str,
)
def test_one_odd_image_refuses_the_series_for_its_own_reason(
    tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    edit(files[1], **values)
    assert refusal(files).reason == reason


def test_signed_values_under_an_unsigned_header_are_refused_and_a_little_metal_is_not(tmp_path: Path) -> None:
    hu = np.full((4, 20, 20), -1000)
    files = series(tmp_path / "signed", hu, intercept=0)
    for file in files:
        edit(file, PixelRepresentation=0, PixelData=np.full((20, 20), -1000, np.int16).tobytes())
    assert refusal(files).reason == "not-hounsfield"
    files = series(tmp_path / "metal", hu)
    pixels = np.zeros((20, 20), np.uint16)
    pixels[:2, :2] = 65000
    edit(files[1], PixelRepresentation=0, BitsStored=16, HighBit=15, PixelData=pixels.tobytes())
    assert read_volume(files).array.max() == 32767


def test_values_of_32_bits_are_not_wrapped_round() -> None:
    stored = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    assert (ModalityValues(1.0, -1.0).of(stored) == np.array([[-1, 2**31, 2**32]], np.float32)).all()
    assert (ModalityValues(1.0, -1.0).of(stored[:, :1]) == -1).all()


def test_images_of_two_sizes_are_refused_with_both(tmp_path: Path) -> None:
    shared = {"frame_of_reference_uid": "2.25.1", "origin": (0, 0, 0)}
    files = series(tmp_path / "a", np.zeros((3, 4, 4)), **shared)
    files += series(tmp_path / "b", np.zeros((2, 8, 4)), **(shared | {"origin": (0, 0, 6)}))
    refused = refusal(files)
    assert refused.reason == "varying-matrix"
    assert "4 x 4, 8 x 4" in refused.text


def test_too_few_slices_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    refused = refusal(files, minimum=8)
    assert refused.reason == "too-few-slices"
    assert "8" in refused.text
    assert refusal(files[:1]).reason == "too-few-slices"
    assert refusal([]).reason == "too-few-slices"


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((4, 64, 64)))
    content = files[1].path.read_bytes()
    files[1].path.write_bytes(content[: len(content) - 3000])
    assert refusal(files).reason == "no-pixels"
    files[1].path.write_bytes(b"no DICOM at all" * 50)
    assert refusal(files).reason == "unreadable"


def test_a_transfer_syntax_without_a_decoder_is_named(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((4, 64, 64)), transfer_syntax=RLELossless)
    dataset = pydicom.dcmread(files[1].path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.103"
    dataset.save_as(files[1].path)
    refused = refusal(files)
    assert refused.reason == "no-pixels"
    assert "MPEG-4 AVC/H.264" in refused.text


def test_a_file_that_is_not_there_is_the_nodes_trouble_and_no_refusal(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    files[1].path.unlink()
    with pytest.raises(FileNotFoundError):
        read_volume(files)


def test_deeply_nested_sequences_are_refused_and_the_process_lives(tmp_path: Path) -> None:
    files = series(tmp_path, np.zeros((4, 4, 4)))
    content = files[1].path.read_bytes()
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = content.index(b"\x08\x00\x60\x00CS")
    files[1].path.write_bytes(content[:start] + item * 180_000)
    assert refusal(files).reason == "unreadable"


def test_a_real_series_is_read_as_pydicom_reads_it(shared_data: Path) -> None:
    paths = sorted((shared_data / "ct_thorax_series" / "Lung_Dx-A0002_B40f").glob("*.dcm"))
    files = [ImageFile(path.stem, path) for path in paths]
    volume = read_volume(files)
    assert volume.array.shape == (30, 512, 512)
    back = volume.to_source((volume.array > 200).astype(np.uint8))
    for mask, path in zip(back, paths, strict=True):
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert (mask == (hu > 200)).all()


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_the_rarer_uncompressed_syntaxes_are_read_too(tmp_path: Path, syntax: str) -> None:
    hu = np.random.default_rng(5).integers(-1024, 2000, (3, 64, 64))
    files = series(tmp_path, hu)
    for file in files:
        dataset = pydicom.dcmread(file.path)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        little = syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(file.path, dataset, implicit_vr=False, little_endian=little, force_encoding=True)
    assert (read_volume(files).array == hu).all()


def test_axial_is_what_the_factory_makes_unasked(tmp_path: Path) -> None:
    assert tuple(pydicom.dcmread(series(tmp_path, np.zeros((2, 4, 4)))[0].path).ImageOrientationPatient) == AXIAL
