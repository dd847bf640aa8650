"""C-FIND at many studies, beside Orthanc: exact patient id, leading-wildcard name, date range; and matching alone.

Run it as ``python -m benchmarks.find --studies 100000``. Both archives are filled first, which takes minutes (with
100,000 studies some 4 on each side); ``--keep FOLDER`` keeps them for the next run, and goes on where filling stopped.
Ours is filled through the function that receivers index with, without pixel files; Orthanc over HTTP, without fsync.

Then the same searches go to both, one after the other and in turns: over one association of a client that only counts
the answers (TCP_NODELAY on both sides), and as whole runs of dcmtk's findscu. Orthanc is tuned: no plugins or scripts,
TCP_NODELAY, long PDUs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from demo.peers import Process, find_orthanc, free_port, tcp_open, wait_until
from storage.database import Database, migrate
from storage.headers import Header
from storage.index import Origin, insert_instance
from storage.keys import Key, Level, Query, parse_key
from storage.query import search
from tests.receiver import Receiver

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
FINDSCU = "/usr/bin/findscu"
SYLLABLES = (
    "an",
    "be",
    "ko",
    "ri",
    "ta",
    "mi",
    "lo",
    "na",
    "su",
    "vel",
    "dor",
    "mar",
    "kin",
    "sen",
    "tor",
    "ash",
    "er",
)
#: What a worklist of a workstation shows; the counts are what costs an archive most.
USUAL = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyDescription",
    "StudyInstanceUID",
)
COUNTED = (*USUAL, "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
REPEATS = 20
GROUP = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep what was filled in this folder")
    chosen = parser.parse_args(arguments)
    console = Console()
    with ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        receiver = Receiver(folder=folder / "overread")
        database = _fill_ours(receiver, chosen.studies, console)
        stack.callback(database.close)
        orthanc = Orthanc(folder / "orthanc")
        stack.callback(orthanc.stop)
        orthanc.start()
        orthanc.fill(chosen.studies, console)
        receiver.start()
        stack.callback(receiver.stop)
        searches = _searches(chosen.studies)
        _print_inside(database, searches, console)
        _print_peers(receiver, orthanc, searches, chosen.studies, chosen.runs, console)
    return 0


def _searches(studies: int) -> dict[str, dict[str, str]]:
    """Return the searches by what they are called: few answers, some, and as many as a month has."""
    one = Patient.of(studies // 3)
    given = one.name.partition("^")[2]
    return {
        "exact patient id": {"PatientID": one.patient_id},
        "leading-wildcard name": {"PatientName": f"*^{given}"},
        "name with wildcards at both ends": {"PatientName": f"*{given.lower()}*"},
        "date range, one day": {"StudyDate": "20200115-20200115"},
        "date range, one month": {"StudyDate": "20200101-20200131"},
    }


class Patient:
    """A study's patient and date, from its number alone: the same on both sides and in every run."""

    def __init__(self, name: str, patient_id: str, study_date: str) -> None:
        self.name, self.patient_id, self.study_date = name, patient_id, study_date

    @classmethod
    def of(cls, number: int) -> Patient:
        chance = random.Random(number)
        parts = ["".join(chance.choices(SYLLABLES, k=chance.randint(2, 4))).capitalize() for _ in range(2)]
        date = f"20{chance.randint(10, 24)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
        # Some patients have several studies.
        return cls("^".join(parts), f"P{chance.randrange(10**7):07d}" if number % 3 else f"P{number:07d}", date)


def _dataset(number: int) -> Dataset:
    patient = Patient.of(number)
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.PatientName, dataset.PatientID = patient.name, patient.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = f"19{number % 90 + 10}0101", "FM"[number % 2]
    dataset.StudyDate, dataset.StudyTime = patient.study_date, "101112"
    dataset.AccessionNumber, dataset.StudyID = f"A{number}", str(number)
    dataset.StudyDescription, dataset.SeriesDescription = "CT CHEST ROUTINE", "thin"
    dataset.ReferringPhysicianName = "Referring^Doctor"
    dataset.StudyInstanceUID = f"1.2.826.0.1.3680043.10.1.{number}"
    dataset.SeriesInstanceUID = f"{dataset.StudyInstanceUID}.1"
    dataset.SOPInstanceUID = f"{dataset.StudyInstanceUID}.1.1"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, 1
    dataset.Rows = dataset.Columns = 512
    return dataset


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _fill_ours(receiver: Receiver, studies: int, console: Console) -> Database:
    receiver.folder.mkdir(parents=True, exist_ok=True)
    migrate(receiver.url)
    database = Database(receiver.url)
    with database.read() as connection:
        held = int(connection.exec_driver_sql("SELECT count(*) FROM study").scalar_one())
    origin = Origin(calling_ae_title="BENCHMARK")
    began = time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("filling Overread", total=studies, completed=held)
        for first in range(held, studies, GROUP):
            with database.write() as connection:
                for number in range(first, min(first + GROUP, studies)):
                    insert_instance(connection, _header(number), f"none-{number}", origin, made_here=False)
            progress.update(task, completed=min(first + GROUP, studies))
    database.checkpoint()
    if studies > held:
        console.print(f"Overread: {studies - held} studies in {time.monotonic() - began:.0f} s")
    return database


