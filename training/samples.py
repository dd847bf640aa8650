"""Makes the sample cases that lie beside the shipped cards, and prints what the models say of them.

::

    .venv/bin/python -m training.samples conf/models

Each case is a phantom, small on disk. What is printed goes into the card under ``samples``: it is what the model said
when the case was made, and what every later ``overread models test`` has to find again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pydicom
import yaml
from pydicom.uid import RLELossless

from inference.card import Card, Sample, load_card
from inference.host import EngineHost
from inference.samples import job_of, mask_of, values_of, write_mask
from phantoms.dicom import write_radiograph, write_small_ct

__all__ = ["main"]

VOLUME_TOLERANCE, PROBABILITY_TOLERANCE, DICE = 0.03, 0.05, 0.97


def main(arguments: list[str]) -> int:
    """Make the cases of both shipped models; return the exit status."""
    models = Path(arguments[0])
    with tempfile.TemporaryDirectory() as scratch:
        thorax = write_small_ct(Path(scratch) / "thorax", 3)
        head = write_small_ct(Path(scratch) / "head", 3, head=True)
        _make(models / "lung-ct", {"phantom-thorax": thorax.files, "phantom-head": head.files})
        normal = write_radiograph(Path(scratch) / "normal", 5, shape=(384, 336))
        heart = write_radiograph(Path(scratch) / "heart", 6, ["enlarged heart shadow"], shape=(384, 336))
        _make(models / "chest-radiograph-demo", {"phantom-normal": normal.files, "phantom-enlarged-heart": heart.files})
    return 0


def _make(folder: Path, cases: dict[str, tuple[Path, ...]]) -> None:
    samples = folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    for name, files in cases.items():
        (samples / name).mkdir(parents=True)
        for number, file in enumerate(files, start=1):
            dataset = pydicom.dcmread(file)
            dataset.compress(RLELossless, generate_instance_uid=False)
            dataset.save_as(samples / name / f"{number:03}.dcm", enforce_file_format=True)
    card = load_card(folder)
    with EngineHost(card) as host:
        said = [_said(card, name, host, samples) for name in cases]
    print(f"# {folder / 'card.yaml'}")
    print(yaml.safe_dump({"samples": said}, sort_keys=False, width=118))


def _said(card: Card, name: str, host: EngineHost, samples: Path) -> dict[str, object]:
    images = f"samples/{name}"
    findings = host.run(job_of(card, Sample(name=name, images=images)))
    if findings.not_analysed is not None:
        return {"name": name, "images": images, "not_analysed": findings.not_analysed.reason}
    volumes = card.task == "segmentation"
    case: dict[str, object] = {
        "name": name,
        "images": images,
        "expect": {key: round(value, 1 if volumes else 4) for key, value in values_of(findings).items()},
        "tolerance": VOLUME_TOLERANCE if volumes else PROBABILITY_TOLERANCE,
    }
    mask = mask_of(findings)
    if mask is not None:
        with (samples / f"{name}.npz").open("wb") as file:
            write_mask(file, *mask)
        case |= {"mask": f"samples/{name}.npz", "dice": DICE}
    return case


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
