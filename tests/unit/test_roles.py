"""Several series of a study come onto one grid by their headers, by registration, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper
from pydicom.uid import MRImageStorage

from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import InputRefused
from inference.inputs import InputRole
from inference.registration import register
from inference.roles import read_roles
from tests.dicom_factory import ct_series
from tests.model_factory import segmentation_card, write_model

ROLES = tuple(InputRole(role=name, kind="volume", minimum_instances=4) for name in ("t1", "t2", "flair"))
#: What shows dark in one contrast shows bright in another: background, scalp, brain, ventricle, lesion.
CONTRASTS = {"t1": (0, 900, 600, 150, 400), "t2": (0, 300, 450, 1000, 800), "flair": (0, 350, 500, 100, 1000)}

#: As large, in few voxels: what takes long is tried on these.
COARSE: dict[str, Any] = {"spacing": (9.0, 6.0, 6.0), "shape": (20, 33, 28)}


def head(points: npt.NDArray[np.float64], contrast: str) -> npt.NDArray[np.float64]:
    """A head that no turn or flip maps on itself, at LPS points (..., 3)."""
    values = np.array(CONTRASTS[contrast], float)
    x, y, z = np.moveaxis(points, -1, 0)
    shown = np.zeros(points.shape[:-1], int)
    for label, (centre, half) in enumerate(
        (
            ((0, 0, 0), (70, 88, 75)),
            ((0, 0, 2), (62, 80, 67)),
            ((-8, 5, 10), (12, 30, 10)),
            ((30, -25, 20), (14, 10, 12)),
        ),
        start=1,
    ):
        far = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 + ((z - centre[2]) / half[2]) ** 2
        shown[far < 1] = label
    texture = 40 * np.sin(x / 7.0) * np.cos(y / 9.0 + z / 11.0)
    return values[shown] + np.where(shown == 2, texture, 0) + 50


def series(
    folder: Path,
    contrast: str,
    *,
    frame: str,
    spacing: tuple[float, float, float] = (4.0, 3.0, 3.0),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    shift: tuple[float, float, float] = (0, 0, 0),
    turn: float = 0.0,
    shape: tuple[int, int, int] = (44, 66, 56),
) -> list[ImageFile]:
    """Scan the head, which the patient holds shifted (mm) and turned about z (degrees) in this frame of reference."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    vectors = np.stack([np.cross(row, column) * spacing[0], column * spacing[1], row * spacing[2]], axis=1)
    origin = -vectors @ ((np.array(shape) - 1) / 2)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    points = indices @ vectors.T + origin - np.array(shift)
    angle = np.radians(turn)
    back = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    values = head(points @ back.T, contrast)
    none: dict[str, Any] = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    paths = ct_series(
        folder,
        values,
        spacing=spacing,
        orientation=orientation,
        origin=origin,
        intercept=0,
        frame_of_reference_uid=frame,
        SOPClassUID=MRImageStorage,
        Modality="MR",
        **none,
    )
    return [ImageFile(path.stem, path) for path in paths]


def test_series_of_one_frame_of_reference_meet_by_their_headers(tmp_path: Path) -> None:
    given = {
        "t1": series(tmp_path / "1", "t1", frame="2.25.1"),
        "t2": series(tmp_path / "2", "t2", frame="2.25.1", orientation=(0, 1, 0, 0, 0, -1), shape=(40, 60, 70)),
        "flair": series(tmp_path / "3", "flair", frame="2.25.1", spacing=(5.0, 2.0, 2.0), shape=(36, 99, 84)),
    }
    read = read_roles(ROLES, given)
    assert list(read.arrays) == ["t1", "t2", "flair"]
    assert read.warnings == ()
    assert read.images[:44] == tuple(file.key for file in given["t1"])
    assert set(read.images) == {file.key for files in given.values() for file in files}
    grid = read.reference.grid
    points = grid.to_lps(np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1))
    inner = np.linalg.norm(points, axis=-1) < 60
    for name in ("t2", "flair"):
        found, wanted = read.arrays[name][inner], head(points, name)[inner]
        assert read.arrays[name].shape == grid.shape
        assert np.corrcoef(found, wanted)[0, 1] > 0.93


def test_a_series_of_another_frame_of_reference_is_registered_and_that_is_said(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    given = {
        "t1": series(tmp_path / "1", "t1", frame="2.25.1"),
        "t2": series(tmp_path / "2", "t2", frame="2.25.2", shift=(9, -14, 12), turn=8.0),
    }
    read = read_roles(ROLES[:2], given)
    assert "t2 lies in another frame of reference" in read.warnings[0]
    grid = read.reference.grid
    points = grid.to_lps(np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1))
    inner = np.linalg.norm(points, axis=-1) < 60
    assert np.corrcoef(read.arrays["t2"][inner], head(points, "t2")[inner])[0, 1] > 0.93
    apart = np.corrcoef(read.arrays["t2"][inner], head(points - (6, 0, 0), "t2")[inner])[0, 1]
    assert apart < 0.9


