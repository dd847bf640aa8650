"""Measure the shipped lung model: Dice on a real chest CT, on degraded copies of it, and on phantoms; time; picture.

``python -m training.lung_ct.evaluate FOLDER --picture docs/models/lung-ct-real.png`` prints the tables that stand in
docs/models/lung-ct.md. FOLDER holds one axial CT series (DICOM).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pydicom
from PIL import Image
from scipy import ndimage

from inference.card import load_card
from inference.postprocess import keep_components
from phantoms.thorax import make_head, make_thorax
from training.lung_ct.reference import segment

Volume = npt.NDArray[np.int16]
Labels = npt.NDArray[np.uint8]
Spacing = tuple[float, float, float]
Case = tuple[str, Volume, Spacing, Labels]

MODEL = Path("conf/models/lung-ct")


def read_series(folder: Path) -> tuple[Volume, Spacing]:
    """Return (HU, spacing) of an axial CT series sorted from inferior to superior."""
    slices = sorted((pydicom.dcmread(f) for f in folder.glob("*.dcm")), key=lambda d: float(d.ImagePositionPatient[2]))
    hu = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])
    z = [float(d.ImagePositionPatient[2]) for d in slices]
    dy, dx = (float(v) for v in slices[0].PixelSpacing)
    return hu.astype(np.int16), ((z[-1] - z[0]) / (len(z) - 1), dy, dx)


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


class Model:
    """The model as shipped: ONNX file and the steps that its card names."""

    def __init__(self, folder: Path = MODEL, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            folder / "lung-ct.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.keep = next(s.keep_components for s in load_card(folder).postprocess if s.keep_components)

    def __call__(self, hu: Volume, spacing: Spacing) -> Labels:
        """Return the labels after the card's component rule."""
        feed = {"hu": np.ascontiguousarray(hu), "spacing": np.asarray(spacing, np.float32)}
        labels: Labels = self.session.run(None, feed)[0]
        return keep_components(labels, spacing, self.keep.minimum_ml, self.keep.minimum_fraction)


def _resampled(hu: Volume, ref: Labels, spacing: Spacing, wanted: Spacing) -> tuple[Volume, Labels, Spacing]:
    zoom = [s / w for s, w in zip(spacing, wanted, strict=True)]
    source = hu.astype(np.float32)
    blur = [0.45 / z if z < 1 else 0.0 for z in zoom]
    if any(blur):
        source = ndimage.gaussian_filter(source, blur)
    out = ndimage.zoom(source, zoom, order=1, grid_mode=True, mode="nearest")
    label = ndimage.zoom(ref, zoom, order=0, grid_mode=True, mode="nearest")
    real = tuple(s * n / m for s, n, m in zip(spacing, hu.shape, out.shape, strict=True))
    return out.astype(np.int16), label, real


def _shifted(a: npt.NDArray[np.generic], rows: int, columns: int, fill: int) -> npt.NDArray[np.generic]:
    out = np.full_like(a, fill)
    n, m = a.shape[1:]
    out[:, max(0, rows) : n + min(0, rows), max(0, columns) : m + min(0, columns)] = a[
        :, max(0, -rows) : n + min(0, -rows), max(0, -columns) : m + min(0, -columns)
    ]
    return out


def degraded(hu: Volume, spacing: Spacing, ref: Labels, rng: np.random.Generator) -> Iterator[Case]:
    """Yield copies of a CT as other scanners, kernels and habits would have made it, with the reference carried along.

    Where the geometry changes the reference is carried over by nearest neighbour, which costs some Dice itself.
    """
    yield "as acquired", hu, spacing, ref
    f = hu.astype(np.float32)

    def whole(a: npt.NDArray[np.float32]) -> Volume:
        return np.clip(np.rint(a), -1024, 3000).astype(np.int16)

    white = rng.standard_normal(hu.shape, dtype=np.float32)
    blue = white - ndimage.gaussian_filter(white, (0, 1.5, 1.5))
    brown = ndimage.gaussian_filter(white, (0, 1.5, 1.5))
    soft = ndimage.gaussian_filter(f, (0, 1.6, 1.6))
    edge = f - ndimage.gaussian_filter(f, (0, 1.2, 1.2))
    yield "low dose: white noise, 60 HU", whole(f + 60 * white), spacing, ref
    yield "very low dose: coarse noise, 60 HU", whole(f + 60 / brown.std() * brown), spacing, ref
    yield "sharp kernel: edges x 2.5, noise 120 HU", whole(f + 1.5 * edge + 120 * blue), spacing, ref
    yield "very sharp: edges x 3.5, noise 200 HU", whole(f + 2.5 * edge + 200 * blue), spacing, ref
    yield "soft kernel: blurred by 1.0 mm", whole(soft), spacing, ref
    yield "HU scale off by +30", whole(f + 30), spacing, ref
    yield "HU scale off by -30", whole(f - 30), spacing, ref
    for mm in (1.25, 3.0, 5.0):
        a, b, s = _resampled(hu, ref, spacing, (mm, spacing[1], spacing[2]))
        yield f"slices every {mm:g} mm (interpolated)", a, s, b
    for mm in (0.5, 0.98, 1.4):
        a, b, s = _resampled(hu, ref, spacing, (spacing[0], mm, mm))
        yield f"pixels of {mm:g} mm", a, s, b
    r = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape[1:]), indexing="ij"))
    for value in (-2000, -3024, 0):
        yield (
            f"round field of view, padding {value}",
            np.where(r > 1, np.int16(value), hu),
            spacing,
            np.where(r > 1, np.uint8(0), ref),
        )
    yield "field of view of 500 mm, patient off centre", *_wide(hu, ref, spacing)
    a = np.asarray(_shifted(hu, 40, 70, -1000), np.int16)
    yield "shifted by 45 mm, body cut off", a, spacing, np.asarray(_shifted(ref, 40, 70, 0), np.uint8)
    cut = (slice(None), slice(60, 420), slice(90, 450))
    yield "field of view of 233 mm, lungs cut off", hu[cut], spacing, ref[cut]
    for angle in (-8, 8):
        a = ndimage.rotate(f, angle, (1, 2), reshape=False, order=1, cval=-1000)
        b = ndimage.rotate(ref, angle, (1, 2), reshape=False, order=0)
        yield f"turned by {angle} degrees", whole(a), spacing, b
    for scale in (0.6, 0.8, 1.2):
        s3 = (spacing[0] * scale, spacing[1] * scale, spacing[2] * scale)
        yield f"body scaled by {scale:g}", hu, s3, ref
    for low, high in ((0, 10), (8, 18), (15, 25), (20, 30)):
        yield f"slices {low} to {high - 1} only", hu[low:high], spacing, ref[low:high]


