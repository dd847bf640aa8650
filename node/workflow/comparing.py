"""Compares two versions over every input set that both have read: what they say alike, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from inference.marking import dice, planes_of
from node.errors import ModelRefused
from node.workflow import shadows
from storage import lifecycle, schema, worklist
from storage.blobs import Blobs
from storage.database import Database
from storage.records import ModelVersion, Workitem

if TYPE_CHECKING:
    from inference.marking import Planes

__all__ = ["Comparison", "Compared", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One output over all input sets on which both versions have said something of it.

    ``kind`` says what the values are: ``probability`` (agreement is that of "present" at each version's own threshold;
    ``both``, ``only_a``, ``only_b`` and ``neither`` count it), ``value``, ``volume`` in mL, or of a structure
    in a radiograph ``area`` in mm2 or ``pixels``. Differences are B - A;
    ``dice`` is over the masks that are kept.
    """

    output: str
    kind: str
    count: int
    agreement: float | None = None
    both: int = 0
    only_a: int = 0
    only_b: int = 0
    neither: int = 0
    mean_difference: float = 0.0
    mean_absolute_difference: float = 0.0
    largest_difference: float = 0.0
    mean_dice: float | None = None
    least_dice: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions over the input sets that both have read."""

    a: str
    b: str
    studies: int
    input_sets: int
    both_analysed: int
    only_a_analysed: int
    only_b_analysed: int
    mean_seconds_a: float | None
    mean_seconds_b: float | None
    outputs: list[Compared]


def compare(
    database: Database,
    blobs: Blobs,
    shadow_folder: Path,
    a: ModelVersion,
    b: ModelVersion,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare what two versions have said, as shadows or live, of the same input sets.

    Parameters
    ----------
    shadow_folder
        Where masks of shadows are kept.

    Raises
    ------
    ModelRefused
        When they are no two versions of one model: what one says has no counterpart in the other.
    """
    if a.model != b.model or a.version == b.version:
        raise ModelRefused(f"{a.name} and {b.name} are not two versions of one model: nothing is to compare")
    with database.read() as connection:
        pairs = _pairs(connection, a, b)
    said: dict[tuple[str, str], list[_Pair]] = {}
    analysed = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for number, (one, other) in enumerate(pairs, start=1):
        was = (not _findings(one).get("not_analysed"), not _findings(other).get("not_analysed"))
        analysed[was] += 1
        if all(was):
            masks = _Masks(database, blobs, shadow_folder, one), _Masks(database, blobs, shadow_folder, other)
            for key, pair in _paired(one, other, masks).items():
                said.setdefault(key, []).append(pair)
        if progress:
            progress(number, len(pairs))
    return Comparison(
        a=a.name,
        b=b.name,
        studies=len({one.study_id for one, _ in pairs}),
        input_sets=len(pairs),
        both_analysed=analysed[True, True],
        only_a_analysed=analysed[True, False],
        only_b_analysed=analysed[False, True],
        mean_seconds_a=_mean([float(_findings(one).get("seconds", 0)) for one, _ in pairs]),
        mean_seconds_b=_mean([float(_findings(other).get("seconds", 0)) for _, other in pairs]),
        outputs=[_compared(name, kind, found) for (kind, name), found in sorted(said.items())],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    a: float
    b: float
    present: tuple[bool, bool] | None = None
    dice: float | None = None


class _Masks:
    """What one workitem has marked, read when it is asked for."""

    def __init__(self, database: Database, blobs: Blobs, folder: Path, workitem: Workitem) -> None:
        self._database, self._blobs, self._folder, self._workitem = database, blobs, folder, workitem
        self._read: dict[str, Planes] | None = None

    def of(self, name: str) -> Planes | None:
        """Return an output's planes; None where no mask is kept."""
        if self._read is None:
            self._read = self._all()
        return self._read.get(name)

    def _all(self) -> dict[str, Planes]:
        kept = shadows.kept(self._folder, self._workitem.uid)
        if kept is not None:
            return {
                str(one["name"]): planes_of(kept, one["label"]) for one in _findings(self._workitem).get("segments", [])
            }
        with self._database.read() as connection:
            documents = worklist.documents(connection, self._workitem.id)
        segmentations = [one for one in documents if one.kind == "SEG"]
        return _read_seg(self._blobs.path(segmentations[0].blob)) if segmentations else {}


def _pairs(connection: Connection, a: ModelVersion, b: ModelVersion) -> list[tuple[Workitem, Workitem]]:
    """Return the last result of each version on every input set of which both have one."""
    first, second = _results(connection, a), _results(connection, b)
    return [(first[key], second[key]) for key in first if key in second]


def _results(connection: Connection, version: ModelVersion) -> dict[tuple[int, str], Workitem]:
    w = schema.workitem.c
    rows = connection.execute(
        select(schema.workitem)
        .where(w.model == version.model, w.model_version == version.version, w.state == lifecycle.COMPLETED)
        .order_by(w.id)
    ).mappings()
    return {(row["study_id"], row["input_digest"]): Workitem(**row) for row in rows}


def _findings(workitem: Workitem) -> Mapping[str, Any]:
    return workitem.findings or {}


def _paired(one: Workitem, other: Workitem, masks: tuple[_Masks, _Masks]) -> dict[tuple[str, str], _Pair]:
    """Return what both have said, by kind and output; of several images the highest probability counts."""
    found: dict[tuple[str, str], _Pair] = {}
    for plural, value in (("classifications", "probability"), ("detections", "probability"), ("measurements", "value")):
        first, second = (_highest(_findings(each).get(plural, []), value) for each in (one, other))
        for name in first.keys() & second.keys():
            present = None
            if value == "probability":
                present = tuple(
                    said[name]["probability"] >= said[name].get("threshold", 0.5) for said in (first, second)
                )
            found[value, name] = _Pair(
                a=float(first[name][value]), b=float(second[name][value]), present=present and (present[0], present[1])
            )
    first, second = ({each["name"]: each for each in _findings(one_of).get("segments", [])} for one_of in (one, other))
    for name in first.keys() | second.keys():
        kind, size = _sized(first.get(name) or second[name])
        sizes = [float(said[name][size] or 0.0) if name in said else 0.0 for said in (first, second)]
        dice = _dice(masks[0].of(name), masks[1].of(name)) if name in first and name in second else None
        found[kind, name] = _Pair(a=sizes[0], b=sizes[1], dice=dice)
    return found


def _sized(segment: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a structure is compared by: its volume, its area, or what it covers in pixels."""
    if segment.get("pixels") is None:
        return "volume", "volume_ml"
    return ("pixels", "pixels") if segment["area_mm2"] is None else ("area", "area_mm2")


def _highest(said: Sequence[Mapping[str, Any]], value: str) -> dict[str, Mapping[str, Any]]:
    best: dict[str, Mapping[str, Any]] = {}
    for one in said:
        if one["name"] not in best or one[value] > best[one["name"]][value]:
            best[one["name"]] = one
    return best


def _compared(name: str, kind: str, pairs: Sequence[_Pair]) -> Compared:
    differences = [one.b - one.a for one in pairs]
    present = [one.present for one in pairs if one.present is not None]
    dice = [one.dice for one in pairs if one.dice is not None]
    return Compared(
        output=name,
        kind=kind,
        count=len(pairs),
        agreement=sum(a == b for a, b in present) / len(present) if present else None,
        both=sum(a and b for a, b in present),
        only_a=sum(a and not b for a, b in present),
        only_b=sum(b and not a for a, b in present),
        neither=sum(not a and not b for a, b in present),
        mean_difference=sum(differences) / len(differences),
        mean_absolute_difference=sum(map(abs, differences)) / len(differences),
        largest_difference=max(differences, key=abs),
        mean_dice=_mean(dice),
        least_dice=min(dice) if dice else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _dice(a: Planes | None, b: Planes | None) -> float | None:
    """Return the Dice coefficient over all planes; None where a mask is not kept, or is of other pixels."""
    if a is None or b is None or any(place in b and b[place].shape != plane.shape for place, plane in a.items()):
        return None
    return dice(a, b)


def _read_seg(path: Path) -> dict[str, Planes]:
    """Return the planes of a binary SEG by the label of their segment and the image, and frame, that each lies on."""
    import numpy as np
    import pydicom

    dataset = pydicom.dcmread(path)
    labels = {int(one.SegmentNumber): str(one.SegmentLabel) for one in dataset.SegmentSequence}
    frames = np.atleast_3d(dataset.pixel_array).astype(bool)
    if int(dataset.get("NumberOfFrames", 1)) == 1:
        frames = np.asarray(dataset.pixel_array, dtype=bool).reshape(1, dataset.Rows, dataset.Columns)
    found: dict[str, Planes] = {label: {} for label in labels.values()}
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        label = labels[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(source.get("ReferencedFrameNumber") or 0)
        found[label][str(source.ReferencedSOPInstanceUID), number] = frame
    return found
