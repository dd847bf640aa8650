"""Runs one program so that nothing of it survives: the process between the ``command`` engine and the program.

Started as a file of its own (``python -I -S confine.py SPEC``), with the standard library only. Where the kernel lets
it, the program gets namespaces of its own (user, processes, mounts, network): with its first process all of it ends,
however it has forked. Where not, this process adopts whatever the program leaves behind and kills it.

``SPEC`` is JSON: ``argv``, ``environment``, ``folder`` (working directory), ``limits`` (resource names to values),
``network`` (bool), ``writable`` (folders), ``memory_bytes``, ``processes``, ``status`` (a file descriptor that gets one
line: ``exit N``, ``signal N`` or ``refused WHY``). Sources: namespaces(7), pid_namespaces(7), user_namespaces(7),
prctl(2), mount_setattr(2), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 0x40000
_MS_BIND, _RDONLY = 4096, 1
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _CLEAR_ALL = 23, 24, 28, 47, 4
#: SECBIT_NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock, and KEEP_CAPS locked at 0.
_SECUREBITS = 0xEF
_CAPABILITY_VERSION = 0x20080522
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def main(arguments: list[str]) -> int:
    """Run the program of a specification; return 0 once its end was told."""
    spec: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    status = int(spec["status"])
    os.set_inheritable(status, False)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _leave)
    # Without namespaces there is something to clean up, so the parent's death is told softly.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    confined, spec["counted_alone"] = _own_namespaces(libc, network=bool(spec["network"]))
    if not confined and not spec["network"]:
        _say(status, "refused this system allows no namespaces, so the network cannot be kept from the program")
        return 0
    if not confined:
        _say(status, _run(libc, spec))
        _kill_all_below()
        return 0
    alive, kept = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    first = os.fork()
    if first == 0:
        os.close(kept)
        _be_first(libc, spec, status, alive)
    signal.signal(signal.SIGTERM, lambda *_: _leave_world(first))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.close(alive)
    _, ended = os.waitpid(first, 0)
    if not os.WIFEXITED(ended):
        _say(status, f"signal {os.WTERMSIG(ended)}")
    return 0


def _be_first(libc: ctypes.CDLL, spec: dict[str, Any], status: int, alive: int) -> None:
    """Be process 1 of the program's own world; when it ends, the kernel ends everything in there."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):
        if not os.read(alive, 1):
            os._exit(1)
    libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    _write_nowhere_but(libc, spec["writable"])
    # Either may be refused inside a container; then the program sees the outer ones.
    if libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), None) == 0:
        with contextlib.suppress(OSError):
            # Segments of shmget(2) that nobody has attached are in no process's account; newer kernels let us.
            Path("/proc/sys/kernel/shmall").write_text(str(int(spec["memory_bytes"]) // os.sysconf("SC_PAGE_SIZE")))
        # Root's number alone may write to the settings of the whole machine, whatever it is capable of.
        for place in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
            libc.mount(place.encode(), place.encode(), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None)
            _set_read_only(libc, place, True)
    size = f"size={int(spec['memory_bytes'])},mode=1777".encode()
    libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), size)
    if not spec["network"]:
        _loopback_up()
    _say(status, _run(libc, spec))
    os._exit(0)


def _write_nowhere_but(libc: ctypes.CDLL, folders: list[str]) -> None:
    """Make all file systems read-only but for these folders; a kernel before 5.12 or a container may not let us."""
    for folder in folders:
        libc.mount(folder.encode(), folder.encode(), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None)
    if _set_read_only(libc, "/", True):
        for folder in folders:
            _set_read_only(libc, folder, False)


def _set_read_only(libc: ctypes.CDLL, folder: str, wanted: bool) -> bool:
    """Call mount_setattr(2), for which the C library has no name yet on every system."""
    change = (_RDONLY, 0) if wanted else (0, _RDONLY)
    attributes = (ctypes.c_uint64 * 4)(*change, 0, 0)
    size = ctypes.sizeof(attributes)
    call = (ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, folder.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(size))
    return bool(libc.syscall(*call) == 0)


def _run(libc: ctypes.CDLL, spec: dict[str, Any]) -> str:
    """Run the program to its end, taking in what it orphans; return how it ended."""
    told, tell = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            os.close(told)
            _become(libc, spec)
        except OSError as problem:
            os.write(tell, f"refused the program cannot be started: {os.strerror(problem.errno or 0)}".encode())
        except BaseException as problem:  # noqa: BLE001 - told, since there is nobody else to tell
            os.write(tell, f"refused the program cannot be started: {type(problem).__name__}".encode())
        finally:
            os._exit(127)
    os.close(tell)
    refused = b""
    while chunk := os.read(told, 4096):
        refused += chunk
    while True:
        ended, how = os.waitpid(-1, 0)
        if ended == program:
            break
    if refused:
        return refused.decode(errors="replace")
    return f"exit {os.WEXITSTATUS(how)}" if os.WIFEXITED(how) else f"signal {os.WTERMSIG(how)}"


def _become(libc: ctypes.CDLL, spec: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, value in spec["limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (most, most))
    if spec.get("counted_alone"):
        # In a user namespace of its own the kernel counts this program's processes only.
        resource.setrlimit(resource.RLIMIT_NPROC, (spec["processes"], spec["processes"]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.umask(0o077)
    os.chdir(spec["folder"])
    _give_up_powers(libc)
    os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])  # noqa: S606 - a list of arguments, and no shell


def _give_up_powers(libc: ctypes.CDLL) -> None:
    """Keep no capability, and no way to one: root in its own world could make its mounts writable again.

    With no_new_privs a file that is executed gives none back either (capabilities(7)). A user who has none to begin
    with is refused the first two calls, and needs them not.

    Raises
    ------
    OSError
        If the kernel takes them not: then the program must not start.
    """
    number = 0
    while libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _own_namespaces(libc: ctypes.CDLL, *, network: bool) -> tuple[bool, bool]:
    """Enter namespaces of our own, whose first process is the next child; return whether, and whether users' too."""
    flags = _NEWPID | _NEWNS | _NEWIPC | (0 if network else _NEWNET)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEWUSER | flags) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return True, True
    return bool(libc.unshare(flags) == 0), False


def _loopback_up() -> None:
    """Programs talk to themselves over 127.0.0.1; in a network of their own it has to be switched on."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _leave_world(first: int) -> None:
    """End the program's world by ending its first process."""
    os.kill(first, signal.SIGKILL)
    os._exit(1)


def _leave(*_: object) -> None:
    _kill_all_below()
    os._exit(1)


def _kill_all_below() -> None:
    """Kill and bury what the program has left: all of it is ours, since we adopt."""
    while True:
        below = _below()
        for one in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGSTOP)
        for one in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _below() -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - thousands of names, and no need of a Path for each
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{entry}/stat").read_text(errors="replace")
                parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    found, front = [], {os.getpid()}
    while front:
        front = {one for one, parent in parents.items() if parent in front}
        found += list(front)
    return found


def _say(status: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(status, (line + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
