"""Runs MONAI bundles: a volume goes in as NIfTI with a geometry of our making, a mask comes back on the source grid.

A bundle is code: its configuration may hold any Python expression, and its folder any module. So it is run only in an
engine's own process (which gets no settings and no secrets of the node, and is ended at its limits), only where each of
its files is the one whose digest stands in the card, and without a network. It is as trusted as the operator who added
it; nothing here makes a hostile bundle harmless.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines.bundle_workflow import Bundle
from inference.errors import EngineFailure, InputRefused
from inference.findings import Findings, NotAnalysed, Segment, Segmentation
from inference.grid import Grid, resample
from inference.imagefile import open_image
from inference.marking import Marking
from inference.nifti import write_nifti
from inference.options import MonaiBundle
from inference.roles import read_roles
from inference.statistics import of_volume

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import Job

    Labels = npt.NDArray[np.uint8]

__all__ = ["labels_of", "marking_of", "on_source", "open_engine"]

#: From DICOM's patient axes (LPS) to NIfTI's (RAS), and back.
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: So much of the smaller of the answer's and the series' fields lies in the other.
_SHARED_FIELD = 0.5
#: So much of both, where the answer's affine is the identity.
_SAME_FIELD = 0.9
#: Of a label of more than so many voxels, so much of its volume must be left on the series' voxels.
_FEW_VOXELS, _LEAST_KEPT = 20, 0.5


def open_engine(card: Card) -> BundleEngine:
    """Load a bundle's network, in a process that is for this card alone.

    Raises
    ------
    EngineFailure
        If this is no engine's process, a file lies in the bundle that its card does not name, or it cannot be set up.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is None or not main.name.startswith("inference."):
        raise EngineFailure("broke", "a MONAI bundle is code: it runs in an engine's own process only (EngineHost)")
    options = card.monai_bundle or MonaiBundle()
    root = card.directory / options.root
    # Bytecode that Python writes beside a bundle's modules would be a file that the card does not name.
    sys.dont_write_bytecode = True
    _only_named_files(card, root)
    _stay_offline()
    return BundleEngine(card, options, root)


class BundleEngine:
    """An engine (:class:`inference.engine.Engine`) over one loaded bundle."""

    def __init__(self, card: Card, options: MonaiBundle, root: Path) -> None:
        self._card = card
        self._options = options
        self._bundle = Bundle(
            root,
            config=options.config,
            metadata=options.metadata,
            weights=options.weights,
            script=options.script,
            image=options.image,
            prediction=options.prediction,
            threads=card.resources.threads,
        )

    def run(self, job: Job) -> Findings:
        """Run one job; input that must not be read becomes "not analysed", with its reason.

        Raises
        ------
        EngineFailure
            If the bundle broke, or answered what its card does not say.
        """
        try:
            findings = self._run(job)
        except InputRefused as refusal:
            findings = Findings(
                images=tuple(file.key for given in job.input_set.values() for file in given),
                not_analysed=NotAnalysed(reason=refusal.reason, text=refusal.text, code=refusal.code),
            )
        return replace(findings, provider=f"torch:{self._bundle.device}", precision="fp32")

    def close(self) -> None:
        """Let go of the network with the process."""

    def _run(self, job: Job) -> Findings:
        read = read_roles(self._card.inputs, job.input_set)
        volume = read.reference
        first = next(role.role for role in self._card.inputs if not role.optional)
        inputs = [of_volume(open_image(job.input_set[first][0]), volume.array, volume.coverage)]
        # A role that is optional and was not given is a channel of nothing.
        nothing = np.zeros(volume.grid.shape, np.float32)
        channels = [read.arrays.get(role.role, nothing) for role in self._card.inputs]
        # A module that is imported late, or a file that a transform opens, is the one that was tested.
        _only_named_files(self._card, self._card.directory / self._options.root)
        self._card.require_unchanged()
        with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
            files = [Path(folder) / f"channel-{number}.nii" for number in range(len(channels))]
            for file, array in zip(files, channels, strict=True):
                write_nifti(file, array, volume.grid)
            began = time.perf_counter()
            scores, affine = self._bundle.predict(files)
            seconds = time.perf_counter() - began
        self._card.require_unchanged()
        marking = marking_of(self._card, self._options)
        labels = on_source(labels_of(scores, self._card, self._options, marking), affine, volume.grid, marking)
        volume.clear_unscanned(labels)
        counts = marking.voxels(labels)
        segments = tuple(
            Segment(
                label=output.label,
                name=output.name,
                code=output.code,
                category=output.category,
                volume_ml=float(counts[output.label] * volume.grid.voxel_ml),
            )
            for output in self._card.outputs
            if output.label is not None and output.category is not None
        )
        return Findings(
            images=(*read.images, *read.left_out),
            segmentation=Segmentation(
                segments=segments,
                images=volume.keys,
                frames=volume.frames,
                labels=volume.to_source(labels),
                together=marking.together,
            ),
            coverage=volume.coverage,
            warnings=read.warnings,
            statistics={"inputs": inputs},
            seconds=seconds,
        )


def marking_of(card: Card, options: MonaiBundle) -> Marking:
    """Return what writes a card's structures into a mask."""
    labels = (output.label for output in card.outputs if output.label is not None)
    return Marking(labels, options.overlap, key="monai_bundle.overlap")


