"""Finds, in a folder of DICOM files, what a model can read: cases to calibrate, compare and measure with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from inference.engine import ImageFile, Job
from inference.imagefile import value_of
from inference.matching import evaluate, keywords

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from inference.card import Card
    from inference.inputs import InputRole

__all__ = ["jobs_in"]


def jobs_in(card: Card, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> tuple[Job, ...]:
    """Return a job for each case in a folder that the card's roles match.

    A case of a model that reads radiographs is one image. One of a model that reads volumes is one series, or, for
    several roles, one study, with the first series that matches each role.

    Parameters
    ----------
    folder
        Looked through with all its folders; what is no DICOM file is passed over.
    progress
        Called with (files looked at, files in all).
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    wanted = {key for role in card.inputs for key in keywords(role.match)}
    series: dict[tuple[str, str], list[tuple[ImageFile, Dataset]]] = {}
    for number, path in enumerate(files, start=1):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_IDENTITY, *wanted])
        except (InvalidDicomError, OSError):
            continue
        finally:
            if progress:
                progress(number, len(files))
        study, of_series, instance = (str(dataset.get(keyword, "")) for keyword in _IDENTITY)
        if instance:
            series.setdefault((study, of_series), []).append((ImageFile(instance, path), dataset))
    if card.inputs[0].kind == "radiograph":
        role = card.inputs[0]
        return tuple(
            Job(card.path, {role.role: (image,)})
            for images in series.values()
            for image, dataset in images
            if _matches(role, dataset)
        )
    cases: dict[str, dict[str, tuple[ImageFile, ...]]] = {}
    for (study, of_series), images in series.items():
        case = cases.setdefault(study if len(card.inputs) > 1 else of_series, {})
        for role in card.inputs:
            if role.role not in case and _matches(role, images[0][1]):
                case[role.role] = tuple(image for image, _ in images)
                break
    needed = {role.role for role in card.inputs if not role.optional}
    return tuple(Job(card.path, case) for case in cases.values() if needed <= set(case))


_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def _matches(role: InputRole, dataset: Dataset) -> bool:
    attributes = {key: value_of(dataset, key) for key in keywords(role.match)}
    return evaluate(role.match, attributes).matched
