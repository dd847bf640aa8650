"""What the node answers peers that ask whether it keeps what they have stored (Storage Commitment, PS3.4 Annex J)."""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import decode, encode
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from sqlalchemy import text

from inference.registry import Registry
from node.settings import Settings
from node.workflow import control, steps
from node.workflow.models import Models
from node.workflow.way import Way
from storage.database import Database
from tests.commitment import WELL_KNOWN, Reports, ask, asking, listening, references, request, told
from tests.dicom_factory import ct_series
from tests.peers import free_port, wait_until
from tests.receiver import Receiver, receiving
from tests.system import push

CT, MR = str(CTImageStorage), str(MRImageStorage)
RETRY = {"first_seconds": 0.01, "maximum_seconds": 0.02, "refusals": 3}


@pytest.fixture(scope="module")
def shared_receiver() -> Iterator[Receiver]:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder,
        receiving(Path(folder) / "node") as running,
    ):
        yield running


@pytest.fixture
def receiver(shared_receiver: Receiver) -> Receiver:
    """Give receivers that know nothing yet of commitments; their instances stay from test to test."""
    database = Database(shared_receiver.url)
    with database.write() as connection:
        connection.execute(text("DELETE FROM commitment_reference"))
        connection.execute(text("DELETE FROM commitment"))
    database.close()
    return shared_receiver


def stored(receiver: Receiver, folder: Path, count: int = 2) -> list[tuple[str, str]]:
    """Push a few instances; return what they are."""
    files = ct_series(folder / generate_uid(), np.zeros((count, 4, 4)))
    push(files, receiver.port)
    return [(CT, str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)) for file in files]


@contextmanager
def walking(receiver: Receiver, **peers: Any) -> Iterator[Way]:
    """Give what the workflow of a node on this data directory stands on."""
    database = Database(receiver.url)
    try:
        yield Way(
            settings=Settings(peers=peers, retry=RETRY, routes=()),
            database=database,
            blobs=receiver.blobs,
            incoming=receiver.incoming,
            scratch=receiver.folder / "scratch",
            models=Models(Registry(()), Path("models")),
        )
    finally:
        database.close()


def peer(port: int | None, **more: Any) -> dict[str, Any]:
    where = {} if port is None else {"host": "127.0.0.1", "port": port}
    return {"ae_title": "MODALITY", "services": ["echo", "store", "commit"], "timeout_seconds": 5, **where, **more}


def encoded(dataset: Dataset) -> bytes:
    content = encode(dataset, False, True)  # Explicit VR Little Endian, which the node prefers
    assert content is not None
    return content


def states(receiver: Receiver) -> list[str]:
    return [row["state"] for row in receiver.rows("SELECT state FROM commitment ORDER BY id")]


def test_an_scu_that_waits_on_its_association_hears_there_what_is_held(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path)
    unknown, wrong = (CT, generate_uid()), (MR, held[1][1])
    reports = Reports()
    with asking(receiver.port, reports) as association:
        transaction = generate_uid()
        assert ask(association, request([held[0], unknown, wrong], transaction)).Status == 0x0000
        heard = reports.wait()
        wait_until(lambda: states(receiver) == ["ACKNOWLEDGED"], 5, "the acknowledgement")
    assert heard.TransactionUID == transaction
    assert told(heard) == ({held[0][1]}, {unknown[1]: 0x0112, held[1][1]: 0x0119})
    assert reports.event_types == [2]
    assert heard.RetrieveAETitle == "OVERREAD"


def test_everything_held_is_event_type_1_without_a_failed_sequence(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path)
    reports = Reports()
    with asking(receiver.port, reports) as association:
        ask(association, request(held))
        heard = reports.wait()
    assert told(heard) == ({uid for _, uid in held}, {})
    assert reports.event_types == [1]
    assert "FailedSOPSequence" not in heard


def test_an_instance_whose_bytes_are_gone_is_not_committed_to(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path, count=2)
    first, second = receiver.instances()[-2:]
    receiver.blobs.path(first["blob"]).unlink()
    path = receiver.blobs.path(second["blob"])
    path.write_bytes(path.read_bytes()[:-2])
    reports = Reports()
    with asking(receiver.port, reports) as association:
        ask(association, request(held))
        committed, failed = told(reports.wait())
    assert (committed, set(failed.values())) == (set(), {0x0110})


