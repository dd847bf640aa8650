"""Grids turn, crop, coarsen and meet each other without anything moving in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from inference.grid import Grid, labels_on, reorient, resample

ORIENTATIONS = [
    "".join(letters) for pairs in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*pairs)
]


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], turn: float = 0.0) -> Grid:
    """A grid of slices to the head, rows to the back, columns to the left, turned about an oblique axis (radians)."""
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * spacing
    affine[:3, :3] = (np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross) @ affine[:3, :3]
    affine[:3, 3] = (-31.0, 12.5, -700.0)
    return Grid(shape, affine)


def smooth_field(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A field that is linear in the patient's axes: linear interpolation gives it back exactly."""
    return (points @ np.array([1.5, -2.0, 0.7]) + 40).astype(np.float32)


def on(where: Grid) -> npt.NDArray[np.float32]:
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in where.shape), indexing="ij"), -1)
    return smooth_field(where.to_lps(indices))


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_an_array_turned_to_any_axes_is_a_view_on_the_same_patient_points(axes: str) -> None:
    source = grid((4, 5, 6), (2.0, 0.8, 0.7), turn=0.2)
    values = on(source)
    turned, where = reorient(values, source, axes)
    assert where.axes == axes
    assert np.shares_memory(turned, values)
    assert np.allclose(turned, on(where), atol=1e-3)
    back, again = reorient(turned, where, source.axes)
    assert again.matches(source)
    assert (back == values).all()
    assert (resample(values, source, where) == turned).all()


def test_letters_that_do_not_name_three_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected letters such as RAS"):
        grid((2, 2, 2), (1, 1, 1)).oriented("RLS")


@settings(max_examples=40, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.3, 4.0)] * 3),
    shape=st.tuples(*[st.integers(4, 24)] * 3),
    turn=st.sampled_from([0.0, 0.0, 0.3]),
    axes=st.sampled_from(ORIENTATIONS),
    antialias=st.booleans(),
)
def test_values_stay_on_their_patient_points_whatever_the_grid(
    spacing: tuple[float, float, float], shape: tuple[int, int, int], turn: float, axes: str, antialias: bool
) -> None:
    source = grid((12, 14, 16), (2.0, 1.1, 0.9))
    target = grid(shape, spacing, turn).oriented(axes)
    shape = target.shape
    # Both fields share their centre, so that part of every target lies in the source.
    centre = source.to_lps((np.array(source.shape) - 1) / 2) - target.to_lps((np.array(shape) - 1) / 2)
    affine = target.affine.copy()
    affine[:3, 3] += centre
    target = Grid(target.shape, affine)
    found = resample(on(source), source, target, outside=-999.0, antialias=antialias)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), -1)
    places = source.to_index(target.to_lps(indices))
    reach = np.array(source.shape) - 1
    far = ((places < -0.51) | (places > reach + 0.51)).any(axis=-1)
    margin = 5.0 if antialias else 0.0
    well_in = ((places >= margin) & (places <= reach - margin)).all(axis=-1)
    assert (found[far] == -999.0).all()
    # Whole source voxels weigh as whole: an antialiased value is true to a tenth of a source voxel.
    assert np.allclose(found[well_in], on(target)[well_in], atol=0.5 if antialias else 0.02)


def test_both_ways_of_resampling_agree_with_a_plain_look_up() -> None:
    source = grid((20, 30, 24), (2.0, 0.8, 0.7))
    values = np.random.default_rng(0).normal(size=source.shape).astype(np.float32)
    for target in (source.with_spacing((1.1, 1.3, 1.5)).oriented("RAS"), grid((18, 20, 22), (1.3, 1.2, 1.1), 0.25)):
        indices = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), 0)
        places = np.moveaxis(source.to_index(target.to_lps(np.moveaxis(indices, 0, -1))), -1, 0)
        wanted = map_coordinates(values, places, order=1, mode="nearest")
        inside = ((places > -0.5) & (places < np.array(source.shape).reshape(3, 1, 1, 1) - 0.5)).all(axis=0)
        assert inside.any()
        assert np.allclose(resample(values, source, target)[inside], wanted[inside], atol=1e-5)
        assert np.array_equal(resample(values, source, target), resample(values, source, target, threads=1))


