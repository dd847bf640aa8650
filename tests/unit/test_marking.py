"""Structures that lie over one another keep each its own voxels, in one byte a voxel, whatever is done to a mask."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import EngineFailure
from inference.findings import Segmentation
from inference.grid import Grid, labels_on
from inference.marking import Marking, checked_together, dice, planes_of
from inference.postprocess import fill_holes, keep_components, marked_ml, volumes_ml
from inference.samples import read_mask, write_mask

Structures = dict[int, npt.NDArray[np.bool_]]


def nested(*radii: float, shape: Sequence[int] = (20, 24, 22)) -> Structures:
    """Balls around one centre, from label 1 on: each smaller one lies in all that are larger."""
    axes = np.ogrid[tuple(slice(count) for count in shape)]
    away = sum((axis - count / 2) ** 2 for axis, count in zip(axes, shape, strict=True))
    return {label: away <= radius**2 for label, radius in enumerate(radii, start=1)}


def written(structures: Structures, *, again: bool = False) -> tuple[npt.NDArray[np.uint8], Marking]:
    """The mask of these structures; values may be used again where that is said."""
    marking = Marking(structures, "keep")
    mask = np.zeros(next(iter(structures.values())).shape, np.uint8)
    for label, where in structures.items():
        marking.put(mask, where, label, within=mask if again else None)
    return mask, marking


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(1, 255), min_size=1, max_size=8, unique=True), seed=st.integers(0, 2**32 - 1))
def test_whatever_is_put_in_comes_out_and_what_is_taken_leaves_the_others(labels: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    structures = {label: random.random((3, 12, 11)) < random.random() for label in labels}
    mask, marking = written(structures)
    assert all((marking.of(mask, label) == where).all() for label, where in structures.items())
    assert marking.voxels(mask) == {label: int(where.sum()) for label, where in structures.items()}
    assert marking.labels_in(mask) == sorted(label for label, where in structures.items() if where.any())
    assert checked_together(marking.together, labels) == marking.together
    gone = np.nonzero(random.random(mask.shape) < 0.4)
    marking.take(mask, gone, labels[0])
    structures[labels[0]][gone] = False
    assert all((marking.of(mask, label) == where).all() for label, where in structures.items())


def test_a_mask_without_overlap_is_what_it_would_be_anyway() -> None:
    (ball,) = nested(5).values()
    mask, marking = written({7: ball, 3: ~ball})
    assert (mask == np.where(ball, 7, 3)).all()
    assert marking.together == {}


def test_structures_are_kept_whatever_sets_there_were_on_the_way_as_long_as_those_in_the_end_have_room() -> None:
    # Each of 129 structures is put where all before it are: 128 sets on the way to each of the two in the end.
    here = np.zeros((3, 4, 4), np.bool_)
    here[1:, :3] = True
    structures = {label: here.copy() for label in range(1, 130)}
    structures[100][2] = False
    mask, marking = written(structures, again=True)
    painting = Marking(structures, "keep")
    marked = np.stack(list(structures.values()))
    painted = np.stack([painting.painted(marked[:, plane], structures) for plane in range(3)])
    for one, those in ((mask, marking), (painted, painting)):
        assert all((those.of(one, label) == where).all() for label, where in structures.items())
        assert len(np.unique(one)) == 3
        assert those.together.keys() >= set(np.unique(one)) - {0}
        # 128 of them are taken away again, one after the other, each leaving a set of its own behind.
        for label in list(structures)[:-1]:
            those.take(one, np.nonzero(structures[label]), label)
        assert (one == np.where(here, 129, 0)).all()
    assert len(painting.together) < 128


@settings(max_examples=20, deadline=None)
@given(count=st.integers(9, 40), seed=st.integers(0, 2**32 - 1))
def test_a_plane_that_is_painted_at_once_holds_each_structure_as_if_alone(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # As many sets as have room beside the structures' own values, and each of its own on the way.
    sets = random.random((count, 255 - count)) < random.random()
    marked = sets[:, random.integers(0, sets.shape[1], (12, 20))]
    marking = Marking(range(1, count + 1), "keep")
    plane = marking.painted(marked, range(1, count + 1))
    assert all((marking.of(plane, label) == marked[label - 1]).all() for label in range(1, count + 1))
    planes = {label: np.stack([where, where[::-1], where]) for label, where in enumerate(marked, start=1)}
    mask, whole = written(planes, again=True)
    assert all((whole.of(mask[1], label) == marked[label - 1, ::-1]).all() for label in range(1, count + 1))


def test_more_ways_to_overlap_than_a_byte_tells_apart_are_refused() -> None:
    random = np.random.default_rng(1)
    structures = {label: random.random((4, 40, 40)) < 0.5 for label in range(1, 13)}
    for again in (False, True):
        with pytest.raises(EngineFailure, match="255 at most"):
            written(structures, again=again)
    with pytest.raises(EngineFailure, match="255 at most"):
        Marking(structures, "keep").painted(np.stack([one[0] for one in structures.values()]), structures)


@pytest.mark.parametrize(
    "together",
    [{1: (2, 3)}, {0: (1, 2)}, {256: (1, 2)}, {9: (1,)}, {9: (1, 1)}, {9: (1, 8)}, {9: (1, -2)}],
    ids=["a label", "background", "no byte", "one", "one twice", "no structure", "below zero"],
)
def test_a_table_of_overlaps_that_is_none_is_refused(together: dict[int, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="not of its structures"):
        checked_together(together, (1, 2, 3))


def test_each_structure_is_filled_freed_of_fragments_and_measured_for_itself() -> None:
    structures = nested(9, 6, 3)
    # A hole in the outermost that only the middle one fills, and a fragment of the innermost inside the others.
    structures[1] &= ~nested(4)[1]
    structures[3][10, 7, 11] = True
    mask, marking = written(structures)
    assert fill_holes(mask, (1, 2, 3), marking) is mask
    spacing = (2.0, 1.0, 1.0)
    keep_components(mask, spacing, minimum_fraction=0.5, marking=marking)
    truth = nested(9, 6, 3)
    assert all((marking.of(mask, label) == where).all() for label, where in truth.items())
    volumes = volumes_ml(mask, spacing, (1, 2, 3), marking)
    assert volumes == {label: pytest.approx(where.sum() * 0.002) for label, where in truth.items()}
    assert marked_ml(mask, spacing) == pytest.approx(volumes[1]), "what lies in another is not marked twice"


def test_brought_from_a_coarser_turned_grid_each_structure_is_where_it_would_be_alone() -> None:
    structures = nested(9, 6, 3)
    mask, marking = written(structures)
    turn = np.array([[0, 2.0, 0, 5], [0, 0, -2.5, 60], [3.0, 0, 0, -9], [0, 0, 0, 1]])
    coarse = Grid((20, 24, 22), turn)
    fine = coarse.oriented("LPS").with_spacing((1.1, 0.9, 1.3))
    for smooth in (False, True):
        back = labels_on(mask, coarse, fine, smooth=smooth, marking=marking)
        for label, where in structures.items():
            alone = labels_on(where.astype(np.uint8), coarse, fine, smooth=smooth, marking=Marking((1,), "keep"))
            assert (marking.of(back, label) == (alone == 1)).all()
        outer, middle, inner = (marking.of(back, label) for label in structures)
        assert not (inner & ~middle).any()
        assert not (middle & ~outer).any()
        # The share of voxels is the volume: 22 x 24 x 20 voxels of 15 mm3.
        assert outer.sum() * fine.voxel_ml == pytest.approx(structures[1].sum() * coarse.voxel_ml, rel=0.03)


def test_a_mask_file_holds_the_overlaps_and_gives_dice_structure_by_structure(tmp_path: Path) -> None:
    structures = nested(9, 6, 3)
    mask, marking = written(structures)
    images = tuple("abcdefghijklmnopqrst")
    ours = Segmentation(segments=(), images=images, labels=mask, together=marking.together)
    with (tmp_path / "mask.npz").open("wb") as file:
        write_mask(file, ours)
    read = read_mask(tmp_path / "mask.npz")
    # Another allocation of values, and another order of the planes: the same structures in the same places.
    other_mask, other = written(dict(reversed(structures.items())))
    turned = Segmentation(segments=(), images=images[::-1], labels=other_mask[::-1], together=other.together)
    assert other.together != marking.together
    assert [dice(planes_of(read, label), planes_of(turned, label)) for label in structures] == [1.0, 1.0, 1.0]
    smaller = Segmentation(segments=(), images=images, labels=written(nested(9, 6, 2))[0], together=marking.together)
    alike = [dice(planes_of(read, label), planes_of(smaller, label)) for label in structures]
    assert alike[:2] == [1.0, 1.0]
    assert 0.1 < (alike[2] or 0) < 0.9
    np.savez(tmp_path / "wrong.npz", labels=mask, images=np.array(images), together=np.array([[9, 1]], np.uint8))
    with pytest.raises(ValueError, match="not of its structures"):
        read_mask(tmp_path / "wrong.npz")


def test_overlaps_are_written_into_one_byte_a_voxel_and_next_to_nothing_beside_it() -> None:
    structures = nested(60, 40, 20, shape=(48, 160, 160))
    mask = np.zeros((48, 160, 160), np.uint8)
    marking = Marking(structures, "keep")
    tracemalloc.start()
    try:
        for label, where in structures.items():
            marking.put(mask, where, label)
        marking.voxels(mask)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < mask.nbytes / 2
