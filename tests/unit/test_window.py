"""A window slides over a volume of any size: every voxel once, the overlap blended, memory of a window's depth."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.steps import Window
from inference.window import slide, starts


def run(volume: np.ndarray, window: Window, predict=lambda x: x, batch: int = 1) -> np.ndarray:
    """Slide over float32 (channels, planes, rows, columns); every plane has to come once, in order."""
    written: list[np.ndarray] = []

    def write(first: int, scores: np.ndarray) -> None:
        assert first == sum(part.shape[1] for part in written)
        written.append(scores.copy())

    slide(
        volume.shape[1:],
        window,
        read=lambda first, last: volume[:, first:last].copy(),
        predict=predict,
        write=write,
        batch=batch,
    )
    return np.concatenate(written, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 23)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
    blend=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 3),
)
def test_what_changes_nothing_gives_the_volume_back(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, blend: str, batch: int
) -> None:
    volume = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    given_back = run(volume, Window(size=size, overlap=overlap, blend=blend), batch=batch)
    np.testing.assert_allclose(given_back, volume, atol=1e-5)


@given(st.integers(1, 400), st.integers(1, 120), st.floats(0, 0.9))
def test_windows_cover_an_axis_with_at_least_the_overlap(total: int, size: int, overlap: float) -> None:
    places = starts(total, size, overlap)
    if total <= size:
        assert places == [-((size - total) // 2)]
        return
    assert places[0] == 0
    assert places[-1] == total - size
    for first, second in itertools.pairwise(places):
        assert 0 < second - first <= max(1, int(size * (1 - overlap)))


def test_a_window_sees_its_neighbourhood_and_the_overlap_hides_its_edges() -> None:
    rng = np.random.default_rng(2)
    volume = rng.normal(size=(1, 40, 40, 40)).astype(np.float32)

    def marked_edges(pieces: np.ndarray) -> np.ndarray:
        answer = pieces.copy()
        answer[:, :, [0, -1]] += 100
        return answer

    blended = run(volume, Window(size=(16, 16, 16), overlap=0.5), marked_edges)
    # At the volume's own corners no window has its middle, and with MONAI's floor all that cover them count alike.
    error = np.abs(blended - volume)[0, 8:32, 8:32, 8:32]
    assert error.max() < 5, "an edge's answer counts for little where another window's middle lies"


def test_mirrored_windows_are_averaged() -> None:
    volume = np.random.default_rng(3).normal(size=(1, 9, 8, 7)).astype(np.float32)

    def left_half(pieces: np.ndarray) -> np.ndarray:
        answer = np.zeros_like(pieces)
        answer[..., : pieces.shape[-1] // 2 + 1] = 1
        return answer

    plain = run(volume, Window(size=(9, 8, 7)), left_half)
    assert plain[..., -1].max() == 0
    mirrored = run(volume, Window(size=(9, 8, 7), mirror=(2,)), left_half)
    np.testing.assert_allclose(mirrored[..., -1], 0.5)
    np.testing.assert_allclose(mirrored[..., 3], 1.0)


def test_windows_of_one_value_are_run_once_for_each_value() -> None:
    volume = np.zeros((1, 32, 32, 32), np.float32)
    volume[:, 16:] = 3
    volume[0, 5, 5, 5] = 1
    seen: list[int] = []

    def counted(pieces: np.ndarray) -> np.ndarray:
        seen.append(len(pieces))
        return pieces * 2

    doubled = run(volume, Window(size=(8, 8, 8), overlap=0.0), counted)
    np.testing.assert_allclose(doubled, volume * 2, rtol=1e-6)
    assert sum(seen) == 3, "one window with something in it, and one for each of the two values"


@pytest.mark.parametrize("planes", [40, 400])
def test_no_more_than_a_window_of_planes_is_asked_for_at_once(planes: int) -> None:
    asked: list[int] = []

    def read(first: int, last: int) -> np.ndarray:
        asked.append(last - first)
        return np.zeros((1, last - first, 12, 12), np.float32)

    slide((planes, 12, 12), Window(size=(16, 8, 8)), read=read, predict=lambda x: x, write=lambda *_: None)
    assert max(asked) == 16


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "size", "overlap"),
    [((23, 31, 18), (9, 12, 7), 0.25), ((40, 16, 21), (16, 16, 16), 0.5), ((5, 30, 11), (8, 11, 14), 0.6)],
)
def test_a_window_slides_as_monais_does(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, blend: str
) -> None:
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        # Edges of a window have other answers than its middle, as in every padded network.
        net = torch.nn.Sequential(
            torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 5, padding=2)
        )
    volume = np.random.default_rng(6).normal(size=(2, *shape)).astype(np.float32)
    with torch.inference_mode():
        theirs = inferers.sliding_window_inference(
            torch.from_numpy(volume)[None], size, 3, net, overlap=overlap, mode=blend
        )[0].numpy()
        ours = run(
            volume, Window(size=size, overlap=overlap, blend=blend), lambda x: net(torch.from_numpy(x)).numpy(), batch=2
        )
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_a_plane_is_done_without_a_volume_of_weights() -> None:
    """Beside the scores of a window's depth there is never more than a window and a few planes."""
    shape, size = (200, 96, 96), (16, 32, 32)
    answer = np.ones((1, 8, *size), np.float32)
    tracemalloc.start()
    try:
        slide(
            shape,
            Window(size=size, overlap=0.5),
            read=lambda first, last: np.zeros((1, last - first, *shape[1:]), np.float32),
            predict=lambda pieces: np.repeat(answer, len(pieces), axis=0),
            write=lambda *_: None,
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    scores = 8 * size[0] * shape[1] * shape[2] * 4
    window = 8 * size[0] * size[1] * size[2] * 4
    block = size[0] * shape[1] * shape[2] * 4
    assert peak < scores + 3 * window + 3 * block
