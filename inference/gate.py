"""The gate: what an input and an answer have to be for a finding to be made.

Before a model runs, each image is held against its role's ``match`` and ``limits``, header by header, then by its
geometry, then by its pixels. Each limit has a reason of its own (:data:`REASONS`), with a standard code where there is
one. What the header does not tell is decided by :data:`UNKNOWN`, or by the card's ``limits.unknown``: allowed with a
word in the documents, or refused. After the model has run, its answer is held against ``outputs[].limits``.

An input or an answer outside becomes "not analysed" (:class:`InputRefused`, :class:`NotAnalysed`). An answer that the
card cannot mean at all (not a number, a probability beyond 0 to 1, an unknown label) is the engine's fault and an
:class:`EngineFailure`: it is tried again, and parks the workitem where that does not help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.errors import EngineFailure, InputRefused
from inference.findings import Code, Coverage, Findings, NotAnalysed
from inference.imagefile import open_image, texts_of, value_of
from inference.matching import DERIVED_KEYWORDS, evaluate, keywords

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.card import Card, Output
    from inference.engine import ImageFile
    from inference.findings import Coverage, Segment
    from inference.inputs import InputRole, Limits
    from inference.radiograph import Radiograph

__all__ = [
    "REASONS",
    "UNKNOWN",
    "Admitted",
    "Held",
    "Seen",
    "after",
    "age_years",
    "header",
    "means",
    "pixels",
    "seen",
    "series",
    "volume",
]


def _dcm(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="DCM", meaning=meaning)


_OUT_OF_RANGE: Final = _dcm("114009", "Value out of range")  # CID 42
_NOT_SUPPORTED: Final = _dcm("110522", "Object Types not supported")  # CID 9300
_POSITIONING: Final = _dcm("111209", "Positioning")  # CID 7011
_PROCESSING: Final = _dcm("111219", "Inappropriate image processing")  # CID 7011

#: Every reason of the gate, with its code where a standard has one that says no more and no less.
REASONS: Final[Mapping[str, Code | None]] = {
    "modality": _NOT_SUPPORTED,
    "view": _POSITIONING,
    "body-part": None,
    "outside-intended-use": None,
    "photometric": _NOT_SUPPORTED,
    "matrix": _OUT_OF_RANGE,
    "pixel-spacing": _OUT_OF_RANGE,
    "slice-spacing": _OUT_OF_RANGE,
    "orientation": _POSITIONING,
    "coverage": _dcm("130576", "Anatomy coverage incomplete"),  # CID 6315
    "laterality": None,
    "contrast": _dcm("130580", "Inadequate contrast enhancement"),  # CID 6315
    "age": _OUT_OF_RANGE,
    "not-a-picture": _dcm("111213", "No image"),  # CID 7011
    "negative-image": _PROCESSING,
    "turned-image": _POSITIONING,
    "not-a-frontal-chest": None,
    "empty-mask": None,
    "volume-out-of-range": _OUT_OF_RANGE,
    "area-out-of-range": _OUT_OF_RANGE,
    "value-out-of-range": _OUT_OF_RANGE,
}

#: What becomes of an input that does not tell: what a model's arithmetic rests on must be known; what a header often
#: leaves out (or de-identification takes out) is allowed, and the documents say that it was not known.
UNKNOWN: Final[Mapping[str, str]] = {
    "age_years": "allow",
    "laterality": "allow",
    "contrast": "allow",
    "pixel_spacing_mm": "refuse",
    "coverage_mm": "refuse",
    "orientation": "refuse",
    "photometric": "refuse",
}

_OF_THE_NODE = DERIVED_KEYWORDS | {"ModalitiesInStudy"}
_VIEW_KEYWORDS = {"ViewPosition", "ViewCodeSequence", "PatientOrientation"}
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_NO_AGENT = {"NONE", "NO", "N", "NO CONTRAST", "WITHOUT"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the headers of an input tell; None, or an empty text, where they do not.

    ``spacing_mm`` is the distance of pixels, rows and columns, at the detector for a radiograph that knows no better;
    ``orientation`` the plane of the images; ``contrast`` "with", "without" or empty.
    """

    rows: int | None
    columns: int | None
    spacing_mm: tuple[float, float] | None
    photometric: str
    orientation: str
    laterality: str
    contrast: str
    age_years: float | None


