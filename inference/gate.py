"""The gate before a model: one image's header, a volume's geometry and a radiograph's pixels, held against a role.

Each image is held against its role's ``match`` and ``limits``, header by header, then by its geometry, then by its
pixels. Each limit has a reason of its own (:data:`inference.reasons.REASONS`). What the header does not tell is decided
by :data:`UNKNOWN`, or by the card's ``limits.unknown``: allowed with a word in the documents, or refused. An input
outside becomes "not analysed" (:class:`InputRefused`). :mod:`inference.admission` asks these of a whole series,
:mod:`inference.answers` asks of what the model said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from inference.errors import InputRefused
from inference.headers import seen
from inference.imagefile import texts_of, value_of
from inference.matching import DERIVED_KEYWORDS, evaluate, keywords
from inference.reasons import REASONS

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.findings import Coverage
    from inference.inputs import InputRole, Limits

__all__ = ["UNKNOWN", "header", "means", "pixels", "volume"]

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


def _short(dataset: Dataset, keyword: str) -> str:
    return "\\".join(texts_of(dataset, keyword))[:16] or "not given"
