"""Enhanced multi-frame images, other modalities and several volumes in one series are read right or refused by name."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, MRImageStorage, PositronEmissionTomographyImageStorage, RLELossless

from inference.engine import ImageFile
from inference.errors import InputRefused
from inference.volume import Volume, read_volume
from tests.dicom_factory import ct_series
from tests.enhanced_factory import enhanced

#: Three balls: centre in LPS (mm), radius, HU. No two alike in any axis.
BALLS = (((-14.0, -6.0, 11.0), 7.0, 500), ((15.0, 5.0, 9.0), 6.0, 1500), ((3.0, 13.0, -13.0), 5.0, 2500))


def phantom(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """HU at LPS points (..., 3): air, and the balls."""
    hu = np.full(points.shape[:-1], -1000, np.int32)
    for centre, radius, value in BALLS:
        hu[np.linalg.norm(points - np.array(centre), axis=-1) < radius] = value
    return hu


def scan(
    row: npt.ArrayLike, column: npt.ArrayLike, spacing: tuple[float, float, float], tilt: float = 0.0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scan the phantom: HU (planes, rows, columns), the first pixel's place of each plane, the step (LPS, mm)."""
    shape = tuple(int(np.ceil(extent / mm)) for extent, mm in zip((52, 52, 56), spacing, strict=True))
    row, column = np.array(row, float), np.array(column, float)
    step = np.cross(row, column) * spacing[0] + column * spacing[0] * np.tan(np.radians(tilt))
    vectors = [step, column * spacing[1], row * spacing[2]]
    origin = -sum((n - 1) / 2 * vector for n, vector in zip(shape, vectors, strict=True))
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return phantom(origin + indices @ np.array(vectors)), origin + np.arange(shape[0])[:, None] * step, step


def assert_on_the_phantom(volume: Volume, spacing: tuple[float, float, float]) -> None:
    """Every ball lies where it is in the patient: its middle within half a voxel, in the volume and on the planes."""
    half = max(spacing) / 2
    labels = np.zeros(volume.array.shape, np.uint8)
    points = volume.grid.to_lps(np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1))
    for label, (centre, radius, value) in enumerate(BALLS, start=1):
        # Of a tilted gantry edges are interpolated, so that a bright ball's rim has a dull ball's value.
        inside = (volume.array > (value - 1000) / 2) & (np.linalg.norm(points - centre, axis=-1) < radius + 3)
        labels[inside] = label
        assert np.abs(volume.grid.to_lps(np.argwhere(inside)).mean(axis=0) - centre).max() < half
    # The axes are those nearest to S, P and L; at 45 degrees two choices are equally near, and rounding names either.
    toward = volume.grid.affine[:3, :3] / volume.grid.spacing_mm
    nearness = [sum(abs(toward[lps, axis]) for axis, lps in enumerate(order)) for order in permutations(range(3))]
    assert toward[2, 0] + toward[1, 1] + toward[0, 2] > max(nearness) - 1e-6
    back = volume.to_source(labels)
    assert back.shape[0] == len(volume.keys)
    # Planes come back in the order in which they were given; this one says where each of them lies.
    stack = np.empty_like(back)
    stack[volume._places] = back
    for label, (centre, _, _) in enumerate(BALLS, start=1):
        found = volume.source_grid.to_lps(np.argwhere(stack == label)).mean(axis=0)
        assert np.abs(found - centre).max() < half


