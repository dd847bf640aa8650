"""NIfTI-1 files: volumes out and masks in, with their place in the patient.

The one place where RAS is met: a NIfTI affine maps (i, j, k) to RAS in mm; a :class:`inference.grid.Grid` maps
(k, j, i) to LPS. ``i`` runs fastest in the file, as columns do in ours, so nothing is transposed. Source: nifti1.h of
the NIfTI-1.1 standard.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.grid import Grid

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NiftiError", "read_nifti", "write_nifti"]

_HEADER: Final = 348
_OFFSET: Final = 352
_TYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


class NiftiError(ValueError):
    """A file that is no NIfTI-1 volume, or one that is not read; the words name no patient."""


def write_nifti(path: Path, array: npt.NDArray[Any], grid: Grid) -> None:
    """Write a volume.

    Parameters
    ----------
    path
        ``.nii``, or ``.nii.gz`` to compress.
    array
        (slices, rows, columns), any of the integers and floats of NIfTI-1.
    grid
        Where its voxels lie (LPS, mm).
    """
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    code = next((code for code, name in _TYPES.items() if np.dtype("<" + name) == little.dtype), None)
    if code is None or little.shape != grid.shape:
        raise ValueError(f"a volume of {array.dtype} and shape {array.shape} on a grid of {grid.shape} is not written")
    affine = _flipped(_LPS_TO_RAS @ grid.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    k, j, i = little.shape
    header = bytearray(_OFFSET)
    struct.pack_into("<i", header, 0, _HEADER)
    struct.pack_into("<8h", header, 40, 3, i, j, k, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, 8 * little.itemsize)
    struct.pack_into("<8f", header, 76, _handedness(affine), *spacing, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, _OFFSET, 1.0, 0.0)
    header[123] = 2  # mm
    quaternion = _quaternion(affine, spacing)
    # Code 1: scanner's coordinates. The qform holds no shear: then it is left out.
    struct.pack_into("<2h", header, 252, 1 if quaternion is not None else 0, 1)
    if quaternion is not None:
        struct.pack_into("<6f", header, 256, *quaternion, *affine[:3, 3])
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    if path.name.endswith(".gz"):
        with gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as stream:
            stream.write(header)
            stream.write(little.data)
    else:
        with path.open("wb") as plain:
            plain.write(header)
            plain.write(little.data)


def read_nifti(path: Path, *, most_bytes: int = 4 << 30, channels: int = 1) -> tuple[npt.NDArray[Any], Grid]:
    """Read a volume, however it is oriented.

    Parameters
    ----------
    channels
        How many values a voxel may have beside one: along the fourth axis, or the fifth (NIfTI's axis of a vector).

    Returns
    -------
    tuple
        The array, axes (k, j, i) or, of several channels, (channel, k, j, i), with the file's scaling applied; and its
        grid (LPS, mm).

    Raises
    ------
    NiftiError
        If it is none, is truncated, larger than ``most_bytes``, has no place in the patient, or other axes.
    """
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
            header = stream.read(_OFFSET)
            order, shape, dtype, offset, several = _layout(header, channels)
            length = int(np.prod(shape)) * several * dtype.itemsize
            if length + offset > most_bytes:
                raise NiftiError(f"a volume of {length >> 20} MB is not read")
            stream.read(offset - _OFFSET)
            data = stream.read(length)
    except (OSError, EOFError, zlib.error) as problem:
        raise NiftiError(f"the file cannot be read ({type(problem).__name__})") from problem
    if len(data) != length:
        raise NiftiError(f"the file breaks off: {len(data)} of {length} bytes of its volume are there")
    affine = _placed(header, order)
    try:
        grid = Grid(shape, _LPS_TO_RAS @ _flipped(affine))
    except ValueError as problem:
        raise NiftiError(str(problem)) from problem
    array = np.frombuffer(data, dtype).reshape(shape if several == 1 else (several, *shape))
    slope, intercept = struct.unpack_from(order + "2f", header, 112)
    if slope not in (0.0, 1.0) or intercept != 0.0:
        if not np.isfinite([slope, intercept]).all():
            raise NiftiError("its scaling is not finite")
        if slope != 0.0:
            return array * np.float64(slope) + np.float64(intercept), grid
    return array, grid


def _layout(header: bytes, channels: int) -> tuple[str, tuple[int, int, int], np.dtype[Any], int, int]:
    if len(header) < _OFFSET or header[344:348] != b"n+1\0":
        raise NiftiError("it is no single-file NIfTI-1 volume")
    order = "<" if struct.unpack_from("<i", header, 0)[0] == _HEADER else ">"
    if struct.unpack_from(order + "i", header, 0)[0] != _HEADER:
        raise NiftiError("its header's length is wrong")
    count, *sizes = struct.unpack_from(order + "8h", header, 40)
    further = [size for size in sizes[3:count] if size != 1]
    if not 3 <= count <= 7 or min(sizes[:count]) < 1 or further not in ([], [channels]):
        raise NiftiError("it has not three axes" + (f", nor {channels} channels" if channels > 1 else ""))
    name = _TYPES.get(struct.unpack_from(order + "h", header, 70)[0])
    if name is None:
        raise NiftiError("its datatype is not read")
    offset = struct.unpack_from(order + "f", header, 108)[0]
    if not _OFFSET <= offset <= 1 << 24:
        raise NiftiError("its volume begins in no possible place")
    return order, (sizes[2], sizes[1], sizes[0]), np.dtype(order + name), int(offset), *(further or [1])


def _placed(header: bytes, order: str) -> npt.NDArray[np.float64]:
    """Return the affine of (i, j, k) to RAS in mm: the sform where there is one, else the qform."""
    quaternion_code, affine_code = struct.unpack_from(order + "2h", header, 252)
    affine = np.eye(4)
    if affine_code > 0:
        affine[:3] = np.array(struct.unpack_from(order + "12f", header, 280), np.float64).reshape(3, 4)
    elif quaternion_code > 0:
        handed, *spacing = struct.unpack_from(order + "4f", header, 76)
        b, c, d, *origin = struct.unpack_from(order + "6f", header, 256)
        a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        spacing[2] *= -1 if handed < 0 else 1
        affine[:3, :3], affine[:3, 3] = turn * np.array(spacing), origin
    else:
        raise NiftiError("it does not say where its voxels lie in the patient")
    scale = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}.get(header[123] & 7)
    if scale is None:
        raise NiftiError("its unit of length is not read")
    affine[:3] *= scale
    return affine


def _flipped(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exchange the first and the third axis: (i, j, k) for (k, j, i), either way."""
    return affine[:, [2, 1, 0, 3]]


def _handedness(affine: npt.NDArray[np.float64]) -> float:
    return -1.0 if np.linalg.det(affine[:3, :3]) < 0 else 1.0


def _quaternion(affine: npt.NDArray[np.float64], spacing: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Return (b, c, d) of the rotation, or None where the axes are not at right angles."""
    from scipy.spatial.transform import Rotation

    turn = affine[:3, :3] / spacing
    turn[:, 2] *= _handedness(affine)
    if np.abs(turn.T @ turn - np.eye(3)).max() > 1e-4:
        return None
    b, c, d, a = Rotation.from_matrix(turn).as_quat()
    sign = -1.0 if a < 0 else 1.0
    return float(b * sign), float(c * sign), float(d * sign)
