"""Senders that push without end, over C-STORE and STOW-RS, and know what was acknowledged to them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
from sqlalchemy import select

from node.dimse.partten import file_head
from storage import schema
from storage.blobs import FileBlobs
from storage.database import Database
from storage.headers import read_header
from tests.faults.hostile_datasets import CT, corpus
from tests.faults.wire import EXPLICIT, RELEASE, Line, associate_request, message, store_request

__all__ = ["Pushed", "differences", "pushing", "small_object"]

_UID_IN_CORPUS = b"1.2.826.0.1.3680043.8.498.1\0"
#: So many objects an association, then a new one.
_OBJECTS = 40
_SECONDS = 10.0


@dataclass
class Pushed:
    """What one sender knows: the digest of every dataset that was acknowledged, by its SOP Instance UID."""

    number: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    tried: int = 0
    lost_connections: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def pushing(ports: Sequence[int], stow: str | None = None, stow_senders: int = 1) -> Iterator[list[Pushed]]:
    """Push over one association to each of the ports, and by STOW-RS, until the block is left."""
    stop = threading.Event()
    pushed = [Pushed(number) for number in range(len(ports) + (stow_senders if stow else 0))]
    threads = [threading.Thread(target=_push, args=(port, one, stop)) for port, one in zip(ports, pushed, strict=False)]
    if stow:
        threads += [threading.Thread(target=_post, args=(stow, one, stop)) for one in pushed[len(ports) :]]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        yield pushed


def differences(database: Database, folder: Path, pushed: Sequence[Pushed]) -> list[str]:
    """Return where files, rows and what was acknowledged do not agree; nothing of it may be."""
    with database.read() as connection:
        i, v = schema.instance.c, schema.variant.c
        rows = {row.sop_instance_uid: row for row in connection.execute(select(i.sop_instance_uid, i.blob, i.digest))}
        variants = set(connection.execute(select(v.blob)).scalars())
        refused = set(connection.execute(select(schema.quarantine.c.blob)).scalars())
    blobs = FileBlobs(folder / "blobs")
    files, kept = set(blobs.names()), set(FileBlobs(folder / "quarantine").names())
    named = {row.blob for row in rows.values()} | variants
    found = [f"a row without its file: {one}" for one in named - files]
    found += [f"a file without a row: {one}" for one in files - named]
    found += [f"quarantine: {one}" for one in kept ^ refused]
    found += [f"left over: {path.name}" for path in (folder / "incoming").glob("*.part")]
    for one in pushed:
        found += one.wrong
        for uid, digest in one.acknowledged.items():
            if uid not in rows:
                found.append(f"acknowledged and lost: {uid}")
            elif rows[uid].digest != digest:
                found.append(f"acknowledged and changed: {uid}")
    found += [
        f"changed on the disk: {uid}"
        for uid, row in rows.items()
        if row.blob in files and read_header(blobs.path(row.blob)).digest != row.digest
    ]
    return found


def _push(port: int, pushed: Pushed, stop: threading.Event) -> None:
    objects = _objects(pushed)
    uid, dataset = next(objects)
    while not stop.is_set():
        try:
            with Line(port, _SECONDS) as line:
                line.associate(associate_request("OVERREAD", [(1, CT, (EXPLICIT,))], calling=f"PUSH{pushed.number}"))
                for _ in range(_OBJECTS):
                    pushed.tried += 1
                    line.socket.sendall(b"".join(message(1, store_request(CT, uid), dataset)))
                    status = line.status()
                    if status is None:
                        raise ConnectionError("no answer")
                    if status == 0x0000:
                        pushed.acknowledged[uid] = hashlib.sha256(dataset).hexdigest()
                        uid, dataset = next(objects)
                    elif not (0xA700 <= status <= 0xA7FF or status == 0x0110):
                        # Not now, or something broke: it is sent again. Anything else is wrong of a good object.
                        pushed.wrong.append(f"a good object was answered 0x{status:04X}")
                    if stop.is_set():
                        break
                line.send(RELEASE)
                line.answer()
        except (OSError, AssertionError):
            pushed.lost_connections += 1
            stop.wait(0.02)


def _post(url: str, pushed: Pushed, stop: threading.Event) -> None:
    objects = _objects(pushed)
    uid, dataset = next(objects)
    while not stop.is_set():
        with contextlib.suppress(httpx.HTTPError), httpx.Client(timeout=_SECONDS) as client:
            while not stop.is_set():
                head = file_head(
                    sop_class_uid=CT, sop_instance_uid=uid, transfer_syntax_uid=EXPLICIT, source_ae_title=""
                )
                body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + head + dataset + b"\r\n--x--\r\n"
                pushed.tried += 1
                answer = client.post(
                    f"{url}/dicom-web/studies",
                    content=body,
                    headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'},
                )
                if answer.status_code == 200:
                    pushed.acknowledged[uid] = hashlib.sha256(dataset).hexdigest()
                    uid, dataset = next(objects)
                elif answer.status_code not in (409, 500, 503, 507):
                    pushed.wrong.append(f"a good object was answered {answer.status_code}")
        pushed.lost_connections += 1
        stop.wait(0.02)


def small_object(number: int, sender: int = 0) -> tuple[str, bytes]:
    """Return the SOP Instance UID and the dataset of a CT image of a kilobyte, explicit VR little endian."""
    # As long as the one that it stands for, so that no length changes.
    uid = f"1.2.826.0.{sender + 10}.{number:014}"
    assert len(uid) + 1 == len(_UID_IN_CORPUS)
    return uid, _template().replace(_UID_IN_CORPUS, uid.encode() + b"\0")


def _objects(pushed: Pushed) -> Iterator[tuple[str, bytes]]:
    return (small_object(number, pushed.number) for number in itertools.count(1))


@cache
def _template() -> bytes:
    file = corpus()[1]
    begin = 144 + int.from_bytes(file[140:144], "little")
    return file[begin:]
