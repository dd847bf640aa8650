"""An engine that dies, hangs, grows or breaks frees its job with a reason, and the next job gets a fresh one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.card import load_card
from inference.child import _failure
from inference.engine import ImageFile, Job
from inference.environment import environment_of
from inference.errors import EngineFailure
from inference.host import EngineHost
from inference.options import KServe
from inference.process import EngineProcess
from inference.processtree import children, resident_bytes
from node.workflow.engines import Engines
from tests.dicom_factory import ct_series
from tests.model_factory import constant_label, endless, greedy, poisoned, segmentation_card, thresholding, write_model
from tests.small_disk import fill, small_disk

LIMITS = {"seconds": 30, "memory_mb": 2048, "threads": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageFile, ...]:
    hu = np.full((4, 16, 16), -1000)
    hu[:, 4:8, 4:8] = 500
    return tuple(ImageFile(p.stem, p) for p in ct_series(tmp_path_factory.mktemp("ct"), hu))


def host_of(folder: Path, model: object, **resources: float) -> EngineHost:
    path = write_model(folder, segmentation_card(resources=LIMITS | resources), model)  # type: ignore[arg-type]
    return EngineHost(load_card(path), folder=folder)


def job_for(host: EngineHost, images: tuple[ImageFile, ...]) -> Job:
    return Job(host.card.path, {"ct": images})


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        threading.Event().wait(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def under_way(folder: Path) -> bool:
    """Whether a loaded engine was handed its job: only then is the job's file written."""
    return any(folder.glob("engine-*/job-*.json"))


class Running:
    """A job that runs in a thread, and how it ended."""

    def __init__(self, host: EngineHost, job: Job) -> None:
        self.failure: BaseException | None = None
        self.beats = 0
        self._host, self._job = host, job
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._host.run(self._job, heartbeat=self._beat)
        except EngineFailure as failure:
            self.failure = failure

    def _beat(self) -> None:
        self.beats += 1

    def pid(self) -> int:
        wait_for(lambda: under_way(self._host.card.directory.parent), 60, "the engine has its job")
        assert self._host.pid is not None
        return self._host.pid

    def end(self) -> EngineFailure:
        self._thread.join(30)
        assert isinstance(self.failure, EngineFailure)
        return self.failure


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[EngineHost]:
    with host_of(tmp_path, endless()) as host:
        yield host


def test_a_killed_engine_fails_its_job_as_died_and_names_the_signal(
    busy: EngineHost, images: tuple[ImageFile, ...]
) -> None:
    running = Running(busy, job_for(busy, images))
    os.kill(running.pid(), signal.SIGKILL)
    failure = running.end()
    assert failure.reason == "died"
    assert "SIGKILL" in failure.text


def test_an_engine_that_crashes_natively_is_told_by_its_signal(busy: EngineHost, images: tuple[ImageFile, ...]) -> None:
    running = Running(busy, job_for(busy, images))
    os.kill(running.pid(), signal.SIGSEGV)
    assert "SIGSEGV" in running.end().text


def test_a_loop_in_c_is_ended_at_the_cards_time(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, endless(), seconds=1.0) as host:
        began = time.monotonic()
        with pytest.raises(EngineFailure) as failure:
            host.run(job_for(host, images))
        assert failure.value.reason == "overran-time"
        assert time.monotonic() - began < 15
        assert host.pid is None


def test_a_stopped_engine_is_ended_at_the_cards_time(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, endless(), seconds=2.0) as host:
        running = Running(host, job_for(host, images))
        pid = running.pid()
        os.kill(pid, signal.SIGSTOP)
        assert running.end().reason == "overran-time"
        wait_for(lambda: not alive(pid), 2, "the stopped process is gone")


def test_an_engine_stopped_between_jobs_cannot_hold_the_supervisor(
    tmp_path: Path, images: tuple[ImageFile, ...]
) -> None:
    with host_of(tmp_path, thresholding(), seconds=1.0) as host:
        host.run(job_for(host, images))
        assert host.pid is not None
        os.kill(host.pid, signal.SIGSTOP)
        many = Job(host.card.path, {"ct": images * 1000})
        with pytest.raises(EngineFailure) as failure:
            host.run(many)
        assert failure.value.reason == "overran-time"


