"""Starting, stopping and refusing to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from demo.peers import free_port, wait_until
from tests.system import OVERREAD, ROOT, Node, chest_ct, outliving, push


def _serve(config: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OVERREAD, "serve", "--config", str(config)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_sigterm_ends_it_cleanly_and_nothing_is_left(start_node: Callable[..., Node]) -> None:
    node = start_node()
    family = list(node.members().values())
    assert node.stop() == 0
    assert outliving(family, 2) == []
    lines = [json.loads(line) for line in node.log.splitlines() if line.strip()]
    assert lines[-1]["event"] == "stopped"


def test_every_line_of_its_log_is_one_json_object(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    _, files = chest_ct(tmp_path / "ct", PatientName="Hidden^Name", PatientID="HIDDEN-1")
    push(files, node.dimse_port)
    wait_until(lambda: "workitem completed" in node.log, 60, "the model", interval=0.2)
    node.stop()
    for line in node.log.splitlines():
        assert isinstance(json.loads(line), dict)
    assert "Hidden" not in node.log
    assert "HIDDEN" not in node.log


def test_a_second_one_on_the_same_data_directory_is_refused(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    other = Node(folder=tmp_path / "other", options={"data_dir": str(node.data_dir)})
    other.write_config()
    done = _serve(other.config)
    assert done.returncode == 1
    assert "is held by another node" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("section", ["dimse", "http"])
def test_a_second_one_on_the_same_port_is_refused(
    start_node: Callable[..., Node], tmp_path: Path, section: str
) -> None:
    node = start_node()
    taken = node.dimse_port if section == "dimse" else node.http_port
    other = Node(folder=tmp_path / "other", options={section: {"port": taken}})
    other.write_config()
    done = _serve(other.config)
    assert done.returncode == 1
    assert str(taken) in done.stdout + done.stderr
    assert f"choose another {section}.port" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("address", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machines_is_named_with_its_key(tmp_path: Path, address: str) -> None:
    node = Node(folder=tmp_path, options={"http": {"bind": address}, "allow_open_network": True})
    node.write_config()
    done = _serve(node.config)
    assert done.returncode == 2
    assert "http.bind: " in done.stderr
    assert address in done.stderr
    assert "dimse" not in done.stderr
    assert "Traceback" not in done.stderr


def test_only_its_user_may_read_the_data_directory_that_it_makes(start_node: Callable[..., Node]) -> None:
    node = start_node()
    assert node.data_dir.stat().st_mode & 0o777 == 0o700


def test_a_wrong_configuration_ends_with_status_2_and_names_file_key_and_what_was_expected(tmp_path: Path) -> None:
    node = Node(folder=tmp_path, options={"completion": {"quiet_secnds": 5}})
    node.write_config()
    done = _serve(node.config)
    assert done.returncode == 2
    assert "node.yaml: completion.quiet_secnds: unknown key" in done.stdout + done.stderr


def test_a_route_to_a_model_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    route = {"name": "a", "match": {"Modality": "CT"}, "models": ["no-such-model"]}
    node = Node(folder=tmp_path, options={"routes": [route]})
    node.write_config()
    done = _serve(node.config)
    assert done.returncode == 2
    assert "no model 'no-such-model'" in done.stdout + done.stderr


def test_listening_beyond_loopback_unguarded_is_refused(tmp_path: Path) -> None:
    node = Node(folder=tmp_path, options={"dimse": {"bind": "0.0.0.0"}})
    node.write_config()
    done = _serve(node.config)
    assert done.returncode == 2
    assert "dimse.bind" in done.stdout + done.stderr


def test_its_processes_end_within_two_seconds_of_the_parents_death(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node()
    _, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    wait_until(lambda: [one for one in node.members() if one.startswith("engine")], 60, "an engine", interval=0.1)
    family = [one for name, one in node.members().items() if name != "parent"]
    assert len(family) >= 6
    node.process._child.send_signal(signal.SIGKILL)  # type: ignore[union-attr]
    _, alive = psutil.wait_procs(family, timeout=2)
    # Whose parent is gone stays a zombie where the container has no init; it has ended all the same.
    assert [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("name", ["receiver-0", "web", "workflow", "performer-0"])
def test_a_process_that_is_killed_is_started_anew(start_node: Callable[..., Node], name: str) -> None:
    node = start_node(dimse_port=free_port())
    victim = node.members()[name]
    victim.send_signal(signal.SIGKILL)

    def back() -> bool:
        now = node.members().get(name)
        return now is not None and now.pid != victim.pid

    wait_until(back, 15, f"{name} to be started anew")
    wait_until(lambda: httpx.get(f"{node.url}/health/ready").status_code == 200, 15, "the node to be ready")
