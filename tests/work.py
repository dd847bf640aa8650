"""Takes studies through the states of storage by the calls that the node itself uses, without its processes."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from inference.card import Card
from storage import attempts, lifecycle, outbox, studies, worklist
from storage.blobs import FileBlobs
from storage.database import Database
from storage.headers import read_header
from storage.index import Origin
from storage.intake import Archive, Receipt
from storage.records import Attempt, Document, Notification, Revision, Study, Workitem
from tests.dicom_factory import ct_series, radiograph

ROUTE, MODEL = "chest-ct", "lung-ct"


@dataclass(frozen=True)
class Holding:
    """A data directory and its database, as the node lays them out."""

    root: Path
    database: Database
    archive: Archive

    @property
    def blobs(self) -> FileBlobs:
        return FileBlobs(self.root / "blobs")

    @property
    def refused(self) -> FileBlobs:
        return FileBlobs(self.root / "quarantine")

    @property
    def incoming(self) -> Path:
        folder = self.root / "incoming"
        folder.mkdir(exist_ok=True)
        return folder

    @classmethod
    def at(cls, root: Path, database: Database) -> Holding:
        root.mkdir(parents=True, exist_ok=True)
        return cls(root, database, Archive(database, FileBlobs(root / "blobs"), FileBlobs(root / "quarantine")))

    def close(self) -> None:
        self.archive.close()

    def receive(self, paths: Iterable[Path], sender: str = "CT1") -> list[Receipt]:
        """Take copies of files in."""
        receipts = []
        for path in paths:
            copy = self.incoming / uuid.uuid4().hex
            shutil.copyfile(path, copy)
            receipts.append(self.archive.receive(copy, Origin(calling_ae_title=sender)))
        return receipts

    def study(self, folder: Path, slices: int = 3) -> Study:
        """Receive a small CT study."""
        uid = generate_uid()
        self.receive(ct_series(folder / uid, np.zeros((slices, 4, 4)), study_uid=uid))
        return self.again(uid)

    def again(self, study_instance_uid: str) -> Study:
        with self.database.read() as connection:
            return studies.by_uid(connection, study_instance_uid)

    def reopened(self, study: Study) -> Study:
        """Have a study judged anew, as an operator may ask."""
        with self.database.write() as connection:
            studies.reopen(connection, studies.get(connection, study.id), "asked for")
        return self.again(study.study_instance_uid)

    def judge(self, study: Study) -> Revision:
        """Open a revision of everything that is there."""
        with self.database.write() as connection:
            evidence = studies.evidence(connection, study.id)
            return studies.open_revision(
                connection,
                studies.get(connection, study.id),
                last_instance_id=evidence[-1].id,
                verdict={"quiet_seconds": 60, "instances": len(evidence)},
                reason="quiet for 60 s",
            )

    def schedule(
        self,
        study: Study,
        revision: Revision,
        *,
        route: str = ROUTE,
        inputs: str = "one",
        deliver: tuple[str, ...] = ("pacs",),
        routed: bool = True,
    ) -> Workitem:
        """Record a decision and schedule what it asks for."""
        with self.database.write() as connection:
            studies.record_decision(
                connection,
                revision,
                route=route,
                model=MODEL,
                matched=True,
                reasons=["Modality is CT (CT)"],
                not_analysed=None,
                deliver=deliver,
                notify=["emr"],
            )
            series = studies.series_of(connection, study.id)[0]
            workitem, _ = worklist.schedule(
                connection,
                worklist.Key(
                    study_id=study.id,
                    model=MODEL,
                    model_version="1.0",
                    model_digest="a" * 64,
                    device_uid="2.25.1",
                    input_digest=uuid.uuid5(uuid.NAMESPACE_OID, inputs).hex * 2,
                ),
                input_set={"ct": {"series_instance_uid": series.series_instance_uid, "sop_instance_uids": ["1", "2"]}},
                revision_id=revision.id,
                route=route,
                reason="thinnest of 1 series",
                deliver=deliver,
                notify=["emr"],
            )
            if routed and studies.revision(connection, revision.id).state == lifecycle.OPEN:
                lifecycle.transition(connection, "revision", revision.id, lifecycle.ROUTED, study_id=study.id)
        return workitem

    def schedule_all(self, study: Study, card: Card, urgency: str = "MEDIUM") -> Workitem:
        """Have a model read every instance of a study, judged anew; nothing is sent and nobody told."""
        revision = self.judge(study)
        with self.database.write() as connection:
            workitem, _ = worklist.schedule(
                connection,
                worklist.Key(
                    study_id=study.id,
                    model=card.name,
                    model_version=card.version,
                    model_digest=card.digest,
                    device_uid=card.device_uid,
                    input_digest=uuid.uuid4().hex * 2,
                ),
                input_set={
                    card.inputs[0].role: {
                        "series_instance_uid": studies.series_of(connection, study.id)[0].series_instance_uid,
                        "sop_instance_uids": [one.sop_instance_uid for one in studies.evidence(connection, study.id)],
                    }
                },
                revision_id=revision.id,
                route=ROUTE,
                reason="all that there is",
                deliver=(),
                notify=(),
                urgency=urgency,
            )
        return workitem

    def claim(self, owner: str = "worker-1", lease_seconds: float = 30) -> tuple[Workitem, Attempt]:
        with self.database.write() as connection:
            claimed = attempts.claim(connection, owner, lease_seconds)
        assert claimed is not None
        return claimed

    def document(self, folder: Path, study: Study) -> attempts.NewDocument:
        """Make an evidence document's bytes durable."""
        made = radiograph(folder / "made", np.zeros((4, 4)), study_uid=study.study_instance_uid)
        path = self.incoming / uuid.uuid4().hex
        shutil.copyfile(made, path)
        return attempts.NewDocument(kind="SR", header=read_header(path), blob=self.blobs.adopt(path))

    def complete(self, folder: Path, study: Study, workitem: Workitem, attempt: Attempt) -> list[Document]:
        new = self.document(folder, study)
        with self.database.write() as connection:
            return attempts.complete(
                connection, workitem, attempt, findings={"x": 1}, new_documents=[new], outcome="left lung 2000 mL"
            )

    def finished(self, folder: Path) -> tuple[Study, Revision, Workitem, Document]:
        """Bring a study as far as a document that waits at its destination."""
        study = self.study(folder)
        revision = self.judge(study)
        self.schedule(study, revision)
        workitem, attempt = self.claim()
        document = self.complete(folder, study, workitem, attempt)[0]
        return self.again(study.study_instance_uid), revision, workitem, document

    def message(self, study: Study, revision: Revision, says: bytes = b"one") -> Notification:
        """Store a message about a revision."""
        with self.database.write() as connection:
            made = outbox.add_notification(
                connection,
                study.id,
                revision.id,
                "emr",
                control_id=f"OR{uuid.uuid4().hex[:18]}",
                message=b"MSH|" + says,
                says=says,
            )
            if studies.revision(connection, revision.id).state == lifecycle.ROUTED:
                lifecycle.transition(connection, "revision", revision.id, lifecycle.REPORTED, study_id=study.id)
        return made

    def states(self, kind: str) -> list[str]:
        """Return the states of every row of a kind, in the order of their making."""
        from sqlalchemy import text

        with self.database.read() as connection:
            return list(connection.execute(text(f"SELECT state FROM {kind} ORDER BY id")).scalars())