def _wide(hu: Volume, ref: Labels, spacing: Spacing) -> tuple[Volume, Spacing, Labels]:
    size = [round(500 / s) for s in spacing[1:]]
    pad = [
        (0, 0),
        *((int(0.15 * (n - m)), n - m - int(0.15 * (n - m))) for n, m in zip(size, hu.shape[1:], strict=True)),
    ]
    return np.pad(hu, pad, constant_values=-1000), spacing, np.pad(ref, pad)


def picture(hu: Volume, model: Labels, ref: Labels, path: Path, columns: int = 3, width: int = 1350) -> None:
    """Write a montage of every third slice: reference yellow (right) and cyan (left), model red and blue."""
    body = np.argwhere((hu > -300).any(0))
    (top, left), (bottom, right) = body.min(0), body.max(0) + 1
    size = (width // columns, round(width / columns * (bottom - top) / (right - left)))
    # A palette of 60 greys and 4 colours keeps the file small and the thin lines pure.
    colours = {(0, 1): (255, 220, 0), (0, 2): (0, 230, 230), (1, 1): (255, 30, 30), (1, 2): (60, 110, 255)}
    tiles = []
    for k in range(0, len(hu), 3):
        plane = Image.fromarray(hu[k, top:bottom, left:right].astype(np.float32)).resize(size, Image.Resampling.BOX)
        tile = np.clip((np.asarray(plane) + 1150) / 1500 * 59, 0, 59).astype(np.uint8)
        for number, (which, side) in enumerate(colours):
            labels = (ref, model)[which]
            share = Image.fromarray((labels[k, top:bottom, left:right] == side).astype(np.float32))
            mask = np.asarray(share.resize(size, Image.Resampling.BOX)) > 0.5
            # The reference is drawn just outside its edge and the model just inside, so that both can be seen.
            edge = ndimage.binary_dilation(mask) & ~mask if which == 0 else mask & ~ndimage.binary_erosion(mask)
            tile[edge] = 60 + number
        tiles.append(tile)
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    out = Image.fromarray(np.concatenate(rows, 0))
    out.putpalette([v for g in range(60) for v in [round(g * 255 / 59)] * 3] + [v for c in colours.values() for v in c])
    out.save(path, optimize=True)


def report(cases: Iterator[Case], model: Callable[[Volume, Spacing], Labels]) -> None:
    """Print one line of a table for each case."""
    for name, hu, spacing, ref in cases:
        began = time.perf_counter()
        found = model(hu, spacing)
        seconds = time.perf_counter() - began
        right, left = (dice(found == k, ref == k) for k in (1, 2))
        ml = float(np.prod(spacing)) / 1000
        got, want = ((a > 0).sum() * ml for a in (found, ref))
        print(f"| {name} | {right:.3f} | {left:.3f} | {got:.0f} | {want:.0f} | {seconds:.1f} |", flush=True)


def phantoms(count: int, first: int) -> Iterator[Case]:
    """Yield phantoms of unseen seeds, on grids that training never saw."""
    grids = [((60, 256, 256), (4.0, 1.4, 1.4)), ((40, 320, 320), (7.0, 1.2, 1.2)), ((90, 224, 224), (2.5, 1.7, 1.7))]
    for k in range(count):
        shape, spacing = grids[k % len(grids)]
        p = make_thorax(first + k, shape=shape, spacing=spacing)
        yield f"chest phantom {first + k}", p.hu, spacing, p.labels
    for k in range(max(2, count // 3)):
        p = make_head(first + k)
        yield f"head phantom {first + k}", p.hu, p.spacing, p.labels
        p = make_thorax(first + k, shape=(40, 256, 256), spacing=(5.0, 1.5, 1.5), region="abdomen")
        yield f"abdomen phantom {first + k}", p.hu, p.spacing, p.labels


def main() -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with one axial chest CT series")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--phantoms", type=int, default=12)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    model = Model(arguments.model)
    hu, spacing = read_series(arguments.folder)
    ref = segment(hu, spacing)
    print("| case | Dice right | Dice left | model mL | reference mL | seconds |\n|---|---|---|---|---|---|")
    report(degraded(hu, spacing, ref, np.random.default_rng(0)), model)
    report(phantoms(arguments.phantoms, 900_000), model)
    many = ndimage.zoom(hu, (64 / len(hu), 1, 1), order=1)
    began = time.perf_counter()
    model(many, (spacing[0] * len(hu) / 64, *spacing[1:]))
    print(f"64 slices of {hu.shape[1]} x {hu.shape[2]}: {time.perf_counter() - began:.2f} s")
    if arguments.picture:
        picture(hu, model(hu, spacing), ref, arguments.picture)


if __name__ == "__main__":
    main()
