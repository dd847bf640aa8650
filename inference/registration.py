"""Two volumes of one patient that do not share a frame of reference, brought over each other as rigid bodies.

By mutual information (Mattes et al., IEEE Trans Med Imaging 22:120, 2003), since the contrasts differ, with SimpleITK
(extra ``registration``). A registration always ends with *some* transform, so that the result has to prove itself:
better than its neighbours by far, with the two bodies over each other, and found again from a start beside it.
Otherwise it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import InputRefused
from inference.grid import Grid, resample
from inference.resampling import corners

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Registration", "register"]

#: The spacing at which volumes are compared: finer adds time and no certainty.
_WORK_MM = 2.5
#: Coarse, then fine: shrunk so many times.
_LEVELS = (4, 2, 1)
#: What is sought from a start beside the result ends within so many mm of it, in the inner half of the field.
_STABLE_MM = 3.0
#: So far the proof's neighbours lie, and by so much of itself the similarity falls there.
_BESIDE_MM = 10.0
_FALL = 0.08
#: At least so much of the smaller body lies over the other (Dice's coefficient of what is not background).
_OVER = 0.6
#: The places at which volumes are compared are drawn at random: from this seed, so that a study is answered alike
#: whenever it is read. Threads would add up in the order in which they end, and round by that, so there is one.
_SEED = 1
#: A search ends where its steps (mm) are this small. Ten times as large it stops short of what it looks for, and where
#: depends on the places drawn.
_LAST_STEP_MM = 1e-4
#: No patient turns further between two series of a study.
_TURN_LIMIT_DEGREES = 60.0


@dataclass(frozen=True, slots=True)
class Registration:
    """Where a moving volume lies over a fixed one.

    Attributes
    ----------
    matrix
        4 x 4: a point of the fixed volume to the same point of the moving one, each in its own LPS, mm.
    turned_degrees, moved_mm
        The angle of the rotation; how far the middle of the fixed field moved.
    overlap
        Dice's coefficient of both bodies.
    """

    matrix: npt.NDArray[np.float64]
    turned_degrees: float
    moved_mm: float
    overlap: float


def register(
    fixed: npt.NDArray[Any],
    fixed_grid: Grid,
    moving: npt.NDArray[Any],
    moving_grid: Grid,
    name: str,
    *,
    seed: int = _SEED,
) -> Registration:
    """Find where ``moving`` lies over ``fixed``.

    Parameters
    ----------
    name
        How a refusal calls the moving volume: its role.
    seed
        Of the places at which the volumes are compared; the search that proves the result draws others.

    Raises
    ------
    InputRefused
        ``registration-unavailable`` where SimpleITK is not installed, ``registration-failed`` where the result does
        not hold.
    """
    try:
        import SimpleITK as sitk  # noqa: N813
    except ModuleNotFoundError as absent:
        raise InputRefused(
            "registration-unavailable",
            f"{name} lies in another frame of reference than the first role, and SimpleITK, which would register it, "
            "is not installed (extra registration)",
        ) from absent
    # A method's own number of threads does not reach all that it starts, and nothing else in this process asks.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    (still, still_grid), (moved, moved_grid) = _coarse(fixed, fixed_grid), _coarse(moving, moving_grid)
    images = _image(sitk, still, still_grid), _image(sitk, moved, moved_grid)
    starts = [
        sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), how)
        for how in (sitk.CenteredTransformInitializerFilter.GEOMETRY, sitk.CenteredTransformInitializerFilter.MOMENTS)
    ]
    try:
        found = [_sought(sitk, *images, start, seed) for start in starts]
        best, similarity = min(found, key=lambda one: one[1])
        beside = min(
            _metric(sitk, *images, _shifted(sitk, best, shift))
            for axis in range(3)
            for shift in (_BESIDE_MM * np.eye(3)[axis], -_BESIDE_MM * np.eye(3)[axis])
        )
        matrix = _matrix(best)
        turned = float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))
        overlap = _overlap(still, still_grid, moved, moved_grid, matrix)
        points = _inner(still_grid)
        doubts = []
        if beside - similarity < _FALL * abs(similarity):
            doubts.append(f"{_BESIDE_MM:g} mm beside it the images are as alike")
        if overlap < _OVER:
            doubts.append(f"{100 * overlap:.0f} % of the bodies lie over each other")
        if turned > _TURN_LIMIT_DEGREES:
            doubts.append(f"it is turned by {turned:.0f} degrees")
        if not doubts:
            again = _matrix(_sought(sitk, *images, _beside(sitk, best), seed + 1)[0])
            strayed = float(np.linalg.norm(_applied(matrix, points) - _applied(again, points), axis=1).max())
            if strayed > _STABLE_MM:
                doubts.append(f"a second search ended {strayed:.1f} mm away")
    except RuntimeError as problem:
        # It throws where the volumes do not meet at all; its words hold nothing that people could use.
        raise InputRefused("registration-failed", f"{name} could not be brought over the first role") from problem
    if doubts:
        raise InputRefused(
            "registration-failed",
            f"{name} lies in another frame of reference and could not be brought over the first role: "
            + "; ".join(doubts),
        )
    return Registration(
        matrix=matrix,
        turned_degrees=turned,
        moved_mm=float(np.linalg.norm((_applied(matrix, points) - points).mean(axis=0))),
        overlap=overlap,
    )


def _inner(grid: Grid) -> npt.NDArray[np.float64]:
    """Return the corners of the inner half of a field, where the body is: beyond it small turns count for more."""
    ends = grid.to_lps(corners(grid.shape))
    middle: npt.NDArray[np.float64] = ends.mean(axis=0)
    return middle + 0.5 * (ends - middle)


def _coarse(array: npt.NDArray[Any], grid: Grid) -> tuple[npt.NDArray[np.float32], Grid]:
    target = grid.with_spacing([max(mm, _WORK_MM) for mm in grid.spacing_mm])
    coarse = resample(array, grid, target, outside=float(array.min()), antialias=True)
    low, high = np.percentile(coarse, [0.5, 99.5])
    if high <= low:
        raise InputRefused("registration-failed", "a volume shows nothing: it has the same value all over")
    return np.clip((coarse - low) / (high - low), 0, 1), target


def _image(sitk: Any, array: npt.NDArray[np.float32], grid: Grid) -> Any:
    image = sitk.GetImageFromArray(array)
    # Its index runs (x, y, z), as our axes 2, 1, 0.
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.affine[:3, 3].tolist())
    directions = grid.affine[:3, 2::-1] / np.array(grid.spacing_mm[::-1])
    image.SetDirection(directions.ravel().tolist())
    return image


def _method(sitk: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _sought(sitk: Any, fixed: Any, moving: Any, start: Any, seed: int) -> tuple[Any, float]:
    """Return the transform that is found from a start, and the similarity there (lower is more alike)."""
    method = _method(sitk)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([1.0 if level > 1 else 0.4 for level in _LEVELS], seed)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0,
        minStep=_LAST_STEP_MM,
        numberOfIterations=150,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(_LEVELS))
    method.SetSmoothingSigmasPerLevel([level / 2 if level > 1 else 0 for level in _LEVELS])
    method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
    found = sitk.Euler3DTransform(method.Execute(fixed, moving).GetNthTransform(0))
    return found, _metric(sitk, fixed, moving, found)


def _metric(sitk: Any, fixed: Any, moving: Any, transform: Any) -> float:
    method = _method(sitk)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInitialTransform(transform)
    return float(method.MetricEvaluate(fixed, moving))


def _beside(sitk: Any, transform: Any) -> Any:
    moved = _shifted(sitk, transform, np.array((5.0, -5.0, 5.0)))
    angles = np.array((transform.GetAngleX(), transform.GetAngleY(), transform.GetAngleZ()))
    moved.SetRotation(*(angles + np.radians((4.0, -4.0, 4.0))).tolist())
    return moved


def _shifted(sitk: Any, transform: Any, shift: npt.NDArray[np.float64]) -> Any:
    moved = sitk.Euler3DTransform(transform)
    moved.SetTranslation((np.array(transform.GetTranslation()) + shift).tolist())
    return moved


def _matrix(transform: Any) -> npt.NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - matrix[:3, :3] @ centre
    return matrix


def _applied(matrix: npt.NDArray[np.float64], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    moved: npt.NDArray[np.float64] = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def _overlap(
    fixed: npt.NDArray[np.float32],
    fixed_grid: Grid,
    moving: npt.NDArray[np.float32],
    moving_grid: Grid,
    matrix: npt.NDArray[np.float64],
) -> float:
    """Return Dice's coefficient of both bodies where both volumes see: what one field lacks does not count."""
    there = Grid(fixed_grid.shape, matrix @ fixed_grid.affine)
    over = resample(moving, moving_grid, there, outside=-1.0)
    seen = over >= 0
    bodies = (fixed > _threshold(fixed)) & seen, over > _threshold(moving)
    total = int(bodies[0].sum() + bodies[1].sum())
    return 2 * int((bodies[0] & bodies[1]).sum()) / total if total else 0.0


def _threshold(values: npt.NDArray[np.float32]) -> float:
    """Return Otsu's threshold of values in 0..1 (IEEE Trans SMC 9:62, 1979), halved: dark parts of a body count."""
    counts, edges = np.histogram(values, bins=128, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1:-1][np.nanargmax(between)]) / 2
