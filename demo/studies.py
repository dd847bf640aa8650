"""What the demonstration sends and what it may expect: phantoms with their truth, or a folder of DICOM files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from phantoms.dicom import Patient, PhantomStudy, write_chest_ct, write_head_ct, write_radiograph

__all__ = ["Study", "find_studies", "make_phantoms"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study to send.

    ``model`` names the model that has to answer, None where that is not known beforehand; ``documents`` the modalities
    of the evidence documents that have to be in the PACS; ``refused`` that the model has to decline.
    """

    uid: str
    title: str
    folder: Path
    images: int
    model: str | None = None
    documents: tuple[str, ...] = ()
    refused: bool = False
    volumes_ml: dict[str, float] = field(default_factory=dict)
    findings: dict[str, bool] = field(default_factory=dict)


_CHEST = Patient(name="Phantom^Thora", number="PHANTOM-1", sex="F", birth_date="19610412")
_JAPANESE = Patient(name="Yamada^Tarou=山田^太郎=やまだ^たろう", number="PHANTOM-2", sex="M", birth_date="19540802")
_GREEK = Patient(name="Φάντασμα^Ιωάννα", number="PHANTOM-3", sex="F", birth_date="19830227")
_KOREAN = Patient(name="Hong^Gildong=洪^吉洞=홍^길동", number="PHANTOM-5", sex="M", birth_date="19900515")
_CYRILLIC = Patient(name="Фантомов^Андрей", number="PHANTOM-4", sex="M", birth_date="19701130")


def make_phantoms(folder: Path, on_done: Callable[[], None], *, quick: bool = False) -> list[Study]:
    """Write the phantom studies, two at a time; ``on_done`` is called after each of the five.

    ``quick`` draws the chest CT on a quarter of the pixels.
    """
    size = 128 if quick else 256
    jobs = (
        (write_chest_ct, folder / "chest-ct", 3, {"patient": _CHEST, "size": size}),
        (write_radiograph, folder / "radiograph-1", 4, {"findings": ("pneumothorax",), "patient": _JAPANESE}),
        (
            write_radiograph,
            folder / "radiograph-2",
            3,
            {"findings": ("enlarged heart shadow",), "modality": "CR", "patient": _GREEK},
        ),
        (write_radiograph, folder / "radiograph-3", 2, {"patient": _KOREAN}),
        (write_head_ct, folder / "head-ct", 1, {"patient": _CYRILLIC}),
    )
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(function, target, seed, **options): target  # type: ignore[arg-type]
            for function, target, seed, options in jobs
        }
        made: dict[Path, PhantomStudy] = {}
        for future in as_completed(futures):
            made[futures[future]] = future.result()
            on_done()
    return [_expected(made[target], target) for _, target, _, _ in jobs]


def _expected(phantom: PhantomStudy, folder: Path) -> Study:
    lungs = phantom.kind in {"chest CT", "head CT"}
    return Study(
        uid=phantom.study_instance_uid,
        title=f"{phantom.kind}: {phantom.description}",
        folder=folder,
        images=len(phantom.files),
        model="lung-ct" if lungs else "chest-radiograph-demo",
        documents=("SR", "SEG") if phantom.kind == "chest CT" else ("SR",),
        refused=phantom.kind == "head CT",
        volumes_ml=dict(phantom.volumes_ml),
        findings=dict(phantom.findings),
    )


def find_studies(folder: Path) -> list[Study]:
    """Return the studies among the files of a folder, nothing being known of what they show."""
    images: dict[str, set[str]] = defaultdict(set)
    titles: dict[str, str] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        try:
            found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except (InvalidDicomError, OSError, ValueError, RecursionError, NotImplementedError, AttributeError):
            continue  # it is no DICOM file, or one that only the node's own checks should judge
        uid, instance = str(found.get("StudyInstanceUID", "")), str(found.get("SOPInstanceUID", ""))
        if uid and instance:
            images[uid].add(instance)
            titles.setdefault(uid, f"{found.get('Modality', '?')}: {found.get('StudyDescription') or 'no description'}")
    return [
        Study(uid=uid, title=titles[uid], folder=folder, images=len(instances)) for uid, instances in images.items()
    ]


_TAGS = ["StudyInstanceUID", "SOPInstanceUID", "Modality", "StudyDescription", "SpecificCharacterSet"]
