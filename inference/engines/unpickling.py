"""Reads the weights out of a pickled PyTorch module, in a process that is thrown away.

torchxrayvision's core classifiers are released as whole pickled modules, which ``weights_only=True`` cannot read.
:func:`module_weights` starts ``python -m inference.engines.unpickling SOURCE TARGET``; that process

* has no network, no child processes, and limits on its memory, its time and what it writes;
* unpickles with a list of what may be named. Of a module's class nothing is imported: an inert stand-in takes its
  place and keeps the state that it is given, and of that state only tensors are taken;
* writes a plain state dict, which is then loaded with ``weights_only=True`` like any other.

A file that names anything else (``os.system``, ``builtins.eval``, ``torch.hub.load``) is refused, with that name.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from inference.errors import EngineFailure

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["module_weights"]

_SECONDS = 120.0
_MEGABYTE = 1024 * 1024
_DEEPEST = 32
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

#: Modules whose classes are parts of networks: whatever is named in them gets a stand-in.
_NETWORKS = ("torch.nn.modules.", "torch.nn.parallel.", "torchvision.models.", "torchxrayvision.")
#: Modules by the names that people know them by.
_SHOWN = {"posix": "os", "nt": "os", "__builtin__": "builtins", "cPickle": "pickle", "_pickle": "pickle"}
#: What a process that reads a file has no business doing, by the names of Python's audit events (PEP 578).
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.",
    "ctypes.",
    "shutil.",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.kill",
    "os.putenv",
    "urllib.",
    "webbrowser.",
)


def module_weights(path: Path, *, seconds: float = _SECONDS) -> dict[str, Tensor]:
    """Return the state dict of a pickled module: every parameter and persistent buffer, by its name.

    Parameters
    ----------
    path
        A file that ``torch.save(module, path)`` wrote, in today's format or that before torch 1.6.
    seconds
        After these the process is killed.

    Raises
    ------
    EngineFailure
        ``broke``, ``overran-time`` or ``died``, naming what the file wanted.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        target = Path(folder) / "weights.pt"
        answer = _answer_of(path, target, seconds)
        if "refused" in answer:
            raise EngineFailure("broke", f"{path.name}: {answer['refused']}; do not use this file")
        if not target.is_file():
            raise EngineFailure("died", f"{path.name}: the process that read it ended without an answer")
        weights: dict[str, Tensor] = torch.load(target, map_location="cpu", weights_only=True)
        return weights


def _answer_of(path: Path, target: Path, seconds: float) -> dict[str, Any]:
    """Run the process to its end, or kill it with all that it started."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(target.parent),
        "TMPDIR": str(target.parent),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "inference.engines.unpickling", str(path.resolve()), str(target), str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=target.parent,
        process_group=0,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        raise EngineFailure("overran-time", f"{path.name}: was not read within {seconds:g} s") from late
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise EngineFailure("died", f"{path.name}: the process that read it was ended ({name})")
    try:
        answer = json.loads(output.decode().splitlines()[-1])
    except (ValueError, IndexError) as problem:
        raise EngineFailure("died", f"{path.name}: the process that read it ended without an answer") from problem
    return answer if isinstance(answer, dict) else {}


class _Refused(pickle.UnpicklingError):
    """The file wants what no weights need."""


class _StandIn:
    """In the place of any class of a network: takes anything, does nothing, keeps the state that it is given."""

    __slots__ = ("kept",)
    kept: dict[str, Any]
    #: Asked for by torch where a file of the old format brings its source code, which is otherwise passed over.
    dump_patches = False

    def __new__(cls, *arguments: object, **named: object) -> _StandIn:  # noqa: ARG004
        made = object.__new__(cls)
        made.kept = {}
        return made

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise _Refused("the state of a part of the network is no mapping of names")
        self.kept = state


class _Weights:
    """A tensor that nothing can be done to before it is asked for: the pickle cannot give it another state."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def _rebuilt(*arguments: Any) -> _Weights:
    """Make a tensor (``torch._utils._rebuild_tensor_v2``) that lies within its storage."""
    import torch

    storage, offset, size, stride = arguments[:4]
    if type(storage) is not torch.storage.TypedStorage:
        raise _Refused("a tensor has no storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(one) is int and one >= 0 for one in numbers):
        raise _Refused("a tensor has an impossible shape")
    if 0 not in size and offset + sum((a - 1) * b for a, b in zip(size, stride, strict=True)) >= storage._size():
        raise _Refused("a tensor reaches beyond its storage")
    made = torch.empty((0,), dtype=storage.dtype)
    made.set_(storage._untyped_storage, offset, size, stride)
    return _Weights(made)


def _parameter(*arguments: Any) -> _Weights:
    if not arguments or not isinstance(arguments[0], _Weights):
        raise _Refused("a parameter holds no tensor")
    return arguments[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): tuple,
    ("torch", "device"): _StandIn,
    ("torch._utils", "_rebuild_tensor"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    # Modules of torch before 1.5 held this; nothing is taken from it.
    ("torch.nn.backends.thnn", "_get_thnn_function_backend"): _StandIn,
}


class _Unpickler(pickle.Unpickler):
    """Finds what stands on the list, stand-ins for the parts of networks, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names.

        Raises
        ------
        UnpicklingError
            With the name.
        """
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if f"{module}.".startswith(_NETWORKS) and name.isidentifier():
            return _StandIn
        shown = f"{_SHOWN.get(module, module)}.{name}"
        raise _Refused(f"it wants {shown[:200]}, which no weights need")


_PICKLE = SimpleNamespace(
    Unpickler=_Unpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=lambda stream, **named: _Unpickler(stream, **named).load(),
    __name__="inference.engines.unpickling",
)


def _read(path: Path) -> dict[str, Any]:
    """Unpickle one file and take the tensors of its module.

    Raises
    ------
    UnpicklingError
        If the file wants anything but that.
    """
    import torch

    with path.open("rb") as file:
        # As torch tells the two formats apart: an archive within something else is neither.
        archived = file.read(4) == b"PK\x03\x04"
    if archived:
        with zipfile.ZipFile(path) as archive:
            # torch.load would hand such a file to torch.jit, which runs what it holds.
            if any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist()):
                raise _Refused("it is TorchScript, a program, and not weights")
    elif tarfile.is_tarfile(path):
        raise _Refused("it is a tar archive")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    if isinstance(content, Mapping):
        raise _Refused("it is a state dict or a checkpoint, and no module; it needs no unpickling")
    if not isinstance(content, _StandIn):
        raise _Refused("it holds no module")
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in _tensors(content, "", _DEEPEST)}
    if not weights:
        raise _Refused("its module has no weights")
    return weights