def _header(number: int) -> Header:
    dataset = _dataset(number)
    return Header(
        study_instance_uid=str(dataset.StudyInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=CT,
        transfer_syntax_uid=EXPLICIT,
        identity={},
        device_uids=frozenset(),
        manufacturers=frozenset(),
        digest=f"{number:064x}",
        size=1,
        source=dataset,
    )


class Orthanc:
    """An Orthanc tuned for what is measured; its storage stays where it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._http, self.port = free_port(), free_port()
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        binary = find_orthanc()
        if binary is None:
            sys.exit("Orthanc is not installed (Debian package orthanc)")
        storage = str(self._folder / "storage")
        Path(storage).mkdir(parents=True, exist_ok=True)
        settings = {
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "StorageCompression": False,
            "StoreMD5ForAttachments": False,
            # So that filling does not take an hour; searches write nothing.
            "SyncStorageArea": False,
            "SaveJobs": False,
            "HttpPort": self._http,
            "HttpThreadsCount": 16,
            "KeepAlive": True,
            "TcpNoDelay": True,
            "AuthenticationEnabled": False,
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowFind": True,
            "MaximumPduLength": 131072,
            "LimitFindResults": 0,
            "StableAge": 100_000,
        }
        path = self._folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        self._process = Process(
            command=[binary, str(path)],
            log_path=self._folder / "orthanc.log",
            environment={"TCP_NODELAY": "1"},
        )
        self._process.start()
        wait_until(self._ready, 300, "Orthanc")

    def stop(self) -> None:
        """End it in order, so that its storage can be used again."""
        if self._process is not None:
            self._process.stop(60)

    def fill(self, studies: int, console: Console) -> None:
        """Bring it to so many studies; they are sent in the order of their numbers."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self._http}", timeout=600) as client:
            held = int(client.get("/statistics").json()["CountStudies"])
            began = time.monotonic()

            def send(number: int) -> None:
                client.post("/instances", content=_part10(number)).raise_for_status()

            with _progress(console) as progress, ThreadPoolExecutor(4) as senders:
                task = progress.add_task("filling Orthanc", total=studies, completed=held)
                for first in range(held, studies, GROUP):
                    list(senders.map(send, range(first, min(first + GROUP, studies))))
                    progress.update(task, completed=min(first + GROUP, studies))
            if studies > held:
                console.print(f"Orthanc: {studies - held} studies in {time.monotonic() - began:.0f} s")

    def _ready(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self._http}/system").status_code == 200 and tcp_open(self.port)


def _part10(number: int) -> bytes:
    dataset = _dataset(number)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    dataset.file_meta.MediaStorageSOPClassUID = CT
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _print_inside(database: Database, searches: Mapping[str, Mapping[str, str]], console: Console) -> None:
    """Measure what the search itself takes, without DIMSE: from the keys to the last answer as DICOM JSON."""
    table = Table(title="Matching inside the node (ms)")
    for column in ("search", "answers", "median", "least", "most"):
        table.add_column(column, justify="left" if column == "search" else "right")
    include = frozenset(parse_key(keyword, "").path[0] for keyword in COUNTED)
    for name, keys in searches.items():
        query = Query(keys=tuple(_keys(keys)), include=include)

        def ask(query: Query = query) -> int:
            return sum(1 for _ in search(database, Level.STUDY, query))

        count = ask()
        times = [_milliseconds(ask) for _ in range(REPEATS)]
        table.add_row(name, str(count), *(f"{one:.2f}" for one in (statistics.median(times), min(times), max(times))))
    console.print(table)


def _keys(keys: Mapping[str, str]) -> Iterator[Key]:
    return (parse_key(keyword, value) for keyword, value in keys.items())