@settings(max_examples=30, deadline=None)
@given(spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3))
def test_another_spacing_keeps_the_centre_of_the_field(spacing: tuple[float, float, float]) -> None:
    source = grid((30, 41, 40), (2.0, 0.8, 0.7), turn=0.1)
    target = source.with_spacing(spacing)
    assert np.allclose(target.spacing_mm, spacing)
    middle = [one.to_lps((np.array(one.shape) - 1) / 2) for one in (source, target)]
    assert np.allclose(*middle)
    old, new = (np.array(one.shape) * one.spacing_mm for one in (source, target))
    assert (np.abs(old - new) <= np.maximum(spacing, 1e-6) / 2 + 1e-6).all() or (np.array(target.shape) == 1).any()


@pytest.mark.parametrize(("old", "new", "first"), [(5, 2, 1), (4, 3, 1), (5, 4, 0), (3, 4, 0), (4, 7, -1), (6, 6, 0)])
def test_cropping_and_padding_are_centred_and_exact(old: int, new: int, first: int) -> None:
    source = grid((old, old, old), (2.0, 1.0, 1.0))
    values = np.random.default_rng(1).integers(1, 99, source.shape).astype(np.int16)
    target = source.cropped_or_padded((new, new, new))
    assert np.allclose(source.to_index(target.to_lps((0, 0, 0))), first)
    found = resample(values, source, target, interpolation="nearest", outside=0)
    kept = slice(max(first, 0), min(first + new, old))
    assert found.dtype == np.int16
    assert sorted(found[found != 0]) == sorted(values[kept, kept, kept].ravel())


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_the_nearest_of_whole_numbers_can_say_where_there_is_none(turn: float) -> None:
    source = grid((6, 9, 8), (2.0, 1.0, 1.0))
    values = np.random.default_rng(1).integers(-1000, 3000, source.shape).astype(np.int16)
    target = grid((8, 7, 12), (1.5, 1.3, 1.1), turn)
    found = resample(values, source, target, interpolation="nearest", outside=float("nan"), as_float=True)
    plain = resample(values, source, target, interpolation="nearest", outside=-5000)
    assert found.dtype == np.float32
    assert plain.dtype == np.int16
    beyond = plain == -5000
    assert 0 < beyond.sum() < beyond.size
    assert (np.isnan(found) == beyond).all()
    assert (found[~beyond] == plain[~beyond]).all()


def test_a_mask_comes_back_within_half_a_voxel_from_a_coarser_grid_smooth_or_not() -> None:
    source = grid((40, 60, 60), (2.0, 0.8, 0.8))
    model = source.oriented("RAS").with_spacing((1.5, 1.5, 1.5))
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in model.shape), indexing="ij"), -1)
    away = model.to_lps(indices) - model.to_lps((np.array(model.shape) - 1) / 2)
    labels = ((np.linalg.norm(away, axis=-1) < 15) * np.where(away[..., 0] > 0, 1, 2)).astype(np.uint8)
    for smooth in (False, True):
        back = labels_on(labels, model, source, smooth=smooth)
        assert back.dtype == np.uint8
        for label in (1, 2):
            there = model.to_lps(np.argwhere(labels == label)).mean(axis=0)
            here = source.to_lps(np.argwhere(back == label)).mean(axis=0)
            assert np.abs(there - here).max() < 0.4
            volumes = (back == label).sum() * source.voxel_ml, (labels == label).sum() * model.voxel_ml
            assert volumes[0] == pytest.approx(volumes[1], rel=0.03)


def test_antialiasing_keeps_the_mean_of_what_is_too_fine_to_be_shown() -> None:
    source = grid((8, 64, 64), (1.0, 1.0, 1.0))
    stripes = np.zeros(source.shape, np.int16)
    stripes[:, :, ::2] = 100
    target = source.with_spacing((1.0, 4.0, 4.0))
    assert abs(resample(stripes, source, target, antialias=True)[:, 2:-2, 2:-2] - 50).max() < 1


def test_a_grid_that_flattens_space_is_refused() -> None:
    for affine in (np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0]), np.eye(3)):
        with pytest.raises(ValueError, match="affine"):
            Grid((2, 2, 2), affine)
    with pytest.raises(ValueError, match="at least one voxel"):
        Grid((2, 0, 2), np.eye(4))