def test_images_that_come_while_a_report_goes_out_do_not_mix_with_it(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of many fragments, and C-STORE responses from another thread: each message stays whole."""
    contexts = [build_context(StorageCommitmentPushModel), build_context(CTImageStorage)]
    association = AE(ae_title="MODALITY").associate(
        "127.0.0.1", receiver.port, contexts=contexts, ae_title="OVERREAD", max_pdu=4096
    )
    assert association.is_established
    ids = {str(one.abstract_syntax): cast(int, one.context_id) for one in association.accepted_contexts}
    # pynetdicom's own SCU can have one message in flight: what comes is taken by hand.
    came: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(association, "_serve_request", lambda message, _context_id: came.put(message))
    unknown = encoded(request([(CT, generate_uid()) for _ in range(1000)]))
    action = N_ACTION()
    action.MessageID = 1000
    action.RequestedSOPClassUID = StorageCommitmentPushModel
    action.RequestedSOPInstanceUID = WELL_KNOWN
    action.ActionTypeID = 1
    action.ActionInformation = BytesIO(unknown)
    association.dimse.send_msg(action, ids[StorageCommitmentPushModel])
    rounds, statuses, reports = 100, [], []
    for number, file in enumerate(ct_series(tmp_path / "series", np.zeros((rounds, 4, 4)))):
        dataset = dcmread(file)
        store = C_STORE()
        store.MessageID = number + 1
        store.AffectedSOPClassUID = CTImageStorage
        store.AffectedSOPInstanceUID = dataset.SOPInstanceUID
        store.Priority = 2
        store.DataSet = BytesIO(encoded(dataset))
        association.dimse.send_msg(store, ids[CT])
    while len(statuses) < rounds or len(reports) < 1:
        message = came.get(timeout=20)
        if isinstance(message, C_STORE):
            statuses.append(message.Status)
        elif isinstance(message, N_EVENT_REPORT):
            assert message.EventInformation is not None
            reports.append(decode(message.EventInformation, False, True))
    association.abort()
    assert statuses == [0x0000] * rounds
    assert [len(one.FailedSOPSequence) for one in reports] == [1000]


@pytest.mark.parametrize(
    ("change", "other", "status"),
    [
        ({"TransactionUID": None}, {}, 0x0115),
        ({"TransactionUID": "1.2.x"}, {}, 0x0115),
        ({"ReferencedSOPSequence": None}, {}, 0x0115),
        ({"ReferencedSOPSequence": []}, {}, 0x0115),
        ({"ReferencedSOPSequence": references([(CT, "")])}, {}, 0x0115),
        ({"ReferencedSOPSequence": references([("", "1.2.3")])}, {}, 0x0115),
        ({}, {"action": 2}, 0x0123),
        ({}, {"instance_uid": "1.2.3"}, 0x0112),
    ],
    ids=["no transaction", "no uid", "no sequence", "empty sequence", "no instance", "no class", "action", "instance"],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_the_status_that_says_why(
    receiver: Receiver, change: dict[str, Any], other: dict[str, Any], status: int
) -> None:
    dataset = request([(CT, "1.2.3")])
    for keyword, value in change.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            with config.disable_value_validation():
                setattr(dataset, keyword, value)
    with asking(receiver.port, Reports()) as association:
        assert ask(association, dataset, **other).Status == status
        assert ask(association, request([(CT, "1.2.3")])).Status == 0x0000, "the association goes on"
    assert len(states(receiver)) == 1


def test_a_transaction_uid_stands_for_one_set_of_references(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path)
    transaction = generate_uid()
    reports = Reports()
    with asking(receiver.port, reports) as association:
        assert ask(association, request(held, transaction)).Status == 0x0000
        reports.wait()
        wait_until(lambda: states(receiver) == ["ACKNOWLEDGED"], 5, "the acknowledgement")
        assert ask(association, request(held[:1], transaction)).Status == 0x0115
        assert ask(association, request(held, transaction)).Status == 0x0000
        reports.wait(2)
    assert reports.heard[0] == reports.heard[1]
    assert len(states(receiver)) == 1


def test_ten_thousand_references_fit_and_are_answered_within_seconds(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path, count=1)
    pairs = held + [(CT, generate_uid()) for _ in range(9_999)]
    dataset = request(pairs)
    reports = Reports()
    began = time.process_time()
    with asking(receiver.port, reports) as association:
        association.dimse_timeout = 60
        assert ask(association, dataset).Status == 0x0000
        committed, failed = told(reports.wait(seconds=60))
    assert (committed, len(failed)) == ({held[0][1]}, 9_999)
    assert time.process_time() - began < 60


def test_a_peer_that_closes_at_once_is_called_with_its_report(quick_path: Path, tmp_path: Path) -> None:
    reports = Reports()
    with listening(reports) as port, receiving(quick_path / "node", peers={"ct": peer(port)}) as receiver:
        held = stored(receiver, tmp_path)
        with asking(receiver.port, on_same := Reports()) as association:
            assert ask(association, request(held)).Status == 0x0000
        with walking(receiver, ct=peer(port)) as way:
            [ct] = way.settings.peers.values()
            wait_until(lambda: steps.commit(way, ct), 10, "the report to be due")
            assert steps.commit(way, ct) == 0
        assert told(reports.wait()) == ({uid for _, uid in held}, {})
        assert states(receiver) == ["ACKNOWLEDGED"]
        assert on_same.heard == []


def test_a_report_survives_a_restart_and_says_the_same_at_every_try(quick_path: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = {"ct": peer(port, commitment_report="new")}
    receiver = Receiver(folder=quick_path / "node", peers=settings).start()
    try:
        held = stored(receiver, tmp_path)
        with asking(receiver.port, Reports()) as association:
            ask(association, request([*held, (CT, missing := generate_uid())]))
        receiver.stop()
        with walking(receiver, **settings) as way:
            [ct] = way.settings.peers.values()
            assert steps.commit(way, ct) == 1
            # Not there: waited for, however long it takes.
            for _ in range(RETRY["refusals"] + 1):  # type: ignore[operator]
                wait_until(lambda: steps.commit(way, ct), 5, "the next try")
            assert states(receiver) == ["PENDING"]
            receiver.blobs.path(receiver.instances()[0]["blob"]).unlink()
            with listening(reports := Reports(), port=port):
                wait_until(lambda: states(receiver) == ["ACKNOWLEDGED"] or steps.commit(way, ct) < 0, 5, "the report")
        assert told(reports.heard[-1]) == ({uid for _, uid in held}, {missing: 0x0112})
    finally:
        receiver.stop()


def test_a_peer_that_refuses_is_parked_shown_and_told_again_when_asked_for(quick_path: Path, tmp_path: Path) -> None:
    reports = Reports(status=0x0110)
    with listening(reports) as port:
        settings = {"ct": peer(port, commitment_report="new")}
        with receiving(quick_path / "node", peers=settings) as receiver, walking(receiver, **settings) as way:
            held = stored(receiver, tmp_path)
            with asking(receiver.port, Reports()) as association:
                ask(association, request(held))
            [ct] = way.settings.peers.values()
            wait_until(lambda: steps.commit(way, ct) * 0 or states(receiver) == ["PARKED"], 10, "parking")
            assert len(reports.heard) == RETRY["refusals"]
            with way.database.read() as connection:
                [item] = control.status(connection).parked
            assert item.target == "commitment:1"
            assert "0x0110" in item.reason
            assert "overread retry commitment:1" in item.todo
            reports.status = 0x0000
            assert control.retry(way.database, "commitment:1", by="me").changed == ["commitment:1: PARKED -> PENDING"]
            assert steps.commit(way, ct) == 1
            assert states(receiver) == ["ACKNOWLEDGED"]


def test_a_caller_that_nobody_can_call_is_parked_with_what_to_do(receiver: Receiver, tmp_path: Path) -> None:
    held = stored(receiver, tmp_path)
    # It takes no report: pynetdicom answers 0110 without a handler that does.
    association = AE(ae_title="MODALITY").associate(
        "127.0.0.1", receiver.port, contexts=[build_context(StorageCommitmentPushModel)], ae_title="OVERREAD"
    )
    assert ask(association, request(held)).Status == 0x0000
    wait_until(lambda: states(receiver) == ["PARKED"], 10, "parking")
    association.release()
    assert "MODALITY is no peer with a host" in receiver.rows("SELECT answer FROM commitment")[0]["answer"]


def test_a_peer_without_the_service_cannot_ask(quick_path: Path) -> None:
    settings = {"ct": {"ae_title": "MODALITY", "services": ["echo", "store"]}}
    with receiving(quick_path / "node", peers=settings) as receiver:
        contexts = [build_context(StorageCommitmentPushModel), build_context(Verification)]
        association = AE(ae_title="MODALITY").associate(
            "127.0.0.1", receiver.port, contexts=contexts, ae_title="OVERREAD"
        )
        assert [str(one.abstract_syntax) for one in association.accepted_contexts] == [str(Verification)]
        association.release()


def test_garbage_for_a_dataset_is_refused_and_the_association_goes_on(receiver: Receiver) -> None:
    with asking(receiver.port, Reports()) as association:
        [context] = association.accepted_contexts
        message = N_ACTION()
        message.MessageID = 7
        message.RequestedSOPClassUID = StorageCommitmentPushModel
        message.RequestedSOPInstanceUID = WELL_KNOWN
        message.ActionTypeID = 1
        message.ActionInformation = BytesIO(b"\x08\x00\x95\x11\xff\xff\xff\x7fabc")
        came: queue.Queue[Any] = queue.Queue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(association, "_serve_request", lambda message, _context_id: came.put(message))
            association.dimse.send_msg(message, context.context_id)  # type: ignore[arg-type]
            assert came.get(timeout=20).Status == 0x0115
        assert ask(association, request([(CT, "1.2.3")])).Status == 0x0000
