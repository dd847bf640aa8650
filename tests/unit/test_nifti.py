"""NIfTI files that we write are read alike by nibabel, theirs by us, and hostile ones are refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inference.grid import Grid
from inference.nifti import NiftiError, read_nifti, write_nifti

SEEDS = range(6)


def volume(seed: int) -> tuple[np.ndarray, Grid]:
    random = np.random.default_rng(seed)
    array = random.integers(0, 200, (5, 6, 7)).astype((np.int16, np.uint8, np.float32)[seed % 3])
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", random.uniform(-180, 180, 3), degrees=True).as_matrix()
    turn[:, 0] *= (1, -1)[seed % 2]
    affine[:3, :3], affine[:3, 3] = turn * [3.0, 1.5, 0.7], random.uniform(-200, 200, 3)
    return array, Grid((5, 6, 7), affine)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_volume_in_any_orientation_lies_on_the_same_points_for_nibabel_and_comes_back(
    tmp_path: Path, seed: int
) -> None:
    array, grid = volume(seed)
    path = tmp_path / ("v.nii.gz" if seed % 2 else "v.nii")
    write_nifti(path, array, grid)
    theirs = nibabel.load(path)
    np.testing.assert_allclose(theirs.get_qform(), theirs.get_sform(), atol=1e-3)
    for index in ((0, 0, 0), (1, 2, 3), (6, 5, 4)):
        ras = nibabel.affines.apply_affine(theirs.affine, index)
        np.testing.assert_allclose(ras * [-1, -1, 1], grid.to_lps(index[::-1]), atol=1e-3)
        assert np.asarray(theirs.dataobj)[index] == array[index[::-1]]
    back, place = read_nifti(path)
    np.testing.assert_array_equal(back, array)
    assert place.matches(grid, tolerance=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_of_nibabels_with_a_quaternion_alone_is_read_in_its_place(tmp_path: Path, seed: int) -> None:
    array, grid = volume(seed)
    write_nifti(tmp_path / "v.nii", array, grid)
    theirs = nibabel.load(tmp_path / "v.nii")
    theirs.set_sform(None, 0)
    theirs.header.set_slope_inter(1, 0)
    nibabel.save(theirs, tmp_path / "q.nii.gz")
    back, place = read_nifti(tmp_path / "q.nii.gz")
    np.testing.assert_array_equal(back, array)
    assert place.matches(grid, tolerance=1e-3)


def test_scaled_and_big_endian_values_are_read_as_meant(tmp_path: Path) -> None:
    array, grid = volume(0)
    write_nifti(tmp_path / "v.nii", array, grid)
    theirs = nibabel.load(tmp_path / "v.nii")
    swapped = nibabel.Nifti1Image(np.asarray(theirs.dataobj), theirs.affine, header=theirs.header.as_byteswapped(">"))
    nibabel.save(swapped, tmp_path / "b.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii")[0], array)
    data = bytearray((tmp_path / "v.nii").read_bytes())
    struct.pack_into("<2f", data, 112, 2.0, -5.0)
    (tmp_path / "s.nii").write_bytes(data)
    np.testing.assert_array_equal(read_nifti(tmp_path / "s.nii")[0], array * 2.0 - 5)


def test_hostile_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    array, grid = volume(0)
    write_nifti(tmp_path / "v.nii", array, grid)
    good = (tmp_path / "v.nii").read_bytes()

    def changed(place: int, form: str, *values: float) -> bytes:
        data = bytearray(good)
        struct.pack_into(form, data, place, *values)
        return bytes(data)

    cases = {
        "breaks off": good[:-1],
        "no single-file": b"x" * 400,
        "no possible place": changed(108, "<f", float("nan")),
        "datatype": changed(70, "<h", 128),
        "three axes": changed(40, "<8h", 4, 7, 6, 5, 2, 1, 1, 1),
        "MB is not read": changed(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1),
        "where its voxels lie": changed(252, "<2h", 0, 0),
        "flattens": changed(280, "<12f", *[0.0] * 12),
        "finite": changed(112, "<2f", float("inf"), 0.0),
    }
    for told, data in cases.items():
        (tmp_path / "bad.nii").write_bytes(data)
        with pytest.raises(NiftiError, match=told):
            read_nifti(tmp_path / "bad.nii")
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(good)[:-20])
    with pytest.raises(NiftiError):
        read_nifti(tmp_path / "bad.nii.gz")