def on_source(labels: Labels, affine: npt.NDArray[np.float64], source: Grid, marking: Marking) -> Labels:
    """Bring labels, wherever a bundle left them, to the source's own voxels: exact where they lie there.

    Parameters
    ----------
    labels
        (x, y, z), as the bundle answered them.
    affine
        4 x 4, from their indices to RAS in mm.
    source
        Where the volume's voxels lie (LPS, mm).
    marking
        What the values of the labels stand for.

    Raises
    ------
    EngineFailure
        If the answer does not lie where the volume does, or what it marks lies elsewhere: a mask that lost its place
        must not become one that marks nothing.
    """
    try:
        given = Grid((labels.shape[0], labels.shape[1], labels.shape[2]), _LPS_RAS @ affine)
    except ValueError as problem:
        raise EngineFailure("broke", "the bundle's answer says no sound place in the patient") from problem
    # A bundle may crop to what it looks at, or pad to what its network takes: one field lies in the other then.
    shares = source.share_within(given), given.share_within(source)
    # What MONAI's tensors say once a transform has lost their place; few series lie so.
    unplaced = np.array_equal(affine, np.eye(4))
    if max(shares) < _SHARED_FIELD or (unplaced and min(shares) < _SAME_FIELD):
        raise EngineFailure(
            "broke",
            f"the bundle's answer does not lie where the series does ({100 * shares[1]:.0f} % of it lies there)"
            f"{'; its affine is the identity, as of a tensor that has lost its place' if unplaced else ''}",
        )
    found: Labels = resample(labels, given, source, interpolation="nearest")
    after = marking.voxels(found)
    # Of what is a few voxels large, the nearest neighbour keeps more or less.
    few = _FEW_VOXELS * max(given.voxel_ml, source.voxel_ml)
    for label, count in marking.voxels(labels).items():
        marked, kept = count * given.voxel_ml, after[label] * source.voxel_ml
        if marked > few and kept < _LEAST_KEPT * marked:
            raise EngineFailure(
                "broke",
                f"the bundle marked {marked:.1f} mL with label {label}, of which {kept:.1f} mL lie where the series "
                "does",
            )
    return found


def labels_of(
    scores: npt.NDArray[np.float32], card: Card, options: MonaiBundle, marking: Marking
) -> npt.NDArray[np.uint8]:
    """Turn a bundle's answer into labels of the card.

    Parameters
    ----------
    scores
        (channels, x, y, z). One channel holds labels. Several hold a 0 or 1 each (what a bundle discretised), or else
        scores of which the highest counts.
    marking
        What writes the labels, and knows afterwards which values stand for several of them.

    Raises
    ------
    EngineFailure
        If the answer is not finite, names what the card does not, or marks a voxel twice where the card refuses that.
    """
    if not np.isfinite(scores).all():
        raise EngineFailure("broke", "the bundle answered values that are not numbers")
    known = np.zeros(256, dtype=bool)
    known[[0, *(output.label for output in card.outputs if output.label is not None)]] = True
    if len(scores) == 1:
        whole = np.rint(scores[0])
        if whole.min() < 0 or whole.max() > 255 or np.abs(whole - scores[0]).max() > 0.01:
            raise EngineFailure("broke", "the bundle answered one channel whose values are no labels")
        found: npt.NDArray[np.uint8] = whole.astype(np.uint8)
    else:
        found = _from_channels(scores, card, options, marking)
    known[list(marking.together)] = True
    if not known[np.flatnonzero(np.bincount(found.ravel(), minlength=256))].all():
        raise EngineFailure("broke", "the bundle answered a label that its card does not name")
    return found


def _from_channels(
    scores: npt.NDArray[np.float32], card: Card, options: MonaiBundle, marking: Marking
) -> npt.NDArray[np.uint8]:
    shift = 0 if options.background else 1
    if ((scores != 0) & (scores != 1)).any():
        if not options.background:
            raise EngineFailure(
                "broke", "the bundle answered scores without a background; its post transforms must make them 0 or 1"
            )
        best: npt.NDArray[np.uint8] = np.argmax(scores, axis=0).astype(np.uint8)
        return best
    marked = scores.astype(bool)
    found = np.zeros(scores.shape[1:], np.uint8)
    for output in card.outputs:
        channel = (output.label or 0) - shift
        if not 0 <= channel < len(marked):
            raise EngineFailure("broke", f"the bundle answered {len(marked)} channels; its card names one more")
        marking.put(found, marked[channel], output.label or 0, within=found)
    return found


def _only_named_files(card: Card, root: Path) -> None:
    """Refuse a bundle with a file that the card does not name: Python would import it without a question."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(card.directory).as_posix()
        if path.is_symlink() or (not path.is_dir() and name not in card.files):
            raise EngineFailure("broke", f"{card.path}: files: {name} lies in the bundle and is not named")


def _stay_offline() -> None:
    """Refuse every connection that Python code of this process tries to make, for as long as it lives.

    No wall against a hostile bundle, which can reach the system itself; it stops one that would fetch or report
    something, and says so instead of waiting for a network that a hospital does not have.
    """

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            raise PermissionError("a bundle has no network")
        if event in ("socket.connect", "socket.bind", "socket.sendto") and arguments[0].family.name.startswith(
            "AF_INET"
        ):
            raise PermissionError("a bundle has no network")

    sys.addaudithook(watch)