def seen(dataset: Dataset) -> Seen:
    """Read what the limits ask for from one image's header, single- or multi-frame."""
    return Seen(
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        spacing_mm=_spacing(dataset),
        photometric=next(iter(texts_of(dataset, "PhotometricInterpretation")), ""),
        orientation=_orientation(dataset),
        laterality=_laterality(dataset),
        contrast=_contrast(dataset),
        age_years=age_years(dataset),
    )


def means(role: InputRole, dataset: Dataset) -> None:
    """Hold one image against the role's ``match``.

    Raises
    ------
    InputRefused
        ``modality``, ``view``, ``body-part`` or ``outside-intended-use``.
    """
    # What only the node knows of a series it has asked when it chose it; no image tells it.
    match = {key: wanted for key, wanted in role.match.items() if not keywords({key: wanted}) & _OF_THE_NODE}
    attributes = {key: value_of(dataset, key) for key in keywords(match)}
    if evaluate(match, attributes).matched:
        return
    failed = {key: wanted for key, wanted in match.items() if not evaluate({key: wanted}, attributes).matched}
    of = keywords(failed)
    if of & {"Modality", "SOPClassUID"}:
        _refuse(
            "modality", f"the image's modality or kind ({_short(dataset, 'Modality')}) is none that this model reads"
        )
    if of & _VIEW_KEYWORDS:
        _refuse("view", f"the view ({_short(dataset, 'ViewPosition')}) is none that this model reads")
    if "BodyPartExamined" in of:
        _refuse("body-part", "the body part examined is none that this model reads")
    _refuse("outside-intended-use", f"the image is not what the model's card means, by {', '.join(sorted(of))}")


def header(role: InputRole, dataset: Dataset) -> tuple[str, ...]:
    """Hold one image's header against the role's limits.

    Returns
    -------
    tuple of str
        What was not known and allowed, in words for people.

    Raises
    ------
    InputRefused
        ``photometric``, ``matrix``, ``pixel-spacing``, ``orientation``, ``laterality``, ``contrast`` or ``age``.
    """
    limits = role.limits
    found = seen(dataset)
    told = _Told(limits)
    told.one_of("photometric", "photometric", found.photometric, limits.photometric, "the photometric interpretation")
    if limits.matrix:
        low, high = limits.matrix
        if not all(low <= (edge or 0) <= high for edge in (found.rows, found.columns)):
            _refuse("matrix", f"{found.rows} x {found.columns} pixels; this model reads {low:g} to {high:g} an edge")
    if limits.pixel_spacing_mm and told.known(
        "pixel_spacing_mm", "pixel-spacing", found.spacing_mm, "the pixel spacing"
    ):
        assert found.spacing_mm is not None
        for one in found.spacing_mm:
            _within("pixel-spacing", one, limits.pixel_spacing_mm, "the pixels lie", "mm apart")
    told.one_of("orientation", "orientation", found.orientation, limits.orientation, "the plane of the images")
    told.one_of("laterality", "laterality", found.laterality, limits.laterality, "the laterality")
    wanted = (limits.contrast,) if limits.contrast else ()
    told.one_of("contrast", "contrast", found.contrast, wanted, "whether contrast was given")
    if limits.age_years and told.known("age_years", "age", found.age_years, "the patient's age"):
        assert found.age_years is not None
        low, high = limits.age_years
        # A person is 5 years old until the sixth birthday: the upper bound is a year that has begun.
        if not low <= found.age_years < high + 1:
            _refuse("age", f"the patient's age is outside the {low:g} to {high:g} years that this model is meant for")
    return tuple(told.words)


class Held:
    """Holds each image of a volume against its role, as the volume is read; ``words`` is what was not known."""

    def __init__(self, role: InputRole) -> None:
        self._role = role
        self._words: dict[str, None] = {}

    @property
    def words(self) -> tuple[str, ...]:
        """What was not known and allowed, each once."""
        return tuple(self._words)

    def image(self, dataset: Dataset) -> None:
        """Hold one image; localizers that a volume leaves out are not asked.

        Raises
        ------
        InputRefused
            As :func:`means` and :func:`header` do.
        """
        means(self._role, dataset)
        self._words |= dict.fromkeys(header(self._role, dataset))


