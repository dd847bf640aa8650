"""The whole node as a process beside real peers: what the tests of the main job stand on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pydicom
import pytest

from demo.peers import MllpReceiver, Orthanc, Process, find_orthanc, free_port, wait_until
from phantoms.thorax import make_head, make_thorax
from storage.database import Database
from tests.dicom_factory import ct_series
from tests.peers import need, need_program

ROOT = Path(__file__).resolve().parent.parent
#: Short, so that tests are; long enough for one push to stay one study on a busy machine.
QUIET_SECONDS = 1.5
#: The installed command, beside the Python that runs the tests.
OVERREAD = str(Path(sys.executable).with_name("overread"))
SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(kw_only=True)
class Node:
    """One ``overread serve`` with its own data directory and ports, which stay from one start to the next."""

    folder: Path
    pacs: Orthanc | None = None
    emr: MllpReceiver | None = None
    ae_title: str = "OVERREAD"
    options: Mapping[str, Any] = field(default_factory=dict)
    dimse_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    #: A command that runs the node, such as strace.
    wrap: Sequence[str] = ()
    _process: Process | None = None

    @property
    def config(self) -> Path:
        """Its node.yaml."""
        return self.folder / "node.yaml"

    @property
    def data_dir(self) -> Path:
        """Its data directory."""
        return self.folder / "var"

    @property
    def url(self) -> str:
        """Root of its HTTP services."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def process(self) -> Process:
        """The running parent."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """Everything that it has written."""
        return (self.folder / "node.log").read_text(errors="replace")

    def write_config(self) -> None:
        """Write node.yaml: the shipped routes and models, towards this test's peers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        peers: dict[str, Any] = {}
        destinations: dict[str, Any] = {}
        if self.pacs is not None:
            destinations["pacs"] = {"kind": "dimse", "peer": "pacs"}
            peers["pacs"] = {
                "ae_title": self.pacs.ae_title,
                "host": "127.0.0.1",
                "port": self.pacs.dimse_port,
                "timeout_seconds": 10,
            }
        notifiers: dict[str, Any] = {}
        if self.emr is not None:
            notifiers["emr"] = {"kind": "hl7", "host": "127.0.0.1", "port": self.emr.port, "timeout_seconds": 2}
        route = {
            "name": "chest-ct",
            "match": {"Modality": "CT", "any": [{"BodyPartExamined": "CHEST"}, {"StudyDescription": "*CHEST*"}]},
            "models": ["lung-ct"],
            "deliver": sorted(destinations),
            "notify": sorted(notifiers),
        }
        films = {**route, "name": "chest-radiograph", "match": {"Modality": ["CR", "DX"]}}
        films["models"] = ["chest-radiograph-demo"]
        values: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "dimse": {"ae_title": self.ae_title, "port": self.dimse_port},
            "http": {"port": self.http_port},
            "completion": {"quiet_seconds": QUIET_SECONDS},
            "retry": {"first_seconds": 0.3, "maximum_seconds": 2, "refusals": 3},
            "peers": peers,
            "destinations": destinations,
            "notifiers": notifiers,
            "models": str(ROOT / "conf" / "models"),
            "demonstration_models": True,
            "routes": [route, films],
        }
        for key, value in self.options.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        self.config.write_text(json.dumps(values), encoding="utf-8")

    def start(self, seconds: float = 60.0) -> Node:
        """Start it and wait until it is ready."""
        self.write_config()
        self._process = Process(
            command=[*self.wrap, OVERREAD, "serve", "--config", str(self.config)],
            log_path=self.folder / "node.log",
            environment={"PYTHONWARNINGS": "ignore", **self.environment},
        )
        self._process.start()

        def ready() -> bool:
            assert self.process.running, f"the node ended at once:\n{self.process.log_tail(40)}"
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200

        wait_until(ready, seconds, f"the node to be ready\n{self.process.log_tail(20)}")
        return self

    def stop(self) -> int | None:
        """Ask it to end; returns its exit status."""
        return None if self._process is None else self._process.stop(40)

    def members(self) -> dict[str, psutil.Process]:
        """Return the parent and every process under it, engines too, by what they are."""
        parent = psutil.Process(self.process.pid)
        found = {"parent": parent}
        names = _process_names(self.log)
        for child in parent.children():
            found[names.get(child.pid, f"process-{child.pid}")] = child
            with contextlib.suppress(psutil.NoSuchProcess):
                for engine in child.children():
                    found[f"engine-{engine.pid}"] = engine
        return found

    def kill(self, everything: bool = True) -> None:
        """Kill it with SIGKILL: the whole group, or the parent alone; waits until nothing of it is left."""
        family = list(self.members().values())
        if everything:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            os.kill(self.process.pid, signal.SIGKILL)
        assert not outliving(family, 10)
        self.process.stop()
        self._process = None

    def database(self) -> Database:
        """Open its database, for reading what it knows."""
        elsewhere = self.options.get("database", {}).get("url")
        return Database(elsewhere or f"sqlite:///{self.data_dir / 'overread.sqlite'}")

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run an ``overread`` command with this node's configuration."""
        done = subprocess.run(
            [OVERREAD, *arguments, "--config", str(self.config)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def story(self, study_uid: str) -> dict[str, Any]:
        """Return what ``overread explain`` tells."""
        told: dict[str, Any] = json.loads(self.run("explain", study_uid, "--json").stdout)
        return told


def outliving(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return which processes still run after so many seconds; one that is dead and not yet reaped does not run."""
    _, left = psutil.wait_procs(family, timeout=seconds)
    running = []
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                running.append(one)
    return running


def push(files: Iterable[Path], port: int, called: str = "OVERREAD", calling: str = "MODALITY") -> None:
    """Send files by dcmtk's storescu in one association."""
    storescu = need_program("/usr/bin/storescu", "dcmtk")
    done = subprocess.run(
        [storescu, "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def chest_ct(folder: Path, seed: int = 1, **attributes: Any) -> tuple[str, list[Path]]:
    """Write a small synthetic chest CT; returns its Study Instance UID and files."""
    phantom = make_thorax(seed, shape=(26, 96, 96), spacing=(10.0, 3.6, 3.6))
    return _written(folder, phantom.hu, (10.0, 3.6, 3.6), attributes)


def head_ct(folder: Path, seed: int = 1, **attributes: Any) -> tuple[str, list[Path]]:
    """Write a small synthetic head CT that calls itself a chest, as a wrong protocol would."""
    phantom = make_head(seed, shape=(20, 96, 96), spacing=(8.0, 2.4, 2.4))
    return _written(folder, phantom.hu, (8.0, 2.4, 2.4), attributes)


def results_in(pacs: Orthanc, study_uid: str) -> dict[str, int]:
    """Return how many SR and SEG objects the PACS holds in a study."""
    found = {"SR": 0, "SEG": 0}
    for modality in found:
        found[modality] = len(pacs.instances_of(study_uid, modality))
    return found


def _written(
    folder: Path, hu: np.ndarray, spacing: Sequence[float], attributes: dict[str, Any]
) -> tuple[str, list[Path]]:
    files = ct_series(folder, hu, spacing=spacing, origin=(-150.0, -150.0, -200.0), **attributes)
    return str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID), files


def _process_names(log: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for line in log.splitlines():
        if line.startswith("{") and '"process started"' in line:
            event = json.loads(line)
            names[int(event["pid"])] = str(event["role"])
    return names


@dataclass(frozen=True, kw_only=True)
class Site:
    """A node between a real PACS and a real receiver."""

    node: Node
    pacs: Orthanc
    emr: MllpReceiver

    def messages_about(self, study_uid: str) -> list[dict[str, Any]]:
        """Return the logged messages that name a study."""
        return [one for one in self.emr.messages() if study_uid in str(one["text"])]

    def wait_for_report(self, study_uid: str, count: int = 1, seconds: float = 90) -> list[dict[str, Any]]:
        """Wait until the receiver has had so many messages about a study; returns them."""

        def arrived() -> list[dict[str, Any]] | None:
            found = self.messages_about(study_uid)
            return found if len(found) >= count else None

        try:
            return wait_until(arrived, seconds, f"{count} messages about {study_uid}", interval=0.2)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.node.log[-6000:]}") from None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a node, its PACS and its EMR, shared by the tests of a module."""
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        pacs = Orthanc(folder=folder / "orthanc")
        stack.callback(pacs.stop, kill=True)
        emr = MllpReceiver(folder=folder / "emr")
        stack.callback(emr.stop)
        node = Node(folder=folder / "node", pacs=pacs.start(), emr=emr.start())
        stack.callback(node.stop)
        yield Site(node=node.start(), pacs=pacs, emr=emr)


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Give a function that starts one more node; all are stopped at the end, and a test that fails shows their logs."""
    started = 0
    with ExitStack() as stack:

        def start(**options: Any) -> Node:
            nonlocal started
            started += 1
            node = Node(folder=tmp_path / f"node-{started}", **options)
            stack.callback(node.stop)
            return node.start()

        yield start
