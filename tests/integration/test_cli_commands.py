"""The command line as an operator has it: in processes of its own, beside a node's database, with its exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from storage import outbox
from tests.dicom_factory import ct_series
from tests.model_factory import segmentation_card, thresholding, write_model
from tests.peers import free_port, need
from tests.work import Holding

OVERREAD = Path(sys.executable).parent / "overread"


@pytest.fixture
def config(quick_path: Path) -> Path:
    """Give a configuration for the data directory of ``embedded``."""
    values: dict[str, Any] = {
        "data_dir": str(quick_path / "var"),
        "dimse": {"port": free_port()},
        "destinations": {"pacs": {"kind": "folder", "path": str(quick_path / "out")}},
        "models": str(Path("conf/models").absolute()),
        "routes": [
            {"name": "chest-ct", "match": {"Modality": "CT"}, "models": ["lung-ct"], "deliver": ["pacs"]},
        ],
    }
    path = quick_path / "node.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def changed(config: Path, **values: Any) -> Path:
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))
    return config


def overread(*arguments: object, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    need(OVERREAD.exists(), f"{OVERREAD} is not installed (pip install -e .)")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OVERREAD")}
    if config is not None:
        environment["OVERREAD_CONFIG"] = str(config)
    command = [str(OVERREAD), *(str(one) for one in arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_help_teaches_every_command_with_an_example() -> None:
    root = overread("--help")
    assert root.returncode == 0
    assert "not a medical device" in " ".join(root.stdout.split())
    names = ["serve", "explain", "status", "retry", "cancel", "rerun", "exclude", "pause", "resume", "send", "check"]
    names += ["backup", "restore", "studies"]
    for name in names:
        assert name in root.stdout
        shown = overread(name, "--help")
        assert shown.returncode == 0
        assert f"overread {name}" in shown.stdout.split("Example", 1)[1]
    assert "not a medical device" in overread("--version").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nimport node.cli\n"
        "print(sorted({'sqlalchemy', 'pydicom', 'fastapi', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_explain_tells_the_story_as_a_tree_and_as_json(embedded: Holding, tmp_path: Path, config: Path) -> None:
    study, _, workitem, _ = embedded.finished(tmp_path)
    tree = overread("explain", study.study_instance_uid, "--config", config)
    assert tree.returncode == 0, tree.stderr
    assert workitem.uid in tree.stdout
    as_json = overread("explain", study.study_instance_uid, "--json", config=config)
    assert json.loads(as_json.stdout)["workitems"][0]["uid"] == workitem.uid


def test_explaining_a_study_that_never_came_ends_with_status_1(embedded: Holding, config: Path) -> None:
    found = overread("explain", "1.2.3.4", config=config)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "overread: no study 1.2.3.4 has been received\n"


def test_status_names_a_target_that_retry_takes(embedded: Holding, tmp_path: Path, config: Path) -> None:
    study, *_ = embedded.finished(tmp_path)
    with embedded.database.write() as connection:
        outbox.park(connection, "delivery", 1, study_id=study.id, answer="0xA700 out of resources")
    parked = json.loads(overread("status", "--json", config=config).stdout)["parked"]
    assert [one["target"] for one in parked] == ["delivery:1"]
    assert "0xA700" in overread("status", config=config).stdout
    done = overread("retry", "delivery:1", "--by", "ann", config=config)
    assert (done.returncode, done.stdout) == (0, "done  delivery:1: PARKED -> PENDING\n")
    again = overread("retry", "delivery:1", config=config)
    assert (again.returncode, again.stdout) == (0, "as is delivery:1 is PENDING, not parked\n")
    assert embedded.states("delivery") == ["PENDING"]
    assert "retry asked for by ann" in overread("explain", study.study_instance_uid, "--events", config=config).stdout


def test_the_other_actions_work_beside_an_open_database(embedded: Holding, tmp_path: Path, config: Path) -> None:
    study, *_ = embedded.finished(tmp_path)
    uid = study.study_instance_uid
    for arguments in (
        ("rerun", uid),
        ("cancel", uid),
        ("pause", "destination", "pacs"),
        ("resume", "destination", "pacs"),
        ("exclude", uid),
        ("exclude", uid, "--undo"),
    ):
        found = overread(*arguments, config=config)
        assert (found.returncode, found.stderr) == (0, ""), arguments
        assert found.stdout.startswith("done"), arguments
    assert embedded.states("revision")[1:] == ["OPEN"], "a rerun is routed by the node once it runs"
    assert embedded.states("delivery") == ["PARKED"], "cancelled"
    assert overread("retry", "delivery:99", config=config).returncode == 1
    unknown = overread("pause", "destination", "nowhere", config=config)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no destination 'nowhere' is configured (there is: pacs)" in unknown.stderr


def test_a_wrong_configuration_is_explained_line_by_line_with_status_2(config: Path) -> None:
    changed(config, dimse={"port": 99999}, colour="blue")
    found = overread("check", config=config)
    assert found.returncode == 2
    assert f"{config}: dimse.port: " in found.stderr
    assert f"{config}: colour: unknown key" in found.stderr
    assert "Traceback" not in found.stderr
    assert overread("status", "--config", "/nowhere/node.yaml").returncode == 2


def test_a_node_that_never_ran_is_said_so(config: Path) -> None:
    found = overread("status", config=config)
    assert found.returncode == 1
    assert "no node has run" in found.stderr
    assert not (config.parent / "var").exists(), "asking makes nothing"


def test_check_passes_where_everything_answers_and_leaves_nothing(config: Path, embedded: Holding) -> None:
    (config.parent / "out").mkdir()
    before = sorted(config.parent.rglob("*"))
    found = overread("check", "--json", config=config)
    checks = {one["what"]: one for one in json.loads(found.stdout)}
    assert found.returncode == 0, found.stdout
    assert {"model lung-ct 1.0.0", "route chest-ct", "database", "data_dir", "destination pacs"} <= set(checks)
    assert [path for path in sorted(config.parent.rglob("*")) if "sqlite" not in path.name] == [
        path for path in before if "sqlite" not in path.name
    ]


def test_check_names_what_does_not_answer_and_what_to_do(config: Path) -> None:
    port = free_port()
    changed(
        config,
        peers={"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": port}},
        destinations={
            "pacs": {"kind": "dimse", "peer": "pacs"},
            "web": {"kind": "stow", "url": f"http://127.0.0.1:{port}/dicom-web"},
        },
        notifiers={"emr": {"kind": "hl7", "host": "127.0.0.1", "port": port}},
    )
    found = overread("check", "--json", config=config)
    checks = {one["what"]: one for one in json.loads(found.stdout)}
    assert found.returncode == 1
    for what, key in (
        ("peer pacs", "peers.pacs"),
        ("destination web", "destinations.web"),
        ("notifier emr", "notifiers.emr"),
    ):
        assert checks[what]["passed"] is False
        assert key in checks[what]["todo"]


def test_check_finds_a_model_whose_bytes_are_not_its_cards(config: Path) -> None:
    models = config.parent / "models" / "lung-ct"
    models.mkdir(parents=True)
    for file in Path("conf/models/lung-ct").glob("*.*"):
        (models / file.name).write_bytes(file.read_bytes() + (b"\0" if file.suffix == ".onnx" else b""))
    changed(config, models=str(models.parent))
    found = overread("check", config=config)
    assert found.returncode == 1
    assert "sha256" in found.stdout


@pytest.mark.parametrize(
    ("file", "tensors", "told"),
    [
        (b"rubbish", {}, "model.onnx is no ONNX file"),
        (None, {"image": "picture"}, "tensors.image: model.onnx has no input 'picture' (its inputs: hu, spacing)"),
        (None, {"output": "mask"}, "tensors.output: model.onnx has no output 'mask' (its outputs: labels)"),
    ],
)
def test_check_finds_a_model_that_its_hash_vouches_for_and_no_engine_loads(
    config: Path, file: bytes | None, tensors: dict[str, str], told: str
) -> None:
    names = {"image": "hu", "spacing": "spacing", "output": "labels"} | tensors
    model = thresholding() if file is None else file
    write_model(config.parent / "models", segmentation_card(tensors=names), model)
    routes = [{"name": "ct", "match": {"Modality": "CT"}, "models": ["blobs"]}]
    changed(config, models=str(config.parent / "models"), routes=routes, destinations={})
    found = overread("check", "--json", config=config)
    (model_check,) = [one for one in json.loads(found.stdout) if one["what"] == "model blobs 1.0.0"]
    assert (found.returncode, model_check["passed"]) == (1, False)
    assert told in model_check["found"]
    assert "card.yaml" in model_check["todo"]


def test_check_has_a_remedy_for_a_wrong_database_a_file_as_data_dir_and_two_equal_ports(config: Path) -> None:
    (config.parent / "models").mkdir()
    (config.parent / "file").write_text("")
    common: dict[str, Any] = {"models": str(config.parent / "models"), "routes": [], "destinations": {}}
    changed(config, **common, data_dir=str(config.parent / "file"), database={"url": "no URL:pass-word"})
    changed(config, dimse={"port": 8080}, http={"port": 8080})
    found = overread("check", "--json", config=config)
    checks = {one["what"]: one for one in json.loads(found.stdout)}
    assert {what for what, one in checks.items() if not one["passed"]} >= {"ports", "database", "data_dir"}
    assert "both 8080" in checks["ports"]["found"]
    assert "is a file" in checks["data_dir"]["found"]
    assert "postgresql+psycopg://" in checks["database"]["todo"]
    assert "pass-word" not in found.stdout
    changed(config, database={"url": "postgresql+pg8000://h/x"})
    absent = {one["what"]: one for one in json.loads(overread("check", "--json", config=config).stdout)}["database"]
    assert (absent["passed"], absent["todo"]) == (False, '.venv/bin/pip install -e ".[postgresql]"')


def test_send_pushes_a_folder_and_names_what_was_not_stored(tmp_path: Path, config: Path) -> None:
    stored: list[str] = []
    refused: set[str] = set()

    def handle(event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in refused:
            return 0xA700
        stored.append(uid)
        return 0x0000

    ae = AE(ae_title="PACS")
    ae.add_supported_context(CTImageStorage)
    ae.add_supported_context(Verification)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    try:
        paths = ct_series(tmp_path / "ct", np.zeros((3, 4, 4)))
        (tmp_path / "ct" / "notes.txt").write_text("no dicom")
        sent = overread("send", tmp_path / "ct", "--to", f"PACS@127.0.0.1:{port}", "--calling", "CT1")
        assert sent.returncode == 0, sent.stderr
        assert sorted(stored) == sorted(path.stem for path in paths)
        assert "3 of 3 objects stored" in sent.stdout
        assert "notes.txt" in sent.stderr
        refused.add(paths[1].stem)
        failed = overread("send", tmp_path / "ct", "--to", f"PACS@127.0.0.1:{port}")
        assert failed.returncode == 1
        assert "2 of 3 objects stored" in failed.stdout
        assert str(paths[1]) in failed.stderr
        study = pydicom.dcmread(paths[0]).StudyInstanceUID
        assert f"study {study}: 2 stored" in failed.stdout
    finally:
        server.shutdown()
    gone = overread("send", tmp_path / "ct", "--to", f"PACS@127.0.0.1:{port}")
    assert gone.returncode == 1
    assert gone.stdout.splitlines() == [f"0 of 3 objects stored at PACS@127.0.0.1:{port}"]
    left_out, not_stored, remedy = gone.stderr.splitlines()
    assert "notes.txt" in left_out
    assert "not stored: 3 files, because: " in not_stored, "what befell all alike is said once"
    assert f"check that PACS runs, listens at 127.0.0.1:{port}" in remedy
    assert overread("send", tmp_path / "ct", "--to", "PACS").returncode == 2


def test_send_says_where_there_is_nothing_to_send_and_how_to_start_the_node(tmp_path: Path, config: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = overread("send", tmp_path / "empty", config=config)
    assert (empty.returncode, empty.stdout) == (1, "")
    assert empty.stderr == f"overread: no DICOM file in {tmp_path / 'empty'}\n"
    absent = overread("send", tmp_path / "absent", config=config)
    assert (absent.returncode, absent.stderr) == (1, f"overread: {tmp_path / 'absent'}: no such file or folder\n")
    ct_series(tmp_path / "ct", np.zeros((2, 4, 4)))
    down = overread("send", tmp_path / "ct", config=config)
    assert down.returncode == 1
    assert down.stderr.count("not stored") == 1
    assert f"overread serve --config {config}" in down.stderr


def test_studies_lists_what_came_last_with_its_outcome(embedded: Holding, tmp_path: Path, config: Path) -> None:
    assert "no study has been received" in overread("studies", config=config).stdout
    first, *_ = embedded.finished(tmp_path / "first")
    second = embedded.study(tmp_path / "second")
    listed = json.loads(overread("studies", "--json", config=config).stdout)
    assert [(one["study_instance_uid"], one["state"], one["outcome"]) for one in listed] == [
        (second.study_instance_uid, "RECEIVING", "receiving"),
        (first.study_instance_uid, "COMPLETE", "running"),
    ]
    assert (listed[1]["modalities"], listed[1]["instances"]) == (["CT"], 3)
    table = overread("studies", "--limit", 1, config=config)
    (line,) = table.stdout.splitlines()
    assert table.stderr == ""
    assert line.startswith(second.study_instance_uid)


def test_backup_and_restore_from_the_command_line(embedded: Holding, tmp_path: Path, config: Path) -> None:
    study, *_ = embedded.finished(tmp_path)
    archive = config.parent / "node.tar.gz"
    taken = overread("backup", archive, config=config)
    assert taken.returncode == 0, taken.stderr
    assert overread("backup", archive, config=config).returncode == 1
    nowhere = overread("backup", tmp_path / "nowhere" / "node.tar", config=config)
    assert nowhere.returncode == 1
    assert f"{tmp_path / 'nowhere'}: no such folder" in nowhere.stderr
    refused = overread("restore", archive, config=config)
    assert refused.returncode == 1, "the directory is not empty"
    assert "overread.sqlite" in refused.stderr, "it says what it found"
    changed(config, data_dir=str(config.parent / "restored"))
    put_back = overread("restore", archive, config=config)
    assert put_back.returncode == 0, put_back.stderr
    assert "1 deliveries" in put_back.stdout
    assert overread("explain", study.study_instance_uid, config=config).returncode == 0


def test_help_answers_at_once() -> None:
    quickest = min(_seconds("--help") for _ in range(3))
    assert quickest < 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    overread(*arguments)
    return time.perf_counter() - started