def _tensors(module: _StandIn, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield what ``Module.state_dict`` of the module would hold, in its order."""
    if not depth:
        raise _Refused("its modules are nested without end")
    passing = module.kept.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        for name, value in _members(module, group):
            if value is None or (group == "_buffers" and isinstance(passing, set) and name in passing):
                continue
            if not isinstance(value, _Weights):
                raise _Refused(f"{(prefix + name)[:200]} is no tensor")
            yield prefix + name, value.tensor
    for name, value in _members(module, "_modules"):
        if value is None:
            continue
        if not isinstance(value, _StandIn):
            raise _Refused(f"{(prefix + name)[:200]} is no module")
        yield from _tensors(value, f"{prefix}{name}.", depth - 1)


def _members(module: _StandIn, group: str) -> list[tuple[str, Any]]:
    members = module.kept.get(group)
    if members is None:
        return []
    if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
        raise _Refused(f"{group} of a part of the network is no mapping of names")
    return list(members.items())


def _leave_the_network() -> None:
    """Move into a network of its own, without interfaces, where the system lets this process; the audit hook stays."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_CLONE_NEWNET) != 0:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _confine(source: Path, target: Path, seconds: float) -> None:
    """Set limits that this process cannot lift: memory beyond what torch took, time, what it writes, what it does."""
    size = source.stat().st_size
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: taken + 6 * size + 512 * _MEGABYTE,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: 2 * size + 16 * _MEGABYTE,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    writable = str(target)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise _Refused(f"it wanted to {event}")
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]) != writable:
            raise _Refused("it wanted to write a file")

    sys.addaudithook(watch)


def main(arguments: list[str]) -> int:
    """Read one file, write its weights, and say how that went in one line of JSON."""
    source, target, seconds = Path(arguments[0]), Path(arguments[1]), float(arguments[2])
    _leave_the_network()
    import torch

    torch.set_num_threads(1)
    _confine(source, target, seconds)
    try:
        weights = _read(source)
        torch.save(weights, target)
        answer: dict[str, Any] = {"weights": len(weights)}
    except _Refused as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        answer = {"refused": "reading it took more memory than its size explains"}
    except Exception as problem:  # noqa: BLE001 - hostile bytes fail in every way; their words are not repeated
        answer = {"refused": f"it cannot be read as a pickled module ({type(problem).__name__})"}
    print(json.dumps(answer), flush=True)  # noqa: T201 - the answer to the parent
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