def _print_peers(
    receiver: Receiver,
    orthanc: Orthanc,
    searches: Mapping[str, Mapping[str, str]],
    studies: int,
    runs: int,
    console: Console,
) -> None:
    for title, returned in (("what a list shows", USUAL), ("and modalities and counts", COUNTED)):
        table = Table(title=f"C-FIND at {studies} studies, one association, {title} (ms: median of {runs}, least-most)")
        for column in ("search", "answers", "Overread", "Orthanc", "Orthanc / Overread"):
            table.add_column(column, justify="left" if column == "search" else "right")
        for name, keys in searches.items():
            asked = {**dict.fromkeys(returned, ""), **keys}
            ours, theirs, counts = _in_turns(
                lambda peer, asked=asked: _associated(peer, asked), (receiver.port, orthanc.port), runs
            )
            if len(counts) != 1:
                console.print(f"[red]{name}: the two found different numbers: {sorted(counts)}[/red]")
            table.add_row(name, str(max(counts)), _spread(ours), _spread(theirs), _ratio(theirs, ours))
        console.print(table)
    if not Path(FINDSCU).exists():
        console.print(f"{FINDSCU} is not installed (Debian package dcmtk): no whole runs of it")
        return
    table = Table(title=f"The same as whole runs of findscu (ms: median of {runs}, least-most)")
    for column in ("search", "Overread", "Orthanc", "Orthanc / Overread"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for name, keys in searches.items():
        asked = {**dict.fromkeys(USUAL, ""), **keys}
        ours, theirs, _ = _in_turns(
            lambda peer, asked=asked: (_milliseconds(lambda: _findscu(peer, asked)), 0),
            (receiver.port, orthanc.port),
            runs,
        )
        table.add_row(name, _spread(ours), _spread(theirs), _ratio(theirs, ours))
    console.print(table)


def _in_turns(
    measure: Callable[[int], tuple[float, int]], peers: tuple[int, int], runs: int
) -> tuple[list[float], list[float], set[int]]:
    times: tuple[list[float], list[float]] = ([], [])
    counts: set[int] = set()
    for _ in range(runs):
        for those, peer in zip(times, peers, strict=True):
            taken, count = measure(peer)
            those.append(taken)
            counts.add(count)
    return *times, counts


def _associated(port: int, keys: Mapping[str, str]) -> tuple[float, int]:
    """Return the median of some searches over one association, and how many answers each had."""
    identifier = _identifier(keys)
    client = Client("127.0.0.1", port, "OVERREAD")
    try:
        count = client.find(identifier)
        few = REPEATS if count < 200 else 3
        return statistics.median(_milliseconds(lambda: client.find(identifier)) for _ in range(few)), count
    finally:
        client.close()


def _findscu(port: int, keys: Mapping[str, str]) -> None:
    asked = [one for keyword, value in keys.items() for one in ("-k", f"{keyword}={value}")]
    command = [FINDSCU, "-S", "-aec", "OVERREAD", "-k", "QueryRetrieveLevel=STUDY", *asked, "127.0.0.1", str(port)]
    subprocess.run(
        command,
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def _milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def _spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    return f"{statistics.median(theirs) / statistics.median(ours):.2f}"


class Client:
    """One association, asked as findscu asks: as quick as the peer is, since it only counts the answers."""

    def __init__(self, host: str, port: int, called: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", buffering=1 << 20)
        self._socket.sendall(_association_request(called))
        kind, _ = self._pdu()
        assert kind == 2, "the association was not accepted"
        self._message = 0

    def find(self, identifier: bytes) -> int:
        """Search and return how many answers came."""
        self._message = self._message % 60000 + 1
        self._socket.sendall(_pdu(3, _command(self._message)) + _pdu(2, identifier))
        answers = 0
        while True:
            kind, body = self._pdu()
            assert kind == 4, f"PDU type {kind} instead of data"
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">LBB", body, at)
                if control & 1:
                    status = _status(body[at + 6 : at + 4 + length])
                    if status not in (0xFF00, 0xFF01):
                        assert status == 0, f"status 0x{status:04X}"
                        return answers
                    answers += 1
                at += 4 + length

    def close(self) -> None:
        """Release the association."""
        self._socket.sendall(b"\5\0\0\0\0\4\0\0\0\0")
        self._pdu()
        self._socket.close()

    def _pdu(self) -> tuple[int, bytes]:
        head = self._file.read(6)
        assert len(head) == 6, "the peer hung up"
        kind, length = struct.unpack(">BxL", head)
        return kind, self._file.read(length)


def _identifier(keys: Mapping[str, str]) -> bytes:
    """Encode a search at study level."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    content = encode(identifier, False, True)
    assert content
    return content


def _association_request(called: str) -> bytes:
    asked = A_ASSOCIATE()
    asked.application_context_name = "1.2.840.10008.3.1.1.1"
    asked.calling_ae_title, asked.called_ae_title = "FINDER", called
    context = build_context(STUDY_ROOT, "1.2.840.10008.1.2.1")
    context.context_id = 1
    asked.presentation_context_definition_list = [context]
    longest = MaximumLengthNotification()
    longest.maximum_length_received = 131072
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3.4"
    asked.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(asked)
    return bytes(pdu.encode())


def _pdu(control: int, content: bytes) -> bytes:
    return struct.pack(">BxLLBB", 4, len(content) + 6, len(content) + 2, 1, control) + content


def _command(message: int) -> bytes:
    uid = STUDY_ROOT.encode() + b"\0" * (len(STUDY_ROOT) % 2)
    elements = struct.pack("<HHL", 0, 2, len(uid)) + uid
    for element, value in ((0x100, 0x20), (0x110, message), (0x700, 0), (0x800, 1)):
        elements += struct.pack("<HHLH", 0, element, 2, value)
    return struct.pack("<HHLL", 0, 0, 4, len(elements)) + elements


def _status(command: bytes) -> int:
    at = 0
    while at + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHL", command, at)
        if element == 0x900:
            return int(struct.unpack_from("<H", command, at + 8)[0])
        at += 8 + length
    raise AssertionError("an answer without a status")


if __name__ == "__main__":
    sys.exit(main())
