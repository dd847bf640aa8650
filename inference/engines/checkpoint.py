"""Weights out of a checkpoint into a network: only tensors are taken, whatever else the file holds.

A checkpoint may be a bare state dict, a dict with the state dict under a key (MONAI, Lightning, ``torch.compile`` and
``DataParallel`` each write their own), or carry the hyper-parameters of a training beside it. It is unpickled with
``weights_only=True`` always. A class that torch does not know is replaced by an inert stand-in: its module is never
imported and nothing of it is called, so a Lightning checkpoint loads where Lightning is not installed.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import EngineFailure

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["load_weights", "matched_weights", "read_checkpoint", "set_weights"]

#: Keys under which training frameworks keep the state dict, in the order in which they are looked for.
STATE_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "generator", "module")
#: Parts of a parameter's name that wrappers add and that are no part of the network.
WRAPPERS = ("_orig_mod", "module")
#: A file that names one of these modules was made to run something: it is refused rather than read around.
_NEVER = frozenset(
    ("os", "posix", "nt", "subprocess", "sys", "importlib", "runpy", "shutil", "socket", "ctypes", "code", "pty")
)
_NEVER_BUILTINS = frozenset(("eval", "exec", "compile", "open", "__import__", "breakpoint", "input", "execfile"))


def load_weights(network: Module, path: Path) -> tuple[str, ...]:
    """Load a checkpoint's weights into a network, exactly: every parameter and buffer is found, with its shape.

    Parameters
    ----------
    network
        On any device; the weights go to where its parameters lie.
    path
        ``.pt``, ``.pth`` or ``.ckpt``.

    Returns
    -------
    tuple of str
        What the file holds beside the network's weights (losses, metrics), for the log.

    Raises
    ------
    EngineFailure
        If the file is no checkpoint, wants code to be run, or holds other weights than the network has.
    """
    return set_weights(network, read_checkpoint(path), path.name)


def set_weights(network: Module, tensors: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Do what :func:`load_weights` does with the tensors of a file called ``name`` that was read before."""
    found = matched_weights(tensors, network.state_dict(), name)
    network.load_state_dict(found.weights, strict=False)
    return found.unused


class _Found:
    __slots__ = ("unused", "weights")

    def __init__(self, weights: dict[str, Tensor], unused: tuple[str, ...]) -> None:
        self.weights = weights
        self.unused = unused


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's state dict by their names, wrappers' parts taken out of the names.

    Raises
    ------
    EngineFailure
        ``broke``, with what to do.
    """
    import torch

    with contextlib.ExitStack() as stack:
        strangers = _strangers(path)
        hostile = sorted(name for name in strangers if _hostile(name))
        if hostile:
            raise EngineFailure(
                "broke",
                f"{path.name}: the checkpoint names {', '.join(hostile[:4])}, which would run code when it is read; "
                "do not use this file",
            )
        if strangers:
            stack.enter_context(torch.serialization.safe_globals([(_stand_in(name), name) for name in strangers]))
        try:
            # It warns of a pickle that it may not understand; what it does not understand it refuses.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            ValueError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
        ) as problem:
            raise EngineFailure(
                "broke",
                f"{path.name}: cannot be read as weights alone ({type(problem).__name__}). Load it where it was "
                "trained, and save torch.save(network.state_dict(), 'model.pt') instead",
            ) from problem
    state = _state(content)
    if not state:
        raise EngineFailure("broke", f"{path.name}: holds no state dict (a dict of tensors by name)")
    return {_bare(name): tensor for name, tensor in state.items()}


def matched_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> _Found:
    """Pick out of ``found`` what a network wants, whatever prefix its names stand under (``net.``, ``model.``, ...).

    Raises
    ------
    EngineFailure
        ``broke``, naming the first parameters that are missing or have another shape.
    """
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    needed = {_bare(key): key for key in wanted if key not in counters}
    prefix = _prefix(found, needed)
    missing = [key for key in needed if prefix + key not in found]
    if missing:
        raise EngineFailure(
            "broke",
            f"{name}: lacks {len(missing)} of the {len(needed)} weights of the network (the first: "
            f"{', '.join(missing[:3])}); it holds {', '.join(sorted(found)[:3])}, ...",
        )
    for key, own in needed.items():
        shape, expected = tuple(found[prefix + key].shape), tuple(wanted[own].shape)
        if shape != expected:
            raise EngineFailure("broke", f"{name}: {key} has the shape {shape}; the network's is {expected}")
    weights = {own: found[prefix + key] for key, own in needed.items()}
    weights |= {key: found[prefix + _bare(key)] for key in counters if prefix + _bare(key) in found}
    used = {prefix + _bare(key) for key in wanted}
    return _Found(weights, tuple(sorted(key for key in found if key not in used)))


def _prefix(found: Mapping[str, Any], needed: Iterable[str]) -> str:
    """Return the prefix under which most of the needed names stand, the shortest where several do."""
    keys = list(needed)
    if not keys:
        return ""
    first = keys[0]
    candidates = {name[: -len(first)] for name in found if name == first or name.endswith("." + first)} or {""}
    return min(candidates, key=lambda prefix: (-sum(prefix + key in found for key in keys), len(prefix), prefix))


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _state(content: object) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint's content: its tensors by name, or those under a key that is known."""
    import torch

    if not isinstance(content, Mapping):
        return {}
    for key in STATE_KEYS:
        nested = content.get(key)
        if isinstance(nested, Mapping) and (state := _state(nested)):
            return state
    return {
        str(name): value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _strangers(path: Path) -> list[str]:
    """Return the names of what the file's pickle refers to and torch does not know; nothing of it is loaded."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except OSError as problem:
        raise EngineFailure("broke", f"{path.name}: cannot be read ({type(problem).__name__})") from problem
    except Exception:  # noqa: BLE001 - what cannot be disassembled is told by loading it, in words of its own
        return []


def _hostile(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    top = module.split(".")[0]
    if top in ("builtins", "__builtin__"):
        return attribute in _NEVER_BUILTINS
    return top in _NEVER or module.startswith("torch.hub")


def _stand_in(name: str) -> type:
    """Make a class that takes anything, keeps nothing and does nothing, in place of one that is not known here."""

    def new(cls: type, *arguments: object, **named: object) -> object:  # noqa: ARG001
        return object.__new__(cls)

    def nothing(self: object, *arguments: object, **named: object) -> None:  # noqa: ARG001
        return None

    return type(
        "StandIn",
        (),
        {
            "__new__": new,
            "__init__": nothing,
            "__setstate__": nothing,
            "__setitem__": nothing,
            "append": nothing,
            "extend": nothing,
            "__module__": __name__,
            "__qualname__": f"StandIn({name})",
        },
    )