def volume(role: InputRole, coverage: Coverage) -> None:
    """Hold a volume's extent and the distance of its slices against the role.

    Raises
    ------
    InputRefused
        ``slice-spacing`` or ``coverage``.
    """
    if role.slice_spacing_mm:
        _within("slice-spacing", coverage.spacing_mm, role.slice_spacing_mm, "the slices lie", "mm apart")
    if role.limits.coverage_mm:
        _within("coverage", coverage.extent_mm, role.limits.coverage_mm, "the series covers", "mm")


def pixels(role: InputRole, shown: npt.NDArray[Any]) -> None:
    """Ask a radiograph's pixels what they show, where the card wants that.

    Parameters
    ----------
    shown
        (rows, columns), dense bright, head up (:func:`inference.radiograph.radiograph_pixels`).

    Raises
    ------
    InputRefused
        ``matrix``, ``not-a-picture``, ``negative-image``, ``turned-image`` or ``not-a-frontal-chest``.
    """
    if role.limits.plausible is None:
        return
    from inference.plausible import chest_radiograph

    verdict = chest_radiograph(shown)
    if not verdict.plausible:
        _refuse(verdict.reason, verdict.text)


class Admitted:
    """The radiographs of one role that pass, each for itself; what is left out is remembered.

    Iterate to the end, then ask for :meth:`warnings`: iterating raises where too few have passed.
    """

    def __init__(self, role: InputRole, files: Sequence[ImageFile]) -> None:
        self._role = role
        self._files = files
        self._refusals: list[InputRefused] = []
        self._unknown: dict[str, None] = {}

    def __iter__(self) -> Iterator[tuple[ImageFile, Radiograph, Dataset]]:
        """Yield each image that passes, with its pixels and its header.

        Raises
        ------
        InputRefused
            Where too few pass: with their reason, or ``outside-intended-use`` where they have several; or where an
            image cannot be read at all.
        """
        from inference.radiograph import radiograph_of

        passed = 0
        for file in self._files:
            dataset = open_image(file)
            try:
                means(self._role, dataset)
                unknown = header(self._role, dataset)
                radiograph = radiograph_of(dataset)
                pixels(self._role, radiograph.pixels)
            except InputRefused as refusal:
                if refusal.reason not in REASONS:
                    raise
                self._refusals.append(refusal)
                continue
            self._unknown |= dict.fromkeys(unknown)
            passed += 1
            yield file, radiograph, dataset
        if passed < self._role.minimum_instances:
            raise self._too_few(passed)

    def warnings(self) -> tuple[str, ...]:
        """Say what was not known, and which images were left out while others were analysed."""
        said = [f"{refusal.text} ({refusal.reason})" for refusal in self._refusals]
        of = len(self._files)
        left_out = (f"Not analysed, {said.count(one)} of {of} images: {one}." for one in dict.fromkeys(said))
        return (*self._unknown, *left_out)

    def _too_few(self, passed: int) -> InputRefused:
        needed, given = self._role.minimum_instances, len(self._files)
        if passed == 0 and len({refusal.reason for refusal in self._refusals}) == 1:
            return self._refusals[0]
        told = "; ".join(dict.fromkeys(refusal.text for refusal in self._refusals))
        said = f"{passed} of {given} images are what the model's card means; it needs {needed}"
        reason = "outside-intended-use"
        return InputRefused(reason, f"{said} ({told})" if told else said, REASONS[reason])


