"""Heat maps that explain findings: kept beside the archive, one file a workitem, for whoever makes evidence of them."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from node.workflow.told import HeatMapsTold, HeatMapTold

if TYPE_CHECKING:
    from inference.findings import Findings, HeatMap

__all__ = ["keep", "kept", "listed"]


def keep(folder: Path, workitem_uid: str, findings: Findings) -> None:
    """Write the heat maps of findings, durable on return; without any nothing is written.

    A file that is there already was written by an attempt whose result was not committed: it is replaced or removed.
    """
    if not findings.heat_maps:
        (folder / f"{workitem_uid}.npz").unlink(missing_ok=True)
        return
    import numpy as np

    about = [{"name": one.name, "code": asdict(one.code), "image": one.image} for one in findings.heat_maps]
    arrays = {f"map_{number}": one.values for number, one in enumerate(findings.heat_maps)}
    index = np.frombuffer(json.dumps(about).encode(), np.uint8)
    # They are a patient's: for their owner only, like the data directory.
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f"{uuid.uuid4().hex}.partial"
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, index=index, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / f"{workitem_uid}.npz")
    finally:
        partial.unlink(missing_ok=True)


def kept(folder: Path, workitem_uid: str) -> tuple[HeatMap, ...]:
    """Return the heat maps of a workitem, each on the pixels of its image (a SOP Instance UID); none where none are."""
    import numpy as np

    from inference.findings import Code, HeatMap

    try:
        with np.load(folder / f"{workitem_uid}.npz", allow_pickle=False) as file:
            return tuple(
                HeatMap(name=one["name"], code=Code(**one["code"]), image=one["image"], values=file[f"map_{number}"])
                for number, one in enumerate(json.loads(file["index"].tobytes()))
            )
    except FileNotFoundError:
        return ()


def listed(folder: Path, workitem_uid: str) -> HeatMapsTold | None:
    """Return which heat maps a workitem has and where, without reading a pixel; None where it has none."""
    import zipfile

    import numpy as np

    path = folder / f"{workitem_uid}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["index"].tobytes())
        maps = [HeatMapTold(array=f"map_{number}", **one) for number, one in enumerate(about)]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        # The file is named all the same: somebody may want to look what is wrong with it.
        maps = []
    return HeatMapsTold(file=str(path), maps=maps)
