"""Runs a program as a model: a folder of images in, a SEG, an SR, NIfTI or JSON out, and nothing else of it stays.

The program gets copies without their patient (:mod:`inference.deidentify`) or NIfTI volumes, runs within limits and,
where the system allows it, in namespaces of its own (:mod:`inference.programs`). It gets no shell, none of the node's
variables, and no network unless its card says so. Its folder is removed whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.deidentify import Pseudonyms, write_copy
from inference.engines.command_outputs import Images, labels_of_nifti, read_json, results
from inference.errors import CardError, EngineFailure, InputRefused
from inference.findings import Findings, NotAnalysed, Segment, Segmentation
from inference.imagefile import count_of
from inference.marking import Marking
from inference.outgoing import keeps_text, require_no_text
from inference.programs import Limits, run_program
from inference.sizing import threads_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import ImageFile, Job
    from inference.engines.command_dicom import Plane
    from inference.volume import Volume

__all__ = ["CommandEngine", "open_engine"]

_PATTERNS = {"seg": "*", "sr": "*", "nifti": "*.nii*", "json": "*.json"}


def open_engine(card: Card) -> CommandEngine:
    """Check what of a card can be checked before there is an image.

    Raises
    ------
    CardError
        If the card asks for what a program cannot answer, or the program is not there.
    """
    command = card.command
    assert command is not None
    masks = command.output in ("seg", "nifti")
    if masks != (card.task == "segmentation"):
        raise CardError(f"{card.path}: command.output: {command.output} is no answer of a {card.task}")
    if command.output == "sr" and card.task == "detection":
        raise CardError(f"{card.path}: command.output: detections are read from json only")
    volumes = card.inputs[0].kind == "volume"
    if (masks or command.input == "nifti") and not volumes:
        raise CardError(f"{card.path}: inputs: masks and NIfTI need roles of kind volume")
    program = _filled(command.argv[0], card, Path())
    if shutil.which(_place(program, card)) is None:
        raise CardError(f"{card.path}: command.argv: {program!r} is no program here")
    return CommandEngine(card)


class CommandEngine:
    """An engine (:class:`inference.engine.Engine`) that runs a program for each job."""

    def __init__(self, card: Card) -> None:
        assert card.command is not None
        self._card, self._command = card, card.command

    def run(self, job: Job) -> Findings:
        """Run one job; input that must not be read becomes "not analysed", with its reason.

        Raises
        ------
        EngineFailure
            If the program failed, overran a limit, or answered what cannot be believed.
        """
        try:
            findings = self._run(job)
        except InputRefused as refusal:
            findings = Findings(
                images=tuple(file.key for given in job.input_set.values() for file in given),
                not_analysed=NotAnalysed(reason=refusal.reason, text=refusal.text, code=refusal.code),
            )
        return replace(findings, provider=f"command:{Path(_filled(self._command.argv[0], self._card, Path())).name}")

    def close(self) -> None:
        """Nothing is held between jobs."""

    def _run(self, job: Job) -> Findings:
        work = Path(tempfile.mkdtemp(prefix="command-"))
        try:
            return self._inside(work, job.input_set)
        finally:
            _remove(work)

    def _inside(self, work: Path, given: Mapping[str, Sequence[ImageFile]]) -> Findings:
        rooms = {name: work / name for name in ("input", "output", "home", "tmp")}
        for room in rooms.values():
            room.mkdir()
        volumes = self._volumes(given)
        prepared = self._prepare(rooms["input"], given, volumes)
        limits = self._limits(rooms["input"])
        self._card.require_unchanged()
        began = time.perf_counter()
        run_program(
            [self._argument(number, text, work) for number, text in enumerate(self._command.argv)],
            environment=self._environment(work),
            folder=rooms["home"],
            watched=[work],
            limits=limits,
            network=self._command.network,
            writable=self._command.writable,
        )
        seconds = time.perf_counter() - began
        # What was replaced between the look and the start is seen now.
        self._card.require_unchanged()
        findings = self._read(rooms["output"], prepared, volumes, limits)
        return replace(findings, seconds=seconds)

    def _volumes(self, given: Mapping[str, Sequence[ImageFile]]) -> dict[str, Volume]:
        """Read each role of a volume as one: what cannot be placed in the patient is not handed out to be segmented."""
        from inference.volume import read_volume

        # They were asked before, and are asked where they leave: whoever calls this engine, no text goes out.
        hold = require_no_text if keeps_text(self._card) else None
        return {
            role.role: read_volume(given[role.role], minimum=role.minimum_instances, hold=hold)
            for role in self._card.inputs
            if role.kind == "volume" and role.role in given
        }

    def _prepare(
        self, folder: Path, given: Mapping[str, Sequence[ImageFile]], volumes: Mapping[str, Volume]
    ) -> _Prepared:
        prepared = _Prepared()
        for role, files in given.items():
            if self._command.input == "nifti":
                self._write_nifti(folder, role, volumes[role], prepared, files)
                continue
            place = folder / role if len(self._card.inputs) > 1 else folder
            place.mkdir(exist_ok=True)
            for number, file in enumerate(files, start=1):
                copy = write_copy(
                    file,
                    place / f"{number:05d}.dcm",
                    prepared.pseudonyms,
                    keep=self._command.keep,
                    burned_in=self._command.burned_in,
                    decompress=self._command.decompress,
                )
                size = count_of(copy, "Rows"), count_of(copy, "Columns")
                prepared.images.add(str(copy.SOPInstanceUID), file.key, size)
                prepared.note(role, file.key, copy, size)
        return prepared

    def _write_nifti(
        self, folder: Path, role: str, volume: Volume, prepared: _Prepared, files: Sequence[ImageFile]
    ) -> None:
        from inference.nifti import write_nifti

        name = self._command.input_names.get(role, f"{role}.nii.gz")
        write_nifti(folder / name, volume.array, volume.grid)
        for number, file in enumerate(files):
            # The program sees no image, and can name none.
            prepared.images.add(f"{role}-{number}", file.key, (0, 0))

    def _limits(self, given: Path) -> Limits:
        resources, command = self._card.resources, self._command
        sizes = [path.stat().st_size for path in given.rglob("*")]
        return Limits(
            seconds=resources.seconds,
            memory_bytes=resources.memory_mb << 20,
            threads=threads_of(self._card),
            processes=command.processes,
            address_space_bytes=None if command.address_space_mb is None else command.address_space_mb << 20,
            file_bytes=command.output_mb << 20,
            # What it was given lies beside what it writes.
            output_bytes=(command.output_mb << 20) + sum(sizes),
            output_files=command.output_files + len(sizes) + 16,
        )

    def _environment(self, work: Path) -> dict[str, str]:
        """Return all variables that the program gets; folders are named as mercure and MONAI Deploy name them too."""
        threads = str(threads_of(self._card))
        passed = {name: os.environ[name] for name in self._command.pass_environment if name in os.environ}
        own = {name: _filled(value, self._card, work) for name, value in self._command.environment.items()}
        folders = {"IN": str(work / "input"), "OUT": str(work / "output")}
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(work / "home"),
            "TMPDIR": str(work / "tmp"),
            "OMP_NUM_THREADS": threads,
            "MERCURE_IN_DIR": folders["IN"],
            "MERCURE_OUT_DIR": folders["OUT"],
            "HOLOSCAN_INPUT_PATH": folders["IN"],
            "HOLOSCAN_OUTPUT_PATH": folders["OUT"],
            **passed,
            **own,
        }

    def _argument(self, number: int, text: str, work: Path) -> str:
        filled = _filled(text, self._card, work)
        return _place(filled, self._card) if number == 0 else filled

    def _read(self, folder: Path, prepared: _Prepared, volumes: Mapping[str, Volume], limits: Limits) -> Findings:
        pattern = self._command.result or _PATTERNS[self._command.output]
        labels_of_card = (output.label for output in self._card.outputs if output.label is not None)
        marking = Marking(labels_of_card, self._command.overlap, key="command.overlap")
        if self._command.output == "nifti":
            volume = volumes[self._card.inputs[0].role]
            canonical = labels_of_nifti(self._card, folder, volume, limits.file_bytes, marking)
            return self._segmented(volume, volume.to_source(canonical), marking)
        found = results(folder, pattern)
        if len(found) > 1:
            raise EngineFailure(
                "broke", f"the program left {len(found)} files; command.result says which of them is the answer"
            )
        if self._command.output == "json":
            return read_json(self._card, found[0], prepared.images)
        from inference.engines.command_dicom import labels_of_seg, read_sr

        if self._command.output == "sr":
            return read_sr(self._card, found[0], prepared.images, prepared.pseudonyms)
        role = self._card.inputs[0].role
        volume = volumes[role]
        order = list(zip(volume.keys, volume.frames, strict=True))
        planes = {place: prepared.planes[role][place] for place in order}
        labels = labels_of_seg(self._card, found[0], planes, prepared.pseudonyms, marking)
        return self._segmented(volume, labels, marking)

    def _segmented(self, volume: Volume, labels: npt.NDArray[np.uint8], marking: Marking) -> Findings:
        """Return a mask's findings; it lies on the stored pixels of the volume's images."""
        from inference.postprocess import volumes_ml

        wanted = [output.label for output in self._card.outputs if output.label is not None]
        held = volumes_ml(labels, volume.spacing_mm, wanted, marking)
        segments = tuple(
            Segment(
                label=output.label,
                name=output.name,
                code=output.code,
                category=output.category,
                volume_ml=held[output.label],
            )
            for output in self._card.outputs
            if output.label is not None and output.category is not None
        )
        return Findings(
            images=(*volume.images, *volume.left_out),
            segmentation=Segmentation(
                segments=segments,
                images=volume.keys,
                frames=volume.frames,
                labels=labels,
                together=marking.together,
            ),
            coverage=volume.coverage,
        )


@dataclass(slots=True)
class _Prepared:
    """What a program was given, and how its words are taken back."""

    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms)
    images: Images = field(default_factory=Images)
    planes: dict[str, dict[tuple[str, int], Plane]] = field(default_factory=dict)

    def note(self, role: str, key: str, copy: Any, size: tuple[int, int]) -> None:
        """Remember where the planes of one copy lie, by its true key and the number of the frame."""
        from inference.engines.command_dicom import planes_of

        for frame, plane in planes_of(copy, size):
            self.planes.setdefault(role, {})[key, frame] = plane


def _filled(text: str, card: Card, work: Path) -> str:
    for name, value in (
        ("input", work / "input"),
        ("output", work / "output"),
        ("work", work / "home"),
        ("card", card.directory),
        ("threads", threads_of(card)),
        # As it was started: a virtual environment is found by the link, not by what that leads to.
        ("python", sys.executable),
    ):
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _place(program: str, card: Card) -> str:
    """Return where a program lies: below the card's folder if it is a relative path, else wherever PATH finds it."""
    return str(card.directory / program) if "/" in program and not program.startswith("/") else program


def _remove(folder: Path) -> None:
    """Remove a folder and all in it, also where the program took away the permission to."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(place) / name
            if not inner.is_symlink():
                with contextlib.suppress(OSError):
                    inner.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
