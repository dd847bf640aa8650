"""A program that is run for a model stays within its limits, and nothing of it is left when it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference import programs
from inference.errors import EngineFailure
from inference.heldmemory import HeldMemory
from inference.processtree import descendants, kill_tree, tree_resident_bytes
from inference.programs import Limits, run_program
from tests.faults.test_engine_faults import alive, wait_for

MB = 1 << 20
NAMESPACES = subprocess.run(["unshare", "-Urp", "--fork", "true"], capture_output=True, check=False).returncode == 0


def run(folder: Path, code: str, *arguments: str, network: bool = False, **limits: float) -> str:
    chosen = {"seconds": 20.0, "memory_bytes": 512 * MB} | limits
    return run_program(
        [sys.executable, "-c", code, *arguments],
        environment={"PATH": os.environ["PATH"]},
        folder=folder,
        watched=[folder],
        limits=Limits(**chosen),  # type: ignore[arg-type]
        network=network or not NAMESPACES,
    )


def failing(folder: Path, code: str, **limits: float) -> EngineFailure:
    with pytest.raises(EngineFailure) as caught:
        run(folder, code, **limits)
    return caught.value


@pytest.fixture(params=["namespaces", "adoption"] if NAMESPACES else ["adoption"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether the program is kept in namespaces, or by adopting what it orphans where a system allows none."""
    if request.param == "namespaces":
        return False
    without_namespaces(monkeypatch, tmp_path)
    return True