def test_an_engine_that_grows_beyond_its_memory_is_ended(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, greedy(0.5), memory_mb=400) as host:
        with pytest.raises(EngineFailure) as failure:
            host.run(job_for(host, images))
        assert failure.value.reason == "overran-memory"
        assert host.pid is None


def test_a_card_lets_no_model_hold_more_than_the_node_does(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    path = write_model(tmp_path, segmentation_card(resources=LIMITS | {"memory_mb": 100_000}), greedy(0.5))
    card = load_card(path)
    engines = Engines(tmp_path, cache=tmp_path / "cache", cores=1, memory_mb=400, idle_seconds=60)
    try:
        with pytest.raises(
            EngineFailure, match="its limit is 400 MB here, less than the 100000 MB of its card"
        ) as failure:
            engines.run(card, Job(path, {"ct": images}), lambda: None)
        assert failure.value.counts
    finally:
        engines.close()


def test_an_idle_engine_is_held_to_its_memory_its_disk_and_the_tail_of_its_words(
    tmp_path: Path, images: tuple[ImageFile, ...]
) -> None:
    with host_of(tmp_path, thresholding(), disk_mb=80) as host:
        host.run(job_for(host, images))
        first = host.pid
        (folder,) = tmp_path.glob("engine-*")
        with (folder / "stderr").open("ab") as words:
            words.write(b"a" * (5 << 20) + b"the end")
        wait_for(lambda: (folder / "stderr").stat().st_size < 1 << 20, 10, "its words are cut")
        assert (folder / "stderr").read_bytes().endswith(b"aaathe end")
        # What a job leaves goes once no other is under way, and the process stays.
        (folder / "below").mkdir()
        (folder / "below" / "left").write_bytes(bytes(70 << 20))
        host.run(job_for(host, images))
        assert host.pid == first
        assert not list(folder.rglob("left"))
        (folder / "below" / "left").write_bytes(bytes(90 << 20))
        wait_for(lambda: host.pid is None, 10, "it is ended for what it has written")
        wait_for(lambda: not list(folder.rglob("left")), 10, "what it has written is gone")
        host.run(job_for(host, images))
        assert host.pid is not None
        assert host._child is not None
        host._child._memory_mb = 10
        wait_for(lambda: host.pid is None, 10, "it is ended for what it holds")
        assert host._child.ended
        assert "while it had nothing to do; its limit is 10 MB" in str(host._child._end)


def test_an_engine_that_asks_for_more_than_there_is_overran_its_memory(
    tmp_path: Path, images: tuple[ImageFile, ...]
) -> None:
    with host_of(tmp_path, greedy(2.0**20)) as host, pytest.raises(EngineFailure) as failure:
        host.run(job_for(host, images))
    assert failure.value.reason == "overran-memory"


def test_bytes_that_are_no_model_break_with_the_files_name(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, b"\x08\x07 no model") as host, pytest.raises(EngineFailure) as failure:
        host.run(job_for(host, images))
    assert failure.value.reason == "broke"
    assert "model.onnx" in failure.value.text


def test_an_image_whose_file_is_gone_is_said_to_be_gone(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    gone = ImageFile("gone", tmp_path / "gone.dcm")
    with host_of(tmp_path, thresholding()) as host, pytest.raises(EngineFailure) as failure:
        host.run(Job(host.card.path, {"ct": (*images, gone)}))
    assert failure.value.reason == "broke"
    assert "not there" in failure.value.text


def test_a_disk_that_is_full_costs_no_try_and_is_said_in_words(tmp_path: Path) -> None:
    hu = np.full((12, 200, 200), -1000)
    hu[3:9, 50:150, 40:120] = 500
    files = tuple(ImageFile(p.stem, p) for p in ct_series(tmp_path / "ct", hu))
    card = load_card(write_model(tmp_path / "m", segmentation_card(resources=LIMITS), thresholding()))
    with small_disk(tmp_path / "disk", size="256k") as disk, EngineHost(card, folder=disk) as host:
        with pytest.raises(EngineFailure) as failure:
            host.run(Job(card.path, {"ct": files}))
        fill(disk / "all", 1 << 20)
        with pytest.raises(EngineFailure, match="cannot be written for the engine") as handing:
            host.run(Job(card.path, {"ct": files}))
        host.close()
    assert (failure.value.reason, handing.value.reason) == ("no-room", "no-room")
    assert not failure.value.counts
    assert "no space is left on the disk" in failure.value.text


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_not_laid_to_the_job_also_where_another_error_came_of_it(number: int) -> None:
    wrapped = EngineFailure("broke", "the copies could not be made")
    wrapped.__cause__ = OSError(number, "a name")
    assert [_failure(one)[0] for one in (OSError(number, "a name"), wrapped)] == ["no-room", "no-room"]
    assert "a name" not in _failure(wrapped)[1]
    assert _failure(PermissionError(errno.EACCES, "a name"))[0] == "broke"


def test_a_label_that_the_card_does_not_name_is_no_finding(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, constant_label(7)) as host, pytest.raises(EngineFailure) as failure:
        host.run(job_for(host, images))
    assert failure.value.reason == "broke"


def test_weights_replaced_under_a_running_node_do_not_run(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, thresholding()) as host:
        (host.card.directory / "model.onnx").write_bytes(b"other")
        with pytest.raises(EngineFailure) as failure:
            host.run(job_for(host, images))
    assert failure.value.reason == "broke"
    assert "sha256" in failure.value.text


def test_after_a_failure_the_next_job_runs_in_a_fresh_process(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, thresholding(), seconds=2.0) as host:
        host.run(job_for(host, images))
        first = host.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(EngineFailure):
            host.run(job_for(host, images))
        findings = host.run(job_for(host, images))
        assert findings.segmentation is not None
        assert host.pid not in (None, first)


def test_a_death_between_two_jobs_costs_no_job(tmp_path: Path, images: tuple[ImageFile, ...]) -> None:
    with host_of(tmp_path, thresholding()) as host:
        host.run(job_for(host, images))
        first = host.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: host.pid is None, 5, "the death is seen")
        assert host.run(job_for(host, images)).segmentation is not None


def test_a_heartbeat_that_fails_abandons_the_job_and_ends_its_process(
    busy: EngineHost, images: tuple[ImageFile, ...]
) -> None:
    seen: list[int] = []

    def lost() -> None:
        assert busy.pid is not None
        seen.append(busy.pid)
        raise RuntimeError("the lease is lost")

    with pytest.raises(RuntimeError, match="lease"):
        busy.run(job_for(busy, images), heartbeat=lost)
    wait_for(lambda: not alive(seen[0]), 2, "the abandoned process is gone")


def test_close_ends_a_running_job(busy: EngineHost, images: tuple[ImageFile, ...]) -> None:
    running = Running(busy, job_for(busy, images))
    pid = running.pid()
    busy.close()
    assert running.end().reason == "died"
    assert not alive(pid)


PARENT = """
import sys
from pathlib import Path
from inference.card import load_card
from inference.engine import ImageFile, Job
from inference.host import EngineHost

card = load_card(Path(sys.argv[1]))
host = EngineHost(card, folder=card.directory.parent)
files = tuple(ImageFile(Path(p).stem, Path(p)) for p in sys.argv[2:])
host.run(Job(card.path, {"ct": files}), heartbeat=lambda: print(host.pid, flush=True))
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["in a C loop", "stopped"])
def test_the_engine_dies_within_two_seconds_of_its_parent(
    tmp_path: Path, images: tuple[ImageFile, ...], stopped: bool
) -> None:
    card = write_model(tmp_path, segmentation_card(), endless())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(card), *(str(f.path) for f in images)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        wait_for(lambda: under_way(tmp_path), 60, "the engine has its job")
        pid = int(parent.stdout.readline())
        assert alive(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        wait_for(lambda: not alive(pid), 2, "the engine follows its parent")
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


MEASURING = """
import sys
from pathlib import Path
from inference.card import load_card
from inference.engines.tune import measure

measure(load_card(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_measured_ends_with_the_command_that_measures(tmp_path: Path, number: signal.Signals) -> None:
    card = write_model(tmp_path, segmentation_card(), endless())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", MEASURING, str(card), str(tmp_path / "cache")],
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    def measured() -> list[int]:
        # One that has its runtime by now, and so is past its first lines.
        return [one for one in children(parent.pid) if "onnxruntime" in Path(f"/proc/{one}/maps").read_text()]

    try:
        wait_for(lambda: bool(measured()), 60, "a way is measured")
        (pid,) = measured()
        assert list(scratch.glob("overread-*"))
        parent.send_signal(number)
        # A command that is told to end takes its files with it; one that is killed cannot.
        assert parent.wait(10) == (128 + number if number == signal.SIGTERM else -number)
        assert number == signal.SIGKILL or not list(scratch.glob("overread-*"))
        wait_for(lambda: not alive(pid), 2, "the measured process follows")
    finally:
        parent.kill()
        parent.wait()


def test_control_c_at_the_terminal_leaves_the_engine_to_its_supervisor(
    busy: EngineHost, images: tuple[ImageFile, ...]
) -> None:
    running = Running(busy, job_for(busy, images))
    pid = running.pid()
    assert os.getpgid(pid) == pid != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    beats = running.beats
    wait_for(lambda: running.beats > beats + 1, 10, "the job goes on")
    assert alive(pid)
    busy.close()
    running.end()


def test_the_resident_memory_of_a_process_is_what_the_kernel_says() -> None:
    assert resident_bytes(os.getpid()) > 10 * 2**20
    assert resident_bytes(2**22 + 1) == 0


def test_the_engines_process_holds_neither_node_nor_storage_nor_torch_nor_the_nodes_secrets(
    tmp_path: Path, images: tuple[ImageFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OVERREAD__HTTP__TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "NVIDIA_API_KEY", "https_proxy"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("ORT_LOG", "1")
    with host_of(tmp_path, thresholding()) as host:
        host.run(job_for(host, images))
        environment = Path(f"/proc/{host.pid}/environ").read_bytes().split(b"\0")
        assert not [one for one in environment if b"s3cret" in one]
        assert b"ORT_LOG=1" in environment
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, inference.child; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"node", "storage", "torch", "onnxruntime", "highdicom", "pynetdicom"} & set(loaded)


def test_an_engines_process_gets_beside_what_it_needs_only_what_its_card_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = {"url": "grpcs://models:1", "model": "m", "version": "1", "token_environment": "MODEL_TOKEN"}
    path = write_model(tmp_path, segmentation_card(), thresholding())
    plain = load_card(path)
    named = plain.model_copy(update={"kserve": KServe.model_validate(server)})
    for name in ("MODEL_TOKEN", "CUDA_VISIBLE_DEVICES", "LC_ALL", "HOSPITAL", "TORCH_API_TOKEN"):
        monkeypatch.setenv(name, "0")
    given = set(environment_of(plain))
    assert {"PATH", "CUDA_VISIBLE_DEVICES", "LC_ALL"} <= given
    assert not {"MODEL_TOKEN", "HOSPITAL", "TORCH_API_TOKEN"} & given
    assert set(environment_of(named)) - given == {"MODEL_TOKEN"}


def test_a_job_that_comes_to_a_process_that_another_has_ended_is_not_blamed_for_it(tmp_path: Path) -> None:
    card = load_card(write_model(tmp_path, segmentation_card(resources=LIMITS), thresholding()))
    folder = tmp_path / "engine"
    folder.mkdir()
    process = EngineProcess(card, folder)
    try:
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: process.loading.wait(0), 30, "the process is over")
        late = process.submit(lambda number: folder / f"job-{number}.json")
        with pytest.raises(EngineFailure, match="SIGKILL") as failure:
            late.result()
        assert (failure.value.reason, process.loading.wait(0)) == ("interrupted", True)
        with pytest.raises(EngineFailure) as own:
            process.loading.result()
        assert own.value.reason == "died"
    finally:
        process.close()


def test_a_process_that_cannot_be_started_waits_only_for_what_the_machine_may_have_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = load_card(write_model(tmp_path, segmentation_card(resources=LIMITS), thresholding()))

    def why(folder: Path) -> tuple[str, bool]:
        with pytest.raises(EngineFailure, match="could not be started") as failure:
            EngineProcess(card, folder).close()
        return failure.value.reason, failure.value.counts

    assert why(tmp_path / "gone") == ("died", True)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No descriptor is left for a pipe.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        lacking = why(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert lacking == ("no-room", False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert why(tmp_path) == ("died", True)


@pytest.fixture(scope="module")
def good_and_bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]:
    """Images that a poisoned model answers, and some that it cannot stand."""
    hu = np.full((4, 16, 16), -1000)
    hu[:, 4:8, 4:8] = 500
    poison = hu.copy()
    poison[:, 4:8, 4:8] = 3000
    good, bad = (
        tuple(ImageFile(p.stem, p) for p in ct_series(tmp_path_factory.mktemp("ct"), one)) for one in (hu, poison)
    )
    return good, bad


def crowd(
    host: EngineHost, sets: list[tuple[ImageFile, ...]], heartbeats: dict[int, Callable[[], None]] | None = None
) -> list[object]:
    """Run a job a thread; each ends with its findings or with what it raised."""
    ended: list[object] = [None] * len(sets)

    def one(number: int) -> None:
        try:
            ended[number] = host.run(job_for(host, sets[number]), heartbeat=(heartbeats or {}).get(number))
        except (EngineFailure, RuntimeError) as failure:
            ended[number] = failure

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ended


def reasons(ended: list[object]) -> list[str]:
    return [one.reason if isinstance(one, EngineFailure) else type(one).__name__ for one in ended]


@pytest.mark.parametrize(
    ("kind", "resources", "reason"),
    [
        ("hangs", {"seconds": 2.0}, "overran-time"),
        ("grows", {"memory_mb": 600}, "overran-memory"),
        ("breaks", {}, "broke"),
    ],
)
def test_one_of_several_jobs_that_goes_wrong_fails_alone_and_memory_comes_back(
    tmp_path: Path,
    good_and_bad: tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]],
    kind: str,
    resources: dict[str, float],
    reason: str,
) -> None:
    good, bad = good_and_bad
    with host_of(tmp_path, poisoned(kind), concurrency=4, **resources) as host:
        ended = crowd(host, [good, bad, good, good])
        assert reasons(ended) == ["Findings", reason, "Findings", "Findings"]
        assert host.run(job_for(host, good)).segmentation is not None
        assert host.pid is not None
        assert resident_bytes(host.pid) < 400 * 2**20
        assert len(list(tmp_path.glob("engine-*"))) == 1


def test_an_engine_that_is_killed_with_several_jobs_in_it_costs_none_of_them(
    tmp_path: Path, good_and_bad: tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]
) -> None:
    good, _ = good_and_bad
    with host_of(tmp_path, poisoned("waits", 500_000), concurrency=3) as host:
        host.load()
        first = host.pid
        assert first is not None

        def kill() -> None:
            wait_for(lambda: len(list(tmp_path.glob("engine-*/job-*.json"))) == 3, 30, "all are under way")
            os.kill(first, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        ended = crowd(host, [good, good, good])
        killer.join()
        assert reasons(ended) == ["Findings"] * 3
        assert host.pid not in (None, first)


def test_a_job_that_is_abandoned_among_others_leaves_them_their_process(
    tmp_path: Path, good_and_bad: tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]
) -> None:
    good, _ = good_and_bad
    with host_of(tmp_path, poisoned("waits"), concurrency=2) as host:
        host.load()
        first = host.pid
        seen: list[int | None] = []

        def lost() -> None:
            raise RuntimeError("the lease is lost")

        ended = crowd(host, [good, good], {0: lost, 1: lambda: seen.append(host.pid)})
        assert isinstance(ended[0], RuntimeError)
        assert reasons(ended[1:]) == ["Findings"]
        assert set(seen) == {first}