def turn(angles: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """A rotation about x, then y, then z, by degrees."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        plane = [one for one in range(3) if one != axis]
        part = np.eye(3)
        part[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        result = part @ result
    return result


ANGLES = st.one_of(st.sampled_from([0.0, 90.0, 180.0, 270.0, 45.0]), st.floats(-180, 180))


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    angles=st.tuples(ANGLES, ANGLES, ANGLES),
    spacing=st.tuples(st.floats(1.0, 3.0), st.floats(0.9, 1.6), st.floats(0.9, 1.6)),
    mirrored=st.booleans(),
    tilt=st.sampled_from([0.0, 0.0, 12.0, -20.0, 30.0]),
    many=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_phantom_of_any_lie_comes_back_on_the_same_patient_points(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    spacing: tuple[float, float, float],
    mirrored: bool,
    tilt: float,
    many: bool,
    seed: int,
) -> None:
    turned = turn(angles)
    row, column = turned[0], -turned[1] if mirrored else turned[1]
    hu, positions, step = scan(row, column, spacing, tilt)
    shuffled = np.random.default_rng(seed).permutation(len(hu))
    folder = tmp_path_factory.mktemp("series")
    orientation = (*row, *column)
    if many:
        path = enhanced(folder, hu[shuffled], positions[shuffled], orientation=orientation, pixel_spacing=spacing[1:])
        files = [ImageFile(path.stem, path)]
    else:
        paths = ct_series(folder, hu, spacing=spacing, orientation=orientation, origin=positions[0], step=step)
        files = [ImageFile(paths[place].stem, paths[place]) for place in shuffled]
    volume = read_volume(files)
    assert volume.tilt_degrees == pytest.approx(abs(tilt), abs=0.01)
    assert_on_the_phantom(volume, spacing)
    if not tilt:
        # Nothing was resampled: every stored pixel is where it was, and a mask lies on exactly its pixels.
        assert (volume.to_source((volume.array > 0).astype(np.uint8)) == (hu[shuffled] > 0)).all()


def test_a_tilted_gantrys_mask_lies_on_the_pixels_that_it_was_drawn_from(tmp_path: Path) -> None:
    hu, positions, step = scan((1, 0, 0), (0, 1, 0), (2.0, 1.0, 1.0), tilt=18.0)
    paths = ct_series(tmp_path, hu, spacing=(2.0, 1.0, 1.0), origin=positions[0], step=step)
    volume = read_volume([ImageFile(path.stem, path) for path in paths])
    assert volume.array.dtype == np.int16
    assert volume.array.min() >= -1024
    back = volume.to_source((volume.array > -250).astype(np.uint8))
    wanted = hu > -250
    assert (back[wanted] == 1).mean() > 0.97
    assert (back[~wanted] == 0).mean() > 0.99


def test_of_a_tilted_gantry_only_what_was_scanned_can_be_marked_and_counted(tmp_path: Path) -> None:
    half = np.degrees(np.arctan(0.5 / 2))
    for number, (row, column, tilt) in enumerate(
        # The last leans by half a pixel from plane to plane, so that every second plane lies between the voxels.
        (((1, 0, 0), (0, 1, 0), 20.0), ((0, 1, 0), (0, 0, -1), 20.0), (*turn((20, 10, 30)).T[:2], half))
    ):
        hu, positions, step = scan(row, column, (2.0, 1.0, 1.1), tilt=tilt)
        paths = ct_series(
            tmp_path / str(number),
            hu,
            spacing=(2.0, 1.0, 1.1),
            orientation=(*row, *column),
            origin=positions[0],
            step=step,
        )
        volume = read_volume([ImageFile(path.stem, path) for path in paths])
        everything = volume.clear_unscanned(np.full(volume.array.shape, 2, np.uint8))
        assert 0 < np.count_nonzero(everything) < everything.size
        assert (volume.to_source(everything) == 2).all()
        assert np.count_nonzero(everything) == hu.size


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_each_frames_own_rescale_and_spacing_count_wherever_they_stand(tmp_path: Path, syntax: str) -> None:
    hu = np.random.default_rng(0).integers(-1000, 2000, (4, 64, 48))
    positions = [(0, 0, 3.0 * number) for number in (2, 0, 3, 1)]
    path = enhanced(tmp_path, hu, positions, shared=(), transfer_syntax=syntax)
    volume = read_volume([ImageFile("e", path)])
    assert (volume.array == hu[[1, 3, 0, 2]]).all()
    assert volume.frames == (1, 2, 3, 4)
    assert volume.keys == ("e",) * 4
    assert volume.images == ("e",)
    assert volume.coverage.spacing_mm == pytest.approx(3.0)


def test_a_volume_may_be_spread_over_several_multi_frame_images(tmp_path: Path) -> None:
    hu = np.random.default_rng(1).integers(-1000, 2000, (6, 8, 8))
    same = {"FrameOfReferenceUID": "2.25.9"}
    first = enhanced(tmp_path, hu[:4], [(0, 0, 2.0 * n) for n in range(4)], **same)
    second = enhanced(tmp_path, hu[4:], [(0, 0, 2.0 * n) for n in (4, 5)], **same)
    volume = read_volume([ImageFile("b", second), ImageFile("a", first)])
    assert (volume.array == hu).all()
    assert volume.keys == ("b", "b", "a", "a", "a", "a")
    assert volume.frames == (1, 2, 1, 2, 3, 4)


def refusal(*files: Path) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        read_volume([ImageFile(path.stem, path) for path in files])
    return caught.value


TWICE = [(0.0, 0.0, 2.0 * number) for number in range(4)] * 2


@pytest.mark.parametrize(
    ("content", "groups", "reason", "named"),
    [
        ({"TemporalPositionIndex": [1, 2]}, {}, "several-phases", "TemporalPositionIdentifier 1, 2"),
        ({"FrameAcquisitionNumber": [3, 7]}, {}, "several-acquisitions", "AcquisitionNumber 3, 7"),
        ({"StackID": ["1", "2"]}, {}, "several-stacks", "StackID 1, 2"),
        ({}, {"MREchoSequence": {"EffectiveEchoTime": [20.0, 80.0]}}, "several-echoes", "EchoTime 20.0, 80.0"),
        (
            {},
            {"MRDiffusionSequence": {"DiffusionBValue": [0.0, 1000.0]}},
            "several-diffusion-weightings",
            "0.0, 1000.0",
        ),
        (
            {},
            {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": [0.0, 400.0]}},
            "several-phases",
            "delays from the trigger",
        ),
        (
            {},
            {"MRImageFrameTypeSequence": {"FrameType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]}},
            "several-image-types",
            "ORIGINAL\\PRIMARY\\M, ORIGINAL\\PRIMARY\\P",
        ),
        ({}, {}, "duplicate-positions", "4 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_several_volumes_in_one_multi_frame_image_are_refused_by_what_tells_them_apart(
    tmp_path: Path, content: dict[str, Any], groups: dict[str, dict[str, Any]], reason: str, named: str
) -> None:
    path = enhanced(
        tmp_path,
        np.zeros((8, 4, 4)),
        TWICE,
        modality="MR",
        rescale=None,
        content=[{key: values[frame // 4] for key, values in content.items()} for frame in range(8)],
        groups=[
            {sequence: {key: values[frame // 4] for key, values in item.items()} for sequence, item in groups.items()}
            for frame in range(8)
        ],
    )
    refused = refusal(path)
    assert refused.reason == reason
    assert named in refused.text


@pytest.mark.parametrize(
    ("keyword", "values", "reason"),
    [
        ("AcquisitionNumber", ("1", "2"), "several-acquisitions"),
        ("TemporalPositionIdentifier", ("1", "2"), "several-phases"),
        ("TriggerTime", ("0", "450"), "several-phases"),
        ("ContrastBolusAgent", (None, "Typed by hand for Phantom"), "several-phases"),
        ("ConvolutionKernel", ("Br40", "Br64"), "several-reconstructions"),
        ("AcquisitionTime", ("101230", "101401"), "several-acquisitions"),
        ("KVP", ("80", "140"), "several-energies"),
    ],
)
def test_several_acquisitions_or_phases_in_one_series_are_refused_by_name(
    tmp_path: Path, keyword: str, values: tuple[Any, Any], reason: str
) -> None:
    shared = {"frame_of_reference_uid": "2.25.1", "origin": (0, 0, 0), "series_uid": "2.25.2"}
    files = [
        path
        for number, value in enumerate(values)
        for path in ct_series(tmp_path / str(number), np.zeros((4, 4, 4)), **shared, **{keyword: value})
    ]
    refused = refusal(*files)
    assert refused.reason == reason
    assert keyword in refused.text
    assert "Phantom" not in refused.text


@pytest.mark.parametrize(
    ("keyword", "values", "reason"),
    [
        ("TemporalPositionIdentifier", ("1", "2"), "several-phases"),
        ("ContrastBolusAgent", (None, "Typed by hand for Phantom"), "several-phases"),
        ("AcquisitionNumber", ("1", "2"), "several-acquisitions"),
        ("ConvolutionKernel", ("Br40", "Br64"), "several-reconstructions"),
        ("KVP", ("80", "140"), "several-energies"),
    ],
)
@pytest.mark.parametrize("order", ["abababab", "aabbaabb", "abbabaab"])
def test_volumes_whose_images_lie_between_each_others_are_refused_by_name(
    tmp_path: Path, keyword: str, values: tuple[Any, Any], reason: str, order: str
) -> None:
    paths = ct_series(tmp_path, np.zeros((8, 4, 4)))
    for path, which in zip(paths, order, strict=True):
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, values["ab".index(which)])
        dataset.save_as(path)
    refused = refusal(*paths)
    assert refused.reason == reason
    assert keyword in refused.text
    assert "Phantom" not in refused.text


@pytest.mark.parametrize("keyword", ["StackID", "TemporalPositionIndex"])
@pytest.mark.parametrize("order", ["12121212", "11112222"])
def test_a_second_stack_or_phase_is_refused_between_and_behind_the_first(
    tmp_path: Path, keyword: str, order: str
) -> None:
    positions = [(0.0, 0.0, 2.0 * number) for number in range(8)]
    content = [{keyword: which if keyword == "StackID" else int(which)} for which in order]
    path = enhanced(tmp_path, np.zeros((8, 4, 4)), positions, modality="MR", rescale=None, content=content)
    assert refusal(path).reason == ("several-stacks" if keyword == "StackID" else "several-phases")


def test_the_passes_in_which_one_volume_of_mr_is_acquired_make_one_volume(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, 2.0 * number) for number in range(8)]
    content = [{"FrameAcquisitionNumber": 1 + number % 2} for number in range(8)]
    path = enhanced(tmp_path, np.zeros((8, 4, 4)), positions, modality="MR", rescale=None, content=content)
    assert len(read_volume([ImageFile("a", path)]).array) == 8


def test_acquisitions_that_lie_one_behind_the_other_make_one_volume(tmp_path: Path) -> None:
    shared = {"frame_of_reference_uid": "2.25.1", "series_uid": "2.25.2"}
    first = ct_series(tmp_path / "1", np.zeros((4, 4, 4)), origin=(0, 0, 0), AcquisitionNumber="1", **shared)
    second = ct_series(tmp_path / "2", np.zeros((4, 4, 4)), origin=(0, 0, 8), AcquisitionNumber="2", **shared)
    assert len(read_volume([ImageFile(path.stem, path) for path in (*second, *first)]).array) == 8


def test_two_things_that_only_together_tell_volumes_apart_are_both_named(tmp_path: Path) -> None:
    content = [{"TemporalPositionIndex": 1 + frame // 8} for frame in range(16)]
    groups = [{"MREchoSequence": {"EffectiveEchoTime": 10.0 + 10 * (frame // 4 % 2)}} for frame in range(16)]
    path = enhanced(tmp_path, np.zeros((16, 4, 4)), TWICE * 2, modality="MR", content=content, groups=groups)
    refused = refusal(path)
    assert refused.reason == "several-volumes"
    assert "echo times, times" in refused.text


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"NumberOfFrames": "7"}, "multi-frame"),
        ({"PerFrameFunctionalGroupsSequence": None, "SharedFunctionalGroupsSequence": None}, "multi-frame"),
        ({"PerFrameFunctionalGroupsSequence": None}, "multi-frame"),
        ({"rescale": None}, "missing-rescale"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "missing-geometry"),
        ({"pixel_spacing": (0, 1)}, "missing-geometry"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported-photometric"),
    ],
    ids=str,
)
def test_a_multi_frame_image_that_does_not_say_where_its_frames_lie_is_refused(
    tmp_path: Path, how: dict[str, Any], reason: str
) -> None:
    path = enhanced(tmp_path, np.zeros((4, 4, 4)), TWICE[:4], **how)
    assert refusal(path).reason == reason


def test_a_localizer_among_the_frames_is_left_out(tmp_path: Path) -> None:
    groups: list[dict[str, Any]] = [{} for _ in range(5)]
    groups[4] = {
        "CTImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]},
        "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    }
    path = enhanced(tmp_path, np.zeros((5, 4, 4)), [*TWICE[:4], (0, 0, 0)], groups=groups)
    volume = read_volume([ImageFile("e", path)])
    assert volume.frames == (1, 2, 3, 4)
    assert volume.left_out == ()


def single(folder: Path, values: npt.NDArray[Any], sop_class: str, modality: str, **attributes: Any) -> list[ImageFile]:
    paths = ct_series(
        folder,
        values,
        slope=1,
        intercept=0,
        SOPClassUID=sop_class,
        Modality=modality,
        **({"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None} | attributes),
    )
    return [ImageFile(path.stem, path) for path in paths]


def test_a_magnetic_resonance_series_is_read_as_stored_in_single_precision(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 4000, (4, 8, 8))
    volume = read_volume(single(tmp_path, values, MRImageStorage, "MR"))
    assert (volume.array == values).all()
    assert volume.array.dtype == np.float32
    assert volume.modality == "MR"


def test_a_window_or_monochrome1_changes_what_is_shown_and_not_what_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 4000, (4, 8, 8))
    shown = {"WindowCenter": "10", "WindowWidth": "3", "PhotometricInterpretation": "MONOCHROME1"}
    assert (read_volume(single(tmp_path, values, MRImageStorage, "MR", **shown)).array == values).all()


def test_padding_of_a_magnetic_resonance_image_is_no_signal(tmp_path: Path) -> None:
    values = np.full((3, 4, 4), 7)
    values[:, 0] = 4000
    volume = read_volume(single(tmp_path, values, MRImageStorage, "MR", PixelPaddingValue=4000))
    assert (volume.array[:, 0] == 0).all()
    assert (volume.array[:, 1:] == 7).all()


def test_positron_emission_is_rescaled_slice_by_slice_and_refused_without(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 30000, (4, 8, 8))
    files = single(
        tmp_path, values, PositronEmissionTomographyImageStorage, "PT", RescaleSlope="1", RescaleIntercept="0"
    )
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file.path)
        dataset.RescaleSlope = str(0.5 + number)
        dataset.save_as(file.path)
    wanted = values * (0.5 + np.arange(4))[:, None, None]
    assert np.allclose(read_volume(files).array, wanted, rtol=1e-6)
    bare = single(tmp_path / "bare", values, PositronEmissionTomographyImageStorage, "PT")
    assert refusal(*(file.path for file in bare)).reason == "missing-rescale"


@pytest.mark.parametrize(
    ("modality", "first", "others", "reason"),
    [
        ("MR", {"RescaleSlope": None, "RescaleIntercept": None}, {}, "missing-rescale"),
        ("MR", {"RescaleType": "MGML"}, {"RescaleType": "OD"}, "mixed-units"),
        ("MR", {"RescaleType": "US"}, {}, None),
        ("MR", {"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleSlope": "1", "RescaleIntercept": "0"}, None),
        ("PT", {"Units": "BQML"}, {"Units": "GML"}, "mixed-units"),
        ("PT", {"Units": "BQML"}, {"Units": "BQML"}, None),
    ],
    ids=str,
)
def test_planes_whose_values_are_on_two_scales_are_no_volume(
    tmp_path: Path, modality: str, first: dict[str, Any], others: dict[str, Any], reason: str | None
) -> None:
    sop_class = MRImageStorage if modality == "MR" else PositronEmissionTomographyImageStorage
    rescale = {"RescaleSlope": "0.25", "RescaleIntercept": "-3"}
    values = np.full((4, 4, 4), 8)
    rest = single(tmp_path, values[1:], sop_class, modality, SeriesInstanceUID="2.25.1", **rescale | others)
    shared = {"SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": pydicom.dcmread(rest[0].path).FrameOfReferenceUID}
    paths = ct_series(
        tmp_path / "first",
        values[:1],
        origin=(-100, -100, -302),
        slope=1,
        intercept=0,
        SOPClassUID=sop_class,
        Modality=modality,
        **{"RescaleType": None} | rescale | shared | first,
    )
    files = (*paths, *(file.path for file in rest))
    if reason is None:
        read_volume([ImageFile(path.stem, path) for path in files])
    else:
        assert refusal(*files).reason == reason


def test_frames_with_and_without_a_rescale_are_no_volume(tmp_path: Path) -> None:
    rescaled = {"PixelValueTransformationSequence": {"RescaleSlope": "0.25", "RescaleIntercept": "0"}}
    groups = [rescaled, {}, rescaled, rescaled]
    path = enhanced(tmp_path, np.zeros((4, 4, 4)), TWICE[:4], modality="MR", rescale=None, groups=groups)
    refused = refusal(path)
    assert refused.reason == "missing-rescale"
    assert "1 of 4 images" in refused.text


@pytest.mark.parametrize(("kind", "reason"), [("HU", None), ("OD", "not-hounsfield"), (None, "not-hounsfield")])
def test_a_modality_table_gives_hounsfield_units_or_is_refused(
    tmp_path: Path, kind: str | None, reason: str | None
) -> None:
    table = Dataset()
    table.LUTDescriptor = [16, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = list(range(0, 1600, 100))
    table["LUTData"].VR = "US"
    if kind:
        table.ModalityLUTType = kind
    values = np.random.default_rng(4).integers(0, 16, (3, 4, 4))
    none = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    paths = ct_series(tmp_path, values, intercept=0, ModalityLUTSequence=[table], **none)
    if reason:
        assert refusal(*paths).reason == reason
    else:
        assert (read_volume([ImageFile(path.stem, path) for path in paths]).array == values * 100).all()


def real(shared_data: Path, *names: str) -> list[ImageFile]:
    return [ImageFile(name, shared_data / "enhanced_multiframe" / name) for name in names]


def test_real_multi_frame_images_are_read_where_a_mask_lies_on_their_own_frames(shared_data: Path) -> None:
    for name, shape, spacing in (
        ("dcm_qa_enh__6_1.dcm", (6, 64, 64), 2.4),
        ("dicom2nifti__001_IM-0001-0170-0001.dcm", (256, 256, 8), 1.2),
    ):
        (file,) = real(shared_data, name)
        volume = read_volume([file])
        assert volume.array.shape == shape
        assert volume.coverage.spacing_mm == pytest.approx(spacing, abs=1e-3)
        dataset = pydicom.dcmread(file.path)
        wanted = dataset.pixel_array.astype(float)
        for stored, groups in zip(wanted, dataset.PerFrameFunctionalGroupsSequence, strict=True):
            rule = groups.PixelValueTransformationSequence[0]
            stored *= float(rule.RescaleSlope)  # noqa: PLW2901
            stored += float(rule.RescaleIntercept)  # noqa: PLW2901
        values = np.unique(wanted)
        bright = float(values[len(values) // 2 :][:2].mean())
        assert (volume.to_source((volume.array > bright).astype(np.uint8)) == (wanted > bright)).all()


def test_real_images_of_several_times_are_refused_as_such(shared_data: Path) -> None:
    with pytest.raises(InputRefused, match="TemporalPositionIdentifier 1, 2, 3, 4"):
        read_volume(real(shared_data, "dicom2nifti__001_IM-0001-9600-0001.dcm"))
    with pytest.raises(InputRefused) as caught:
        read_volume(real(shared_data, "dcm_qa_enh__6_1.dcm", "dcm_qa_enh__6_2.dcm"))
    assert caught.value.reason == "several-phases"


def test_a_real_multi_frame_image_without_functional_groups_is_refused(shared_data: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        read_volume(real(shared_data, "pydicom-data__emri_small.dcm"))
    assert caught.value.reason == "multi-frame"


def test_a_real_coronal_series_lies_in_the_patients_axes(shared_data: Path) -> None:
    paths = sorted((shared_data / "mr_series" / "dcm4che_MR16").glob("*.dcm"))
    volume = read_volume([ImageFile(path.stem, path) for path in paths])
    assert volume.array.shape == (256, 16, 256)
    assert volume.grid.axes == "SPL"
    assert volume.spacing_mm == pytest.approx((0.234375, 2.0, 0.234375), abs=1e-4)
    back = volume.to_source((volume.array > 100).astype(np.uint8))
    for mask, path in zip(back, paths, strict=True):
        assert (mask == (pydicom.dcmread(path).pixel_array > 100)).all()
