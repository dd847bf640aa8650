"""Sends files for ``overread send`` and says what came of them, each thing once however many files it befell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from node.cli.support import peer_of, progress

if TYPE_CHECKING:
    from node.dimse.scu import SendReport, Sent
    from node.peers import Address

__all__ = ["send_folder"]

#: So many files are named for one answer; of more, the rest are counted.
_NAMED = 10


def send_folder(folder: Path, to: str, calling: str, config: Path) -> int:
    """Send a folder's DICOM files, or one file, to ``to`` (this node where empty); return the exit status."""
    peer = peer_of(to, config)
    if not folder.exists():
        typer.echo(f"overread: {folder}: no such file or folder", err=True)
        return 1
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    from node.dimse.scu import send

    name = f"{peer.ae_title}@{peer.host}:{peer.port}"
    with progress(name) as step:
        report = send(files, peer, calling, progress=step)
    for line in _complaints(report):
        typer.echo(f"overread: {line}", err=True)
    if not report.sent:
        typer.echo(f"overread: no DICOM file in {folder}", err=True)
        return 1
    typer.echo(f"{report.stored} of {len(report.sent)} objects stored at {name}")
    for uid, count in sorted(_studies(one for one in report.sent if one.stored).items()):
        typer.echo(f"study {uid}: {count} stored")
    if any(not one.reached for one in report.failed):
        typer.echo(f"overread: {_remedy(peer, to, config)}", err=True)
    return 1 if report.failed else 0


def _complaints(report: SendReport) -> Iterator[str]:
    """Give a line for each file that was left out or not stored; what befell many alike, collapsed."""
    yield from _grouped("left out", ((one.path, one.reason) for one in report.skipped), _NAMED)
    refused, unreached = _parted(report.failed)
    yield from _grouped("not stored", refused, _NAMED)
    # Where nobody answers, it is no matter of the files.
    yield from _grouped("not stored", unreached, 1)


def _parted(failed: Iterable[Sent]) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    refused: list[tuple[Path, str]] = []
    unreached: list[tuple[Path, str]] = []
    for one in failed:
        (refused if one.reached else unreached).append((one.path, one.answer))
    return refused, unreached


def _grouped(word: str, files: Iterable[tuple[Path, str]], named: int) -> Iterator[str]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, answer in files:
        groups[answer].append(path)
    for answer, paths in groups.items():
        if len(paths) > 1 and named == 1:
            yield f"{word}: {len(paths)} files, because: {answer}"
            continue
        for path in paths[:named]:
            yield f"{word} {path}: {answer}"
        if len(paths) > named:
            yield f"{word}: {len(paths) - named} more files, because: {answer}"


def _studies(sent: Iterable[Sent]) -> Counter[str]:
    """Count objects by their Study Instance UID, which is what 'overread explain' takes."""
    from pydicom import dcmread

    return Counter(
        str(dcmread(one.path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).get("StudyInstanceUID", "?"))
        for one in sent
    )


def _remedy(peer: Address, to: str, config: Path) -> str:
    if to:
        return (
            f"check that {peer.ae_title} runs, listens at {peer.host}:{peer.port} and lets this AE title in, "
            "then send again; what is stored already does no harm"
        )
    return (
        f"start the node with 'overread serve --config {config}', then send again; what is stored already does no harm"
    )