def series(role: InputRole, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Hold all images of a role, for an engine that reads files by itself; the first that is outside refuses them all.

    Returns
    -------
    tuple of str
        What was not known and allowed.

    Raises
    ------
    InputRefused
        As :func:`means`, :func:`header`, :func:`volume` and :func:`pixels` do, and with the reasons of
        :func:`inference.volume.stacked`.
    """
    held = Held(role)
    if role.kind == "volume":
        from inference.volume import coverage_of, stacked

        planes, _, lie = stacked(files, minimum=role.minimum_instances, hold=held.image)
        volume(role, coverage_of(planes, lie))
        return held.words
    from inference.radiograph import radiograph_pixels

    for file in files:
        dataset = open_image(file)
        held.image(dataset)
        if role.limits.plausible:
            pixels(role, radiograph_pixels(dataset))
    return held.words


def after(card: Card, findings: Findings) -> Findings:
    """Hold an answer against what the card says that it can be; one outside is "not analysed", with its reason.

    A mask without a voxel is an answer only where a card says so, by limits from 0 mL on: everywhere else a model that
    marks nothing has more likely failed than found that there is no lung.

    Raises
    ------
    EngineFailure
        ``broke``: a value that is no number, a probability beyond 0 to 1, a label or a name that the card has not.
    """
    if findings.not_analysed is not None:
        return findings
    _require_sound(card, findings)
    outputs = {output.name: output for output in card.outputs}
    segments = findings.segmentation.segments if findings.segmentation else ()
    for segment in segments:
        bounds = outputs[segment.name].limits.volume_ml
        if bounds and segment.volume_ml is not None and not bounds[0] <= segment.volume_ml <= bounds[1]:
            return _without(
                findings,
                "volume-out-of-range",
                f"{segment.name}: {segment.volume_ml:.1f} mL; the model's card takes {bounds[0]:g} to {bounds[1]:g} mL",
            )
        bounds, share = outputs[segment.name].limits.area_share, _share(findings, segment)
        if bounds and not bounds[0] <= share <= bounds[1]:
            return _without(
                findings,
                "area-out-of-range",
                f"{segment.name}: {share:.4f} of the image; the model's card takes {bounds[0]:g} to {bounds[1]:g}",
            )
    if segments and not any((segment.volume_ml or segment.pixels or 0) > 0 for segment in segments):
        allowed = [_limits_of(outputs[segment.name]) for segment in segments]
        if not all(bounds and bounds[0] <= 0 for bounds in allowed):
            return _without(
                findings, "empty-mask", "the model marked nothing, which its card does not know as an answer"
            )
    for one in findings.measurements:
        bounds = outputs[one.name].limits.value
        if bounds and not bounds[0] <= one.value <= bounds[1]:
            return _without(
                findings,
                "value-out-of-range",
                f"{one.name}: {one.value:.4g}; the model's card takes {bounds[0]:g} to {bounds[1]:g}",
            )
    return findings


def _share(findings: Findings, segment: Segment) -> float:
    """Return what part of a radiograph a segment covers."""
    assert findings.segmentation is not None
    return (segment.pixels or 0) / max(math.prod(findings.segmentation.labels.shape[1:]), 1)


def _limits_of(output: Output) -> tuple[float, float] | None:
    return output.limits.area_share if output.limits.volume_ml is None else output.limits.volume_ml


def age_years(dataset: Dataset) -> float | None:
    """Return the patient's age at the study, in years, or None where it is not known.

    Patient's Age (0010,1010) with its unit (PS3.5 Table 6.2-1, AS) comes first, then Birth Date and Study Date.
    """
    told = re.fullmatch(r"(\d{1,3})([DWMY])", next(iter(texts_of(dataset, "PatientAge")), ""))
    if told:
        return float(told[1]) * _DAYS[told[2]] / _DAYS["Y"]
    born, examined = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born is None or examined is None or examined < born:
        return None
    years = (examined - born).astype(int) / _DAYS["Y"]
    return float(years) if years < 150 else None


class _Told:
    """Collects what was not known, or refuses it, as the card and the defaults say."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.words: list[str] = []

    def known(self, limit: str, reason: str, value: object, what: str) -> bool:
        if value not in (None, ""):
            return True
        if self._limits.unknown.get(limit, UNKNOWN[limit]) == "refuse":
            _refuse(reason, f"{what} is not known, and this model must not run without it")
        self.words.append(f"Not checked, since the images do not tell: {what}.")
        return False

    def one_of(self, limit: str, reason: str, value: str, wanted: Sequence[str], what: str) -> None:
        if wanted and self.known(limit, reason, value, what) and value not in wanted:
            _refuse(reason, f"{what} is {value[:16]}; this model is meant for {', '.join(wanted)}")


def _refuse(reason: str, text: str) -> None:
    raise InputRefused(reason, text, REASONS[reason])


def _within(reason: str, value: float, bounds: tuple[float, float], what: str, unit: str) -> None:
    low, high = bounds
    if not low <= value <= high:
        _refuse(reason, f"{what} {value:.4g} {unit}; this model reads {low:g} to {high:g}")


def _without(findings: Findings, reason: str, text: str) -> Findings:
    return replace(
        findings,
        classifications=(),
        measurements=(),
        detections=(),
        segmentation=None,
        heat_maps=(),
        not_analysed=NotAnalysed(reason=reason, text=text, code=REASONS[reason]),
    )


def _require_sound(card: Card, findings: Findings) -> None:
    names = {output.name for output in card.outputs}
    segments = findings.segmentation.segments if findings.segmentation else ()
    said = {one.name for one in findings.classifications} | {one.name for one in findings.measurements}
    said |= {one.name for one in findings.detections} | {one.name for one in segments}
    strange = sorted(said - names)
    if strange:
        raise EngineFailure("broke", f"the model answered {strange[0][:64]!r}, which its card does not name")
    probabilities = [c.probability for c in findings.classifications] + [d.probability for d in findings.detections]
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise EngineFailure("broke", "the model answered probabilities that are not numbers from 0 to 1")
    values = [*(m.value for m in findings.measurements), *(v for s in segments for v in (s.volume_ml, s.area_mm2))]
    if not all(math.isfinite(value) for value in values if value is not None):
        raise EngineFailure("broke", "the model answered values that are not numbers")
    if findings.segmentation is not None and findings.segmentation.labels.size:
        known = np.zeros(256, bool)
        known[[0, *(segment.label for segment in segments)]] = True
        labels = findings.segmentation.labels
        if not known[: int(labels.max()) + 1].all() and not known[np.unique(labels)].all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")


def _nested(dataset: Dataset, sequence: str, keyword: str) -> Any:
    """Return an attribute's value: the image's own, or that of its (first) frame's functional groups."""
    own = value_of(dataset, keyword)
    if own is not None:
        return own
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in list(value_of(dataset, groups) or ())[:1]:
            for inner in list(value_of(item, sequence) or ())[:1]:
                found = value_of(inner, keyword)
                if found is not None:
                    return found
    return None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(one) for one in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(one) for one in numbers) else None