def test_where_a_series_lies_hangs_neither_on_the_run_nor_on_the_places_drawn(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    still, moved = (
        read_roles(ROLES[:1], {"t1": files}).reference
        for files in (
            series(tmp_path / "1", "t1", frame="2.25.1", **COARSE),
            series(tmp_path / "2", "flair", frame="2.25.2", shift=(5, -7, 4), turn=7.0, **COARSE),
        )
    )
    first, again, other = (
        register(still.array, still.grid, moved.array, moved.grid, "flair", seed=seed).matrix for seed in (1, 1, 3)
    )
    assert (first == again).all()
    around = 60 * np.concatenate([np.eye(3), -np.eye(3)])
    apart = (first - other)[:3]
    assert np.linalg.norm(around @ apart[:, :3].T + apart[:, 3], axis=1).max() < 2


def test_a_registration_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    volume = read_roles(ROLES[:1], {"t1": series(tmp_path, "t1", frame="2.25.1", **COARSE)}).reference
    noise = np.random.default_rng(0).normal(500, 100, volume.array.shape).astype(np.float32)
    with pytest.raises(InputRefused) as caught:
        register(volume.array, volume.grid, noise, volume.grid, "t2")
    assert caught.value.reason == "registration-failed"
    assert caught.value.text.startswith("t2 lies in another frame of reference and could not be brought over")


def test_missing_roles_are_refused_by_their_names_and_optional_ones_are_not_missed(tmp_path: Path) -> None:
    given = {"t2": series(tmp_path, "t2", frame="2.25.1")}
    with pytest.raises(InputRefused, match="t1, flair") as caught:
        read_roles(ROLES, given)
    assert caught.value.reason == "missing-role"
    optional = [ROLES[1], ROLES[0].model_copy(update={"optional": True})]
    assert list(read_roles(optional, given).arrays) == ["t2"]


def test_a_role_that_sees_another_part_of_the_patient_is_refused(tmp_path: Path) -> None:
    given = {
        "t1": series(tmp_path / "1", "t1", frame="2.25.1"),
        "t2": series(tmp_path / "2", "t2", frame="2.25.1", shape=(8, 66, 56)),
    }
    with pytest.raises(InputRefused, match="t2 covers") as caught:
        read_roles(ROLES[:2], given)
    assert caught.value.reason == "roles-apart"


def test_what_is_wrong_with_one_role_is_said_with_its_name(tmp_path: Path) -> None:
    given = {"t1": series(tmp_path / "1", "t1", frame="2.25.1"), "t2": series(tmp_path / "2", "t2", frame="2.25.1")}
    given["t2"] = [*given["t2"][:5], *given["t2"][6:]]
    with pytest.raises(InputRefused, match="t2: slices are missing") as caught:
        read_roles(ROLES[:2], given)
    assert caught.value.reason == "gap-in-series"


def test_a_model_of_several_channels_reads_them_on_the_reference_and_its_mask_lies_there(tmp_path: Path) -> None:
    """The graph marks what is bright in T2 and dark in T1: the ventricle, which neither channel alone tells."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [2, 2, 1, 1, 1], [0.0, 0.0, -1.0, 1.0])
    bias = helper.make_tensor("bias", TensorProto.FLOAT, [2], [0.0, -500.0])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights", "bias"], ["scores"])],
        "difference",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, "d", "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, "d", "h", "w"])],
        [weights, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    card = segmentation_card(
        inputs=[{"role": name, "kind": "volume", "minimum_instances": 4} for name in ("t1", "t2")],
        tensors={"image": "image", "output": "scores"},
        layout="ncdhw",
        postprocess=[],
        not_analysed={},
    )
    card["outputs"] = card["outputs"][:1]
    del card["slab"]
    path = write_model(tmp_path / "models", card, model)
    given = {
        "t1": series(tmp_path / "1", "t1", frame="2.25.1"),
        "t2": series(tmp_path / "2", "t2", frame="2.25.1", orientation=(0, 1, 0, 0, 0, -1), shape=(40, 60, 70)),
    }
    engine = open_engine(load_card(path))
    try:
        findings = engine.run(Job(path, {role: tuple(files) for role, files in given.items()}))
        refused = engine.run(Job(path, {"t1": tuple(given["t1"])}))
    finally:
        engine.close()
    assert findings.segmentation is not None
    assert findings.segmentation.images == tuple(file.key for file in given["t1"])
    found = read_roles(ROLES[:1], given).reference.source_grid.to_lps(np.argwhere(findings.segmentation.labels))
    assert np.abs(found.mean(axis=0) - (-8, 5, 10)).max() < 2
    assert findings.segmentation.segments[0].volume_ml == pytest.approx(4 / 3 * np.pi * 12 * 30 * 10 / 1000, rel=0.15)
    assert refused.not_analysed is not None
    assert refused.not_analysed.reason == "missing-role"
    assert "t2" in refused.not_analysed.text
