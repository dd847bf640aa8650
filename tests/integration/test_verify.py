"""Everything that is held is read again and compared, beside a running node too."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest

from node.ops.verify import verify
from storage import chores, damage
from storage.errors import NotDicom, Unknown
from storage.reconcile import reconcile
from tests.dicom_factory import ct_series
from tests.system import Node, push
from tests.work import Holding


def _flip(path: Path, at: int = -10) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _findings(holding: Holding, **options: object) -> set[tuple[str, str, str]]:
    report = verify(holding.database, holding.blobs, holding.refused, **options)  # type: ignore[arg-type]
    return {(one.kind, one.what, one.blob) for one in report.findings}


def _variant_of(folder: Path, path: Path) -> Path:
    dataset = pydicom.dcmread(path)
    dataset.StudyDescription = "coerced"
    changed = folder / "changed.dcm"
    dataset.save_as(changed)
    return changed


def test_instances_variants_documents_and_refused_bytes_are_all_read(holding: Holding, tmp_path: Path) -> None:
    study, *_ = holding.finished(tmp_path)
    paths = ct_series(tmp_path / "ct", np.zeros((2, 4, 4)))
    holding.receive(paths)
    holding.receive([_variant_of(tmp_path, paths[0])])
    bad = tmp_path / "bad"
    bad.write_bytes(b"no DICOM at all")
    with pytest.raises(NotDicom):
        holding.receive([bad])
    assert _findings(holding) == set()
    report = verify(holding.database, holding.blobs, holding.refused)
    assert report.files == len(list(holding.blobs.names())) + 1
    assert report.bytes > 5000
    for blob in holding.blobs.names():
        _flip(holding.blobs.path(blob))
    (refused,) = holding.refused.names()
    _flip(holding.refused.path(refused))
    found = _findings(holding)
    assert {blob for _, _, blob in found} == {*holding.blobs.names(), refused}
    assert {kind for kind, _, _ in found} == {"changed"}
    assert {what for _, what, _ in found} == {"instance", "variant", "quarantine"}
    of_study = _findings(holding, study_instance_uid=study.study_instance_uid)
    assert of_study < found
    assert len(of_study) == 4


def test_missing_changed_and_foreign_bytes_are_told_apart_and_forgotten_once_right(
    holding: Holding, tmp_path: Path
) -> None:
    holding.study(tmp_path, slices=4)
    gone, changed, foreign, right = sorted(holding.blobs.names())
    content = {blob: holding.blobs.path(blob).read_bytes() for blob in (gone, changed, foreign)}
    holding.blobs.delete(gone)
    _flip(holding.blobs.path(changed))
    holding.blobs.path(foreign).write_bytes(b"something else")
    assert _findings(holding) == {
        ("missing", "instance", gone),
        ("changed", "instance", changed),
        ("changed", "instance", foreign),
    }
    with holding.database.read() as connection:
        assert damage.counts(connection) == {"missing": 1, "changed": 2, "unreadable": 0}
        assert right not in {one.blob for one in damage.listed(connection)}
    for blob, data in content.items():
        holding.blobs.path(blob).write_bytes(data)
    assert _findings(holding) == set()
    with holding.database.read() as connection:
        assert sum(damage.counts(connection).values()) == 0


def test_what_is_sent_again_takes_the_place_of_a_file_that_was_changed_or_cut(holding: Holding, tmp_path: Path) -> None:
    paths = ct_series(tmp_path / "ct", np.zeros((3, 4, 4)))
    holding.receive(paths)
    changed, cut, whole = sorted(holding.blobs.names())
    _flip(holding.blobs.path(changed))
    assert _findings(holding) == {("changed", "instance", changed)}
    # What nobody has read since is known by its length alone.
    holding.blobs.path(cut).write_bytes(holding.blobs.path(cut).read_bytes()[:-20])
    assert sorted(one.outcome for one in holding.receive(paths)) == ["duplicate", "restored", "restored"]
    assert _findings(holding) == set()
    found = reconcile(holding.database, holding.blobs, holding.refused, holding.incoming)
    assert (found.adopted, found.removed) == (0, 2), "what was replaced does not come back as an orphan"
    assert whole in set(holding.blobs.names())
    assert len(list(holding.blobs.names())) == 3


def test_what_is_new_can_be_read_alone(holding: Holding, tmp_path: Path) -> None:
    holding.study(tmp_path, slices=2)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert verify(holding.database, holding.blobs, holding.refused, since=later).files == 0
    assert verify(holding.database, holding.blobs, holding.refused, since=later - timedelta(hours=2)).files == 2
    with pytest.raises(Unknown):
        verify(holding.database, holding.blobs, holding.refused, study_instance_uid="1.2.3")


def test_an_interrupted_run_goes_on_where_it_stopped(
    holding: Holding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding.study(tmp_path, slices=7)
    monkeypatch.setattr("node.ops.verify._BATCH", 3)

    def interrupt(done: int, total: int) -> None:
        assert total == 7
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(holding.database, holding.blobs, holding.refused, progress=interrupt)
    with holding.database.read() as connection:
        chore = chores.get(connection, "verify")
    assert chore is not None
    assert (chore.done, chore.ended_at) == (6, None)
    report = verify(holding.database, holding.blobs, holding.refused, resume=True)
    assert (report.resumed, report.files) == (True, 1)
    report = verify(holding.database, holding.blobs, holding.refused, resume=True)
    assert (report.resumed, report.files) == (False, 7)


def test_the_command_works_beside_a_running_node_and_its_status_says_what_is_wrong(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node()
    push(ct_series(tmp_path / "ct", np.zeros((3, 8, 8)), StudyDescription="HEAD"), node.dimse_port)
    assert "3 files" in node.run("verify").stdout
    blob = min((node.data_dir / "blobs").glob("*/*"))
    _flip(blob)
    done = node.run("verify", "--json", check=False)
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["kind"], finding["blob"]) == ("changed", blob.name)
    assert "changed" in node.run("status").stdout
    assert node.run("verify", "--since", "1h", check=False).returncode == 1
    wrong = node.run("verify", "--since", "yesterday", check=False)
    assert wrong.returncode == 2
    assert "expected a date" in wrong.stderr