def _whole(dataset: Dataset, keyword: str) -> int | None:
    numbers = _numbers([value_of(dataset, keyword)], 1)
    return int(numbers[0]) if numbers else None


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    spacing = _numbers(_nested(dataset, "PixelMeasuresSequence", "PixelSpacing"), 2)
    spacing = spacing or _numbers(value_of(dataset, "ImagerPixelSpacing"), 2)
    return (spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None


def _orientation(dataset: Dataset) -> str:
    cosines = _numbers(_nested(dataset, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if cosines is None:
        return ""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    # Within about 45 degrees of an axis; an oblique plane in between is none of the three.
    axis = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[axis] if normal[axis] > 0.71 * np.linalg.norm(normal) > 0 else "oblique"


def _laterality(dataset: Dataset) -> str:
    for value in (
        _nested(dataset, "FrameAnatomySequence", "FrameLaterality"),
        value_of(dataset, "ImageLaterality"),
        value_of(dataset, "Laterality"),
    ):
        text = str(value or "").strip().upper()
        if text in ("L", "R", "B", "U"):
            return text
    return ""


def _contrast(dataset: Dataset) -> str:
    """Contrast/Bolus is there where contrast was used (PS3.3 C.7.6.4); there and empty, it says nothing."""
    if value_of(dataset, "ContrastBolusAgentSequence"):
        return "with"
    agent = " ".join(texts_of(dataset, "ContrastBolusAgent"))
    if agent:
        return "without" if agent in _NO_AGENT else "with"
    return "" if "ContrastBolusAgent" in dataset else "without"


def _date(dataset: Dataset, keyword: str) -> np.datetime64 | None:
    text = next(iter(texts_of(dataset, keyword)), "")
    if not re.fullmatch(r"\d{8}", text):
        return None
    try:
        return np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}")
    except ValueError:
        return None


def _short(dataset: Dataset, keyword: str) -> str:
    return "\\".join(texts_of(dataset, keyword))[:16] or "not given"