def without_namespaces(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on a system that allows none: the same file, whose call of unshare is refused."""
    text = Path(programs.__file__).with_name("confine.py").read_text(encoding="utf-8")
    refused = folder / "confine.py"
    refused.write_text(text.replace("libc.unshare(", "(lambda flags: -1)("), encoding="utf-8")
    monkeypatch.setattr("inference.programs._CONFINE", refused)


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write("here")
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
"""


def running(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word in (entry / "cmdline").read_text(errors="replace") and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return [pid for pid in found if alive(pid)]


def test_a_daemon_that_forked_twice_ends_with_its_program(tmp_path: Path, way: bool) -> None:
    flag = tmp_path / f"daemon-{os.getpid()}"
    run(tmp_path, DAEMON, str(flag), network=way)
    assert flag.exists()
    assert running(str(flag)) == []


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path, way: bool) -> None:
    flag = tmp_path / f"hangs-{os.getpid()}"
    with pytest.raises(EngineFailure) as caught:
        run(tmp_path, DAEMON + "time.sleep(600)", str(flag), network=way, seconds=1.5)
    assert caught.value.reason == "overran-time"
    assert flag.exists()
    assert running(str(flag)) == []


def test_the_memory_of_all_its_processes_counts(tmp_path: Path) -> None:
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(60 << 20); time.sleep(600)
time.sleep(600)
"""
    failure = failing(tmp_path, code, memory_bytes=150 * MB)
    assert failure.reason == "overran-memory"
    assert "limit is 150 MB" in failure.text


@pytest.mark.parametrize("where", ["memfd", "shm"])
def test_memory_in_files_that_nobody_has_mapped_counts_and_what_is_mapped_counts_once(
    tmp_path: Path, where: str
) -> None:
    if where == "shm" and not NAMESPACES:
        pytest.skip("this system allows no namespaces, so /dev/shm is everybody's")
    code = """
import mmap, os, sys, time
file = os.memfd_create("x") if sys.argv[1] == "memfd" else os.open("/dev/shm/x", os.O_RDWR | os.O_CREAT)
for _ in range(int(sys.argv[2])): os.write(file, bytes(1 << 20))
if sys.argv[3] == "mapped":
    kept = mmap.mmap(file, 0); sum(kept[::4096])
    if os.fork() == 0: sum(kept[::4096])
    time.sleep(0.6)
else:
    held = bytearray(60 << 20); time.sleep(20)
"""
    with pytest.raises(EngineFailure) as caught:
        run(tmp_path, code, where, "90", "unmapped", memory_bytes=140 * MB)
    assert caught.value.reason == "overran-memory"
    run(tmp_path, code, where, "90", "mapped", memory_bytes=140 * MB)


def test_open_files_are_looked_through_now_and_then_and_at_once_where_they_could_be_above_the_limit() -> None:
    memory, own = HeldMemory(every_seconds=3600), [os.getpid()]
    file = os.memfd_create("x")
    try:
        os.write(file, b"1")
        plain = memory.bytes(own, 1 << 50)
        exact = memory.bytes(own, 1)
        for _ in range(128):
            os.write(file, bytes(MB))
        assert memory.bytes(own, 1 << 50) < plain + 64 * MB
        assert memory.bytes(own, plain + 32 * MB) > exact + 64 * MB
    finally:
        os.close(file)
    assert memory.bytes(own, plain + 32 * MB) < plain + 32 * MB


def test_a_program_that_only_forks_is_ended(tmp_path: Path) -> None:
    if not NAMESPACES:
        pytest.skip("this system allows no namespaces, and nothing else ends a fork bomb in time")
    failure = failing(tmp_path, "import os\nwhile True: os.fork()", processes=60)
    assert failure.reason in ("broke", "died")


@pytest.mark.parametrize(
    ("code", "limits", "told"),
    [
        ("open('big', 'wb').truncate(3 << 20)", {"file_bytes": MB}, "File too large"),
        ("[open(f'n{i}', 'w') for i in range(60)]\nimport time; time.sleep(600)", {"output_files": 50}, "50 files"),
        ("import sys; print('words', file=sys.stderr); sys.exit(3)", {}, "status 3; it said last: words"),
        ("import os; os.kill(os.getpid(), 11)", {}, "signal 11"),
        ("x = bytearray(600 << 20)", {"address_space_bytes": 400 * MB}, "MemoryError"),
    ],
    ids=["a file", "many files", "a status", "a signal", "addresses"],
)
def test_what_goes_wrong_is_said(tmp_path: Path, code: str, limits: dict[str, float], told: str) -> None:
    failure = failing(tmp_path, code, **limits)
    assert told in failure.text


def test_a_folder_that_cannot_be_looked_at_is_the_programs_failure(tmp_path: Path) -> None:
    """Root may look anywhere; nobody gets to the end of a path that is longer than a system takes."""
    code = """
import os
for _ in range(30):
    os.mkdir("a" * 200); os.chdir("a" * 200)
import time; time.sleep(2)
"""
    assert "cannot be looked at" in failing(tmp_path, code).text


def test_a_program_without_a_network_reaches_itself_and_nobody_else(tmp_path: Path) -> None:
    if not NAMESPACES:
        pytest.skip("this system allows no namespaces")
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0)); socket.create_connection(server.getsockname()).close()
print(sorted(name for _, name in socket.if_nameindex()))
"""
    assert run(tmp_path, code) == "['lo']"


def test_a_program_writes_to_its_own_folder_and_to_no_other(tmp_path: Path) -> None:
    if not NAMESPACES:
        pytest.skip("this system allows no namespaces")
    own, other, allowed = (tmp_path / name for name in ("own", "other", "allowed"))
    for folder in (own, other, allowed):
        folder.mkdir()
    code = """
import errno, os, sys
for folder, fails in ((sys.argv[1], 0), (sys.argv[2], errno.EROFS), (sys.argv[3], 0), ("/dev/shm", 0)):
    try:
        open(folder + "/file", "w").write("words")
        assert not fails, folder
    except OSError as problem:
        assert problem.errno == fails, (folder, problem)
"""
    run_program(
        [sys.executable, "-c", code, str(own), str(other), str(allowed)],
        environment={},
        folder=own,
        watched=[own],
        limits=Limits(seconds=20, memory_bytes=512 * MB),
        writable=[str(allowed)],
    )
    assert [(folder / "file").exists() for folder in (own, other, allowed)] == [True, False, True]
    assert not Path("/dev/shm/file").exists()


def test_a_program_cannot_make_its_world_writable_again_though_the_node_is_root(tmp_path: Path) -> None:
    """By a remount as it was started, or in a world of its own making; nor can it write the machine's settings."""
    if not NAMESPACES:
        pytest.skip("this system allows no namespaces")
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
status = open("/proc/self/status").read()
print([line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd"))])
for flags in (0, 0x10020000):
    if flags and libc.unshare(flags) != 0:
        break
    libc.syscall(442, -100, b"/", 0x8000, (ctypes.c_uint64 * 4)(0, 1, 0, 0), ctypes.c_size_t(32))
    libc.mount(b"none", b"/", None, ctypes.c_ulong(32 | 4096), None)
    for place in (sys.argv[1], "/proc/sys/kernel/core_pattern"):
        try:
            os.close(os.open(place + "/file" * (place == sys.argv[1]), os.O_WRONLY | os.O_CREAT))
            print("written", place)
        except OSError:
            pass
"""
    said = run_program(
        [sys.executable, "-c", code, str(other)],
        environment={},
        folder=own,
        watched=[own],
        limits=Limits(seconds=20, memory_bytes=512 * MB),
    )
    assert "written" not in said
    if os.getuid() == 0:
        assert said == str(["0" * 16] * 3)


def test_without_namespaces_a_program_that_must_not_reach_the_network_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_namespaces(monkeypatch, tmp_path)
    with pytest.raises(EngineFailure, match="network cannot be kept"):
        run_program(
            ["true"],
            environment={},
            folder=tmp_path,
            watched=[],
            limits=Limits(seconds=20, memory_bytes=512 * MB),
            network=False,
        )


def test_the_program_gets_no_variable_that_it_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSPITAL_SECRET", "s3cret")
    monkeypatch.setenv("OVERREAD__HTTP__TOKEN", "s3cret")
    assert "s3cret" not in run(tmp_path, "import os; print(dict(os.environ))")


SUPERVISOR = """
import sys
from pathlib import Path
from inference.programs import Limits, run_program
folder = Path(sys.argv[1])
run_program([sys.executable, "-c", sys.argv[2], sys.argv[3]], environment={}, folder=folder, watched=[folder],
            limits=Limits(seconds=600, memory_bytes=1 << 30), network=sys.argv[4] == "True")
"""


def test_a_program_dies_with_whoever_started_it(tmp_path: Path, way: bool) -> None:
    flag = tmp_path / f"orphan-{os.getpid()}"
    code = SUPERVISOR
    if way:
        code = code.replace(
            "folder =",
            f"import inference.programs; inference.programs._CONFINE = Path({str(tmp_path)!r}) / "
            "'confine.py'\nfolder =",
            1,
        )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), DAEMON + "time.sleep(600)", str(flag), str(way or not NAMESPACES)]
    )
    try:
        wait_for(flag.exists, 30, "the program is under way")
        parent.kill()
        parent.wait()
        wait_for(lambda: running(str(flag)) == [], 5, "the program follows")
    finally:
        parent.kill()
        parent.wait()


def test_a_tree_is_measured_and_killed_as_one(tmp_path: Path) -> None:
    flag = tmp_path / "grown"
    code = """
import os, sys, time
if os.fork() == 0:
    os.setsid(); held = bytearray(50 << 20); open(sys.argv[1], "w").close()
time.sleep(600)
"""
    top = subprocess.Popen([sys.executable, "-c", code, str(flag)])
    try:
        wait_for(flag.exists, 20, "the child has grown")
        below = descendants(top.pid)
        assert len(below) == 1
        assert tree_resident_bytes(top.pid) > 50 * MB
        shared = tree_resident_bytes(top.pid, limit=1)
        assert 50 * MB < shared <= tree_resident_bytes(top.pid)
        os.kill(below[0], signal.SIGCONT)
    finally:
        kill_tree(top.pid)
        top.wait()
    wait_for(lambda: not alive(below[0]), 5, "the child has gone with it")


def test_wrong_programs_are_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="cannot be started: No such file"):
        run_program(
            ["/nowhere/program"],
            environment={},
            folder=tmp_path,
            watched=[],
            limits=Limits(seconds=5, memory_bytes=512 * MB),
            network=not NAMESPACES,
        )
