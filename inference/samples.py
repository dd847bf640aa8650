"""Runs a card's own sample cases in the engine's real process and compares what it says with what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine import ImageFile, Job
from inference.errors import CardError, EngineFailure
from inference.host import EngineHost

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from inference.card import Card, Sample
    from inference.findings import Findings

__all__ = ["SampleResult", "check_samples", "mask_of", "read_mask", "run_samples", "values_of", "write_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """What one sample case has come to; ``mismatches`` says in words what is not as expected, ``way`` what ran it."""

    name: str
    mismatches: tuple[str, ...]
    said: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    way: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.mismatches


def run_samples(
    card: Card,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    cores: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[SampleResult]:
    """Run every sample of a card, one after the other, in an engine's process of its own.

    Parameters
    ----------
    folder
        Where that process's temporary folder is made.
    cache, cores
        As of :class:`inference.host.EngineHost`: with those of the node it runs in the way that the node runs it.
    progress
        Called with (done, in all).

    Raises
    ------
    CardError
        When a sample's files are not there, or lead out of the card's folder.
    """
    jobs = [(sample, job_of(card, sample)) for sample in card.samples]
    results: list[SampleResult] = []
    with EngineHost(card, folder=folder, cache=cache, cores=cores) as host:
        for number, (sample, job) in enumerate(jobs, start=1):
            try:
                findings = host.run(job)
            except EngineFailure as failure:
                results.append(SampleResult(name=sample.name, mismatches=(f"{failure.reason}: {failure.text}",)))
            else:
                results.append(
                    SampleResult(
                        name=sample.name,
                        mismatches=tuple(_mismatches(card, sample, findings)),
                        said=values_of(findings),
                        seconds=round(findings.seconds, 3),
                        way=" ".join(
                            str(host.loaded[key]) for key in ("provider", "precision") if host.loaded.get(key)
                        ),
                    )
                )
            if progress:
                progress(number, len(jobs))
    return results


def check_samples(card: Card) -> None:
    """Look whether the files of every sample are there and can be read, without running one.

    Raises
    ------
    CardError
        Naming the sample and what is wrong with it.
    """
    for sample in card.samples:
        job_of(card, sample)
        if sample.mask is not None:
            _mask_of_sample(card, sample, sample.mask)


def job_of(card: Card, sample: Sample) -> Job:
    """Return the job of a sample: every file of its folders, by SOP Instance UID.

    Raises
    ------
    CardError
        When a folder is not there, holds nothing that is DICOM, or leads out of the card's folder.
    """
    folders = {card.inputs[0].role: sample.images} if isinstance(sample.images, str) else sample.images
    return Job(
        card_path=card.path,
        input_set={role: _images(card, sample, folder) for role, folder in folders.items()},
    )


def values_of(findings: Findings) -> dict[str, float]:
    """Return what was said, by the name of the output: the highest probability, a value, or the size of a structure.

    That is its volume in mL, or in a radiograph its area in mm2 where that is known and else how many pixels it covers.
    """
    values: dict[str, float] = {}
    likely = [(one.name, one.probability) for one in findings.classifications]
    likely += [(one.name, one.probability) for one in findings.detections]
    for name, probability in likely:
        values[name] = max(values.get(name, 0.0), probability)
    values.update((one.name, one.value) for one in findings.measurements)
    if findings.segmentation is not None:
        for segment in findings.segmentation.segments:
            sizes = (segment.volume_ml, segment.area_mm2, segment.pixels)
            values.update((segment.name, float(size)) for size in [one for one in sizes if one is not None][:1])
    return values


def mask_of(findings: Findings) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]] | None:
    """Return the keys of the images and the labels (uint8, of shape (images, rows, columns)) of a segmentation."""
    if findings.segmentation is None:
        return None
    return findings.segmentation.images, findings.segmentation.labels


def write_mask(file: Any, images: tuple[str, ...], labels: npt.NDArray[np.uint8]) -> None:
    """Write a mask to an open file (``.npz``): its labels, and the key of the image of each plane."""
    import numpy as np

    np.savez_compressed(file, labels=labels, images=np.array(images, dtype=np.str_))


def read_mask(path: Path) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    """Undo :func:`write_mask`; nothing in the file is ever unpickled.

    Raises
    ------
    OSError, ValueError
        When there is no such file, or it is something else.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            images, labels = tuple(str(one) for one in stored["images"]), np.asarray(stored["labels"])
    except (KeyError, zipfile.BadZipFile, EOFError) as problem:
        raise ValueError(f"{path}: no mask") from problem
    if labels.dtype != np.uint8 or labels.ndim != 3 or len(labels) != len(images):
        raise ValueError(f"{path}: its labels do not fit its images")
    return images, labels


