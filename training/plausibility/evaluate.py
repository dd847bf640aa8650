"""Say what the plausibility check does to real pictures: how many chests it refuses, and how many other pictures.

Run by `python -m training.plausibility.evaluate FOLDER...` over folders of DICOM, PNG and JPEG files; those whose path
holds one of `--chests` are chests, all others are not. Each is judged as it is, and in 40 variations. No picture that
is judged here may have been trained on: training has only synthetic ones.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.plausible import chest_radiograph
from training.plausibility.data import varied

VARIATIONS = 40


def picture(path: Path) -> NDArray[np.float32] | None:
    """Read any picture as grey levels: DICOM by the node's own reader where it is a radiograph of one sample."""
    from PIL import Image

    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return np.asarray(Image.open(path).convert("L"), np.float32)
    from pydicom import dcmread

    from inference.errors import InputRefused
    from inference.radiograph import radiograph_pixels

    try:
        dataset = dcmread(path)
        try:
            return radiograph_pixels(dataset)
        except InputRefused:
            pixels = np.asarray(dataset.pixel_array, np.float32)
    except Exception:  # noqa: BLE001 - what nothing can decode is no picture
        return None
    while pixels.ndim > 2:
        pixels = pixels.mean(axis=-1) if pixels.shape[-1] in (3, 4) else pixels[len(pixels) // 2]
    return pixels if pixels.ndim == 2 else None


def interval(refused: int, of: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, by Clopper and Pearson."""
    from scipy.stats import beta

    low = 0.0 if refused == 0 else float(beta.ppf(0.025, refused, of - refused + 1))
    high = 1.0 if refused == of else float(beta.ppf(0.975, refused + 1, of - refused))
    return low, high


def rotated(image: NDArray[np.float32], rng: np.random.Generator, *, chest: bool) -> NDArray[np.float32]:
    """Vary a picture; one that is no chest is turned by quarters, too."""
    return varied(image if chest else np.rot90(image, int(rng.integers(4))), rng)


def main() -> None:
    """Print a table, and which pictures were judged wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--chests", nargs="+", default=["cxr_"], help="a chest's path holds one of these")
    parser.add_argument("--leave-out", nargs="*", default=["mask"], help="such chests are left out")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    seen: set[bytes] = set()
    for path in sorted(file for folder in given.folders for file in folder.rglob("*") if file.is_file()):
        image = picture(path)
        if image is None or min(image.shape) < 32:
            continue
        chest = any(word in str(path) for word in given.chests) and not any(w in path.name for w in given.leave_out)
        thumbnail = np.asarray(image[:: max(1, image.shape[0] // 24), :: max(1, image.shape[1] // 24)]).tobytes()
        if thumbnail in seen:
            continue
        seen.add(thumbnail)
        of = "chest" if chest else path.parent.name
        verdict = chest_radiograph(image)
        counts[of, "as it is"].append(verdict.plausible)
        if verdict.plausible != chest:
            print(f"{path.name}: {verdict.reason or 'taken for a chest'} ({verdict.score:.1f}, fit {verdict.fit:.2f})")
        rng = np.random.default_rng(1)
        for _ in range(VARIATIONS):
            counts[of, "varied"].append(_taken(rotated(image, rng, chest=chest)))
    print("\n| pictures | how | taken for a chest | share refused (95 % interval) |\n|---|---|---|---|")
    for (of, how), taken in sorted(counts.items()):
        low, high = interval(len(taken) - sum(taken), len(taken))
        share = 1 - sum(taken) / len(taken)
        print(f"| {of} | {how} | {sum(taken)} of {len(taken)} | {share:.3f} ({low:.3f} to {high:.3f}) |")


def _taken(image: NDArray[Any]) -> bool:
    return chest_radiograph(image).plausible


if __name__ == "__main__":
    main()
