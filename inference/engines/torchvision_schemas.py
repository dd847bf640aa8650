"""Imports torchvision where its compiled operators do not fit the torch that is installed.

A torch of another build than torchvision's makes ``import torchvision`` die on "operator torchvision::nms does not
exist", since it describes its operators before it looks whether they are there. The networks that are run here use
none of them, so declaring the two that it describes is enough.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["import_torchvision"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
#: Held for the life of the process: the declarations go with the object that made them.
_HELD: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision, with its operators declared where they are not there.

    Raises
    ------
    ModuleNotFoundError
        If torch or torchvision is not installed.
    """
    import torch

    if "torchvision" in sys.modules:
        return
    try:
        import torchvision
    except RuntimeError as problem:
        if "torchvision::" not in str(problem):
            raise
        for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}{_SCHEMA}")
        _HELD.append(declared)
        import torchvision  # noqa: F401
