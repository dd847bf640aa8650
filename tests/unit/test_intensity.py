"""What a step measures of a volume is measured on what its images show, and exactly."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from inference.card import Card, load_card
from inference.engine import ImageFile
from inference.errors import CardError, InputRefused
from inference.grid import Grid
from inference.inputs import InputRole
from inference.intensity import changes
from inference.labelling import label_by_window, marking_of
from inference.roles import RoleVolumes, read_roles
from inference.steps import PreprocessStep
from tests.dicom_factory import ct_series
from tests.model_factory import segmentation_card, write_model

SHAPE = (10, 24, 20)
ROLES = [InputRole(role=name, kind="volume", minimum_instances=2) for name in ("t1", "t2")]
Values = npt.NDArray[np.float32]


def scaled(values: Values, percentiles: tuple[float, float]) -> Values:
    step = PreprocessStep.model_validate({"scale": {"percentiles": percentiles, "clip": False}})
    return changes([step], lambda over: iter(values.copy()))(values.copy())


@pytest.mark.parametrize("far", [None, 5e6, -1e12])
def test_one_voxel_far_off_does_not_move_a_percentile(far: float | None) -> None:
    values = np.random.default_rng(0).gamma(2, 100, (10, 30, 30)).astype(np.float32)
    if far is not None:
        values[5, 5, 5] = far
    low, high = np.percentile(values, (5, 95))
    assert np.allclose(scaled(values, (5, 95)).ravel()[:20], ((values - low) / (high - low)).ravel()[:20], atol=3e-3)


def test_percentiles_that_are_one_value_are_refused() -> None:
    values = np.full((4, 20, 20), 1000, np.float32)
    values[0, 0, :5] = np.arange(5)
    with pytest.raises(InputRefused) as caught:
        scaled(values, (5, 95))
    assert caught.value.reason == "pixels-constant"


def series(folder: Path, *, step: tuple[float, ...] | None = None, shape: tuple[int, ...] = SHAPE) -> list[ImageFile]:
    """MR as stored: mean 500, deviation 50, all over."""
    values = np.random.default_rng(1).normal(500, 50, shape)
    none: dict[str, Any] = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    paths = ct_series(
        folder,
        values,
        spacing=(3, 2, 2),
        origin=(0, 0, 0),
        step=step,
        intercept=0,
        frame_of_reference_uid="2.25.1",
        Modality="MR",
        **none,
    )
    return [ImageFile(path.stem, path) for path in paths]


def model_of(tmp_path: Path, roles: Sequence[str], preprocess: list[dict[str, Any]]) -> Card:
    card = segmentation_card(
        inputs=[{"role": name, "kind": "volume", "minimum_instances": 2} for name in roles],
        tensors={"image": "image", "output": "scores"},
        layout="ncdhw",
        preprocess=preprocess,
        postprocess=[],
        not_analysed={},
    )
    del card["slab"]
    return load_card(write_model(tmp_path / "models", card, b"none is run here"))


def seen(tmp_path: Path, read: RoleVolumes, preprocess: list[dict[str, Any]]) -> Values:
    """What the model is given: (channels, slices, rows, columns)."""
    loaded = model_of(tmp_path, list(read.arrays), preprocess)
    given = []

    def infer(feeds: Any) -> npt.NDArray[Any]:
        given.append(feeds["image"].copy())
        return np.zeros((1, 3, *feeds["image"].shape[2:]), np.float32)

    label_by_window(
        loaded,
        infer,
        list(read.arrays.values()),
        read.reference.grid,
        marking_of(loaded),
        [read.fields[name] for name in read.arrays],
    )
    return np.asarray(given[0][0], np.float32)


PAD: dict[str, Any] = {"crop_or_pad": {"shape": [14, 40, 40]}}
INNER = (0, slice(2, 12), slice(8, 32), slice(10, 30))


@pytest.mark.parametrize("step", [{"z_score": {}}, {"scale": {"percentiles": [5, 95]}}], ids=str)
def test_what_is_filled_in_around_the_images_is_not_measured_unless_the_card_says_so(
    tmp_path: Path, step: dict[str, Any]
) -> None:
    read = read_roles(ROLES[:1], {"t1": series(tmp_path / "1")})
    plain = seen(tmp_path, read, [step])[0]
    padded = seen(tmp_path, read, [PAD, step])
    assert np.allclose(padded[INNER], plain, atol=1e-3)
    last = seen(tmp_path, read, [step, {"crop_or_pad": {"shape": [14, 40, 40], "value": -7.5}}])
    assert np.allclose(last[INNER], plain, atol=1e-3)
    assert (last[0, 0] == -7.5).all()
    kind = next(iter(step))
    together = seen(tmp_path, read, [PAD, {kind: {**step[kind], "over": "grid"}}])
    assert np.abs(together[INNER] - plain).mean() > 0.2


def test_neither_a_tilted_gantrys_wedges_nor_what_a_role_does_not_reach_are_measured(tmp_path: Path) -> None:
    tilted = series(tmp_path / "1", step=(0, 1.2, 3.0))
    smaller = series(tmp_path / "2", shape=(9, 24, 20))
    read = read_roles(ROLES, {"t1": tilted, "t2": smaller})
    given = seen(tmp_path, read, [{"z_score": {}}])
    for channel, name in zip(given, ("t1", "t2"), strict=True):
        field = read.fields[name]
        assert field is not None
        assert not field.all()
        assert np.median(channel[field]) == pytest.approx(0, abs=0.05)
        assert channel[field].std() == pytest.approx(1, abs=0.05)


def test_a_turn_after_the_steps_on_intensities_is_refused(tmp_path: Path) -> None:
    read = read_roles(ROLES[:1], {"t1": series(tmp_path / "1")})
    with pytest.raises(CardError, match="crop_or_pad may come last"):
        seen(tmp_path, read, [{"z_score": {}}, {"orient": {"axes": "RAS"}}])


def test_the_nearest_values_are_looked_up_without_a_copy_of_the_volume(tmp_path: Path) -> None:
    nearest = {"resample": {"spacing_mm": [8, 8, 8], "interpolation": "nearest"}}
    card = model_of(tmp_path, ["ct"], [nearest, {"scale": {"low": 0, "high": 1000}}])
    volume = np.full((64, 256, 256), 500, np.int16)
    grid = Grid(volume.shape, np.diag([2.0, 1, 1, 1])[[2, 1, 0, 3]])
    given = []

    def infer(feeds: Any) -> npt.NDArray[Any]:
        given.append(float(feeds["image"].mean()))
        return np.zeros((1, 1, *feeds["image"].shape[2:]), np.uint8)

    tracemalloc.start()
    try:
        labels = label_by_window(card, infer, [volume], grid, marking_of(card))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert given == [0.5]
    # The mask itself is half as large as the volume, and a copy of it in float32 twice.
    assert peak - labels.nbytes < volume.nbytes
