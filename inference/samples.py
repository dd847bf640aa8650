"""Runs a card's own sample cases in the engine's real process and compares what it says with what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine import ImageFile, Job
from inference.errors import CardError, EngineFailure
from inference.findings import Segmentation
from inference.host import EngineHost
from inference.marking import checked_together, dice, places_of, planes_of

if TYPE_CHECKING:
    from inference.card import Card, Sample
    from inference.findings import Findings

__all__ = ["SampleResult", "check_samples", "read_mask", "run_samples", "values_of", "write_mask"]


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


def write_mask(file: Any, mask: Segmentation) -> None:
    """Write a mask to an open file (``.npz``): all of a segmentation but what its segments are.

    ``labels``, and for each plane of them ``images`` and, where they are of multi-frame images, ``frames``. Where
    structures of a volume overlap, ``together`` has a row (value, label) for each label that a value stands for.
    """
    import numpy as np

    arrays: dict[str, Any] = {"labels": mask.labels, "images": np.array(mask.images, dtype=np.str_)}
    if any(mask.frames):
        arrays["frames"] = np.array(mask.frames, np.int64)
    pairs = [(value, label) for value, those in mask.together.items() for label in those]
    if pairs:
        arrays["together"] = np.array(pairs, np.uint8)
    np.savez_compressed(file, **arrays)


def read_mask(path: Path) -> Segmentation:
    """Undo :func:`write_mask`; nothing in the file is ever unpickled, and the segments have to come from elsewhere.

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
            frames = tuple(int(one) for one in stored["frames"]) if "frames" in stored else ()
            pairs = [(int(value), int(label)) for value, label in stored["together"]] if "together" in stored else []
    except (KeyError, TypeError, zipfile.BadZipFile, EOFError) as problem:
        raise ValueError(f"{path}: no mask") from problem
    if labels.dtype != np.uint8 or labels.ndim != 3 or not len(labels) == len(images) == len(frames or images):
        raise ValueError(f"{path}: its labels do not fit its images")
    together: dict[int, tuple[int, ...]] = {}
    for value, label in pairs:
        together[value] = (*together.get(value, ()), label)
    return Segmentation(
        segments=(), images=images, labels=labels, frames=frames, together=checked_together(together, None)
    )


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
    assert sample.mask is not None
    made, expected = findings.segmentation, _mask_of_sample(card, sample, sample.mask)
    if made is None:
        return ["no mask; expected one"]
    if any(made.frames) and not expected.frames:
        # It was written before a mask said which frame each plane lies on: then they are in the order of the images.
        expected = replace(expected, frames=made.frames) if expected.images == made.images else expected
    if sorted(places_of(expected)) != sorted(places_of(made)) or expected.labels.shape != made.labels.shape:
        return ["the mask lies on other images than the one expected"]
    found = []
    for output in card.outputs:
        if output.label is None:
            continue
        alike = dice(planes_of(made, output.label), planes_of(expected, output.label))
        if alike is not None and alike < sample.dice:
            found.append(f"{output.name}: Dice {alike:.4f}; expected at least {sample.dice:g}")
    return found


def _mask_of_sample(card: Card, sample: Sample, name: str) -> Segmentation:
    try:
        return read_mask(_inside(card, sample, name))
    except (OSError, ValueError) as problem:
        raise CardError(f"{card.path}: samples.{sample.name}.mask: cannot be read ({type(problem).__name__})") from None


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
