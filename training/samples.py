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

from inference.card import Sample, load_card
from inference.expected import expected_of
from phantoms.dicom import write_radiograph, write_small_ct

__all__ = ["main"]


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
    wanted = [Sample(name=name, images=f"samples/{name}") for name in cases]
    said = expected_of(card, samples=wanted, masks=samples)
    print(f"# {folder / 'card.yaml'}")
    print(yaml.safe_dump({"samples": said}, sort_keys=False, width=118))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