def _mismatches(card: Card, sample: Sample, findings: Findings) -> list[str]:
    reason = findings.not_analysed.reason if findings.not_analysed else None
    if reason != sample.not_analysed:
        said = f"not analysed ({reason}: {findings.not_analysed.text})" if findings.not_analysed else "analysed"
        return [f"{said}; expected: {f'not analysed ({sample.not_analysed})' if sample.not_analysed else 'analysed'}"]
    said_values, volumes = values_of(findings), card.task == "segmentation"
    found = []
    for name, expected in sample.expect.items():
        value = said_values.get(name)
        allowed = sample.tolerance * abs(expected) if volumes else sample.tolerance
        if value is None:
            found.append(f"{name}: nothing said; expected {expected:g}")
        elif not abs(value - expected) <= allowed:
            found.append(f"{name}: {value:.4g}; expected {expected:g} within {allowed:.3g}")
    if sample.mask is not None:
        found += _mask_mismatches(card, sample, findings)
    return found


def _mask_mismatches(card: Card, sample: Sample, findings: Findings) -> list[str]:
    import numpy as np

    assert sample.mask is not None
    made = mask_of(findings)
    if made is None:
        return ["no mask; expected one"]
    images, expected = _mask_of_sample(card, sample, sample.mask)
    if sorted(images) != sorted(made[0]) or expected.shape != made[1].shape:
        return ["the mask lies on other images than the one expected"]
    # An image that stands several times has its planes in the same order in both.
    places = [sorted(range(len(one)), key=one.__getitem__) for one in (images, made[0])]
    labels = np.empty_like(made[1])
    labels[places[0]] = made[1][places[1]]
    found = []
    for output in card.outputs:
        if output.label is None or not (np.any(expected == output.label) or np.any(labels == output.label)):
            continue
        dice = _dice(labels == output.label, expected == output.label)
        if dice < sample.dice:
            found.append(f"{output.name}: Dice {dice:.4f}; expected at least {sample.dice:g}")
    return found


def _mask_of_sample(card: Card, sample: Sample, name: str) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    try:
        return read_mask(_inside(card, sample, name))
    except (OSError, ValueError) as problem:
        raise CardError(f"{card.path}: samples.{sample.name}.mask: cannot be read ({type(problem).__name__})") from None


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def _images(card: Card, sample: Sample, folder: str) -> tuple[ImageFile, ...]:
    import pydicom
    from pydicom.errors import InvalidDicomError

    place = _inside(card, sample, folder)
    files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else []
    found = []
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        except InvalidDicomError:
            continue
        found.append(ImageFile(str(header.SOPInstanceUID), file))
    if not found:
        raise CardError(f"{card.path}: samples.{sample.name}.images: no DICOM file in {place}")
    return tuple(found)


def _inside(card: Card, sample: Sample, name: str) -> Path:
    place = (card.directory / name).resolve()
    if not place.is_relative_to(card.directory):
        raise CardError(f"{card.path}: samples.{sample.name}: {name!r} leads out of the card's folder")
    return place
