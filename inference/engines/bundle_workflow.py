"""One MONAI bundle, loaded: files of an image in, its prediction and where that lies out.

The bundle's own configuration does the work (transforms, inferer, post transforms). It is changed in four places only:
nothing is saved to disk, no worker processes are started, the weights are read by :mod:`inference.engines.checkpoint`
rather than by its own loader, and its data are the files that it is given.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.engines.checkpoint import read_checkpoint, set_weights
from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Bundle"]

#: Transforms that write files: the prediction is taken from memory.
_WRITERS = ("SaveImage", "SaveImaged", "SaveClassificationd", "SaveClassification")
#: Handlers that write files, or read weights in ways of their own.
_HANDLERS = ("CheckpointLoader", "CheckpointSaver", "ClassificationSaver", "MetricsSaver", "TensorBoardStatsHandler")
_LOADERS = ("DataLoader", "ThreadDataLoader")


class Bundle:
    """A bundle whose network is loaded once and asked many times.

    Parameters
    ----------
    root
        The bundle's folder.
    config
        Its inference configuration, relative to ``root``.
    metadata
        Its metadata, relative to ``root``.
    weights
        A checkpoint (any that :func:`inference.engines.checkpoint.load_weights` reads), relative to ``root``; None
        where the configuration itself holds or makes the weights.
    script
        A TorchScript file that takes the network's place, relative to ``root``.
    image, prediction
        The keys of the input and of the output in the bundle's dictionaries.

    Raises
    ------
    EngineFailure
        If the configuration cannot be made to run.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: str,
        metadata: str = "configs/metadata.json",
        weights: str | None = None,
        script: str | None = None,
        image: str = "image",
        prediction: str = "pred",
        threads: int | None = None,
    ) -> None:
        import torch

        # Before all that takes seconds to import.
        tensors = read_checkpoint(root / weights) if weights is not None and script is None else None
        from monai.bundle import ConfigWorkflow

        if threads:
            torch.set_num_threads(threads)
        self._image, self._prediction = image, prediction
        self._lock = threading.Lock()
        # Its own modules; MONAI would add the folder too, but only when it runs, and once more each time.
        self._root = str(root)
        if self._root not in sys.path:
            sys.path.insert(1, self._root)
        overrides: dict[str, Any] = {"bundle_root": str(root), "dataset#data": [{image: ""}]}
        with _quiet(), _told("its configuration cannot be read"):
            self._workflow = ConfigWorkflow(
                config_file=str(root / config),
                meta_file=str(root / metadata),
                workflow_type="inference",
                logging_file=False,
                **overrides,
            )
        _tame(self._workflow.parser.config)
        network: Any
        if script is not None:
            with _quiet(), _told(f"{script} cannot be loaded as TorchScript"):
                network = torch.jit.load(str(root / script), map_location="cpu")
            self._workflow.parser["network_def"] = network
        with _quiet(), _told("its configuration cannot be set up"):
            self._workflow.initialize()
            network = self._workflow.network_def
        if not isinstance(network, torch.nn.Module):
            raise EngineFailure("broke", "the bundle's network_def makes no network")
        self.unused: tuple[str, ...] = ()
        if tensors is not None:
            self.unused = set_weights(network, tensors, str(weights))
        del tensors
        network.eval()
        # From here on the loaded network stands in the configuration in place of the recipe for it.
        self._workflow.parser["network_def"] = network
        self.device = str(next((parameter.device for parameter in network.parameters()), "cpu"))

    def predict(self, files: Sequence[Path]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Run the bundle over one image.

        Parameters
        ----------
        files
            NIfTI files, one a channel of the bundle's input, all on one grid.

        Returns
        -------
        numpy.ndarray, numpy.ndarray
            The prediction after the bundle's own post transforms, float32 of shape (channels, x, y, z), and the
            affine (4 x 4) that brings its indices to **RAS** in mm, as NIfTI and MONAI mean it.

        Raises
        ------
        EngineFailure
            ``broke``, with the kind of the error and where it happened, if the bundle does not come to an end.
        """
        from ignite.engine import Events

        names: Any = [str(file) for file in files]
        data = [{self._image: names[0] if len(names) == 1 else names}]
        taken: list[dict[str, Any]] = []

        def take(engine: Any) -> None:
            output = engine.state.output
            taken.extend(output if isinstance(output, (list, tuple)) else [output])

        # One configuration is set to one image after the other.
        with self._lock, _quiet(), _told("it broke"):
            self._workflow.parser["dataset#data"] = data
            self._workflow.initialize()
            self._workflow.evaluator.add_event_handler(Events.ITERATION_COMPLETED, take)
            self._workflow.run()
        while sys.path.count(self._root) > 1:
            sys.path.remove(self._root)
        if len(taken) != 1 or not isinstance(taken[0], dict) or self._prediction not in taken[0]:
            raise EngineFailure(
                "broke", f"the bundle answered {len(taken)} times, or without {self._prediction!r}; one answer is meant"
            )
        return _understood(taken[0], self._prediction, self._image)


def _understood(
    answer: dict[str, Any], prediction: str, image: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    import torch

    found = answer[prediction]
    values = np.asarray(found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found)
    if values.ndim == 3:
        values = values[None]
    affine = getattr(found, "affine", None)
    if affine is None:
        # A transform that gives up the tensor's place leaves the image's, if the image lies on the same voxels.
        shown: Any = answer.get(image)
        if getattr(shown, "affine", None) is not None and tuple(shown.shape[-3:]) == values.shape[1:]:
            affine = shown.affine
    if affine is None or values.ndim != 4:
        raise EngineFailure(
            "broke", f"the bundle's answer of shape {values.shape} does not say where it lies in the patient"
        )
    place = np.asarray(affine.detach().cpu().numpy() if hasattr(affine, "detach") else affine, np.float64)
    if place.shape == (1, 4, 4):
        place = place[0]
    if place.shape != (4, 4) or not np.isfinite(place).all():
        raise EngineFailure("broke", "the bundle's answer says no sound place in the patient")
    return values.astype(np.float32, copy=False), place


def _tame(config: object) -> None:
    """Change a configuration, wherever in it: no files written, no processes started, no weights read on its own."""
    if isinstance(config, dict):
        target = str(config.get("_target_", "")).rpartition(".")[2]
        if target in _WRITERS or target in _HANDLERS:
            config["_disabled_"] = True
        elif target in _LOADERS:
            config["num_workers"] = 0
            config.pop("persistent_workers", None)
            config.pop("prefetch_factor", None)
        for value in config.values():
            _tame(value)
    elif isinstance(config, list):
        for value in config:
            _tame(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a bundle's libraries think of each other's versions to themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into one failure: its type and place, since its words may name a patient."""
    try:
        yield
    except (EngineFailure, MemoryError):
        raise
    except Exception as problem:  # a bundle is foreign code and fails in every way
        if _starved(problem):
            raise EngineFailure("overran-memory", "the bundle could not get the memory that it asked for") from problem
        root: BaseException = problem
        while (before := root.__cause__ or root.__context__) is not None:
            root = before
        trace = root.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown place"
        raise EngineFailure("broke", f"the bundle: {what}: {type(root).__name__} at {where}") from problem


def _starved(problem: BaseException) -> bool:
    seen: BaseException | None = problem
    while seen is not None:
        if isinstance(seen, MemoryError) or "can't allocate memory" in str(seen) or "out of memory" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
