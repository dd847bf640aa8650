"""Takes a folder or a zip archive in as plain files below one new folder; nothing else is ever written or followed.

An archive is hostile until shown otherwise: names that lead out of the folder, absolute names, drive letters, links,
devices, names that stand twice, encryption, and more bytes than were announced or allowed are each refused before the
first byte is written or while it is, and what was written is taken away again.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from inference.errors import CardError

__all__ = ["Limits", "take_in"]

#: Folders that are no part of a model.
SKIPPED = frozenset((".git", "__pycache__", "__MACOSX", ".cache", ".ipynb_checkpoints"))
_CHUNK = 1 << 20
#: Below this many bytes no ratio is looked at: a small file of zeros is no bomb.
_RATIO_FROM = 16 * 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be taken in: bytes in all, files, and how many times its packed size a file may unpack to."""

    size: int = 16 * 1024**3
    files: int = 10_000
    ratio: float = 200.0


def take_in(
    source: Path, target: Path, *, limits: Limits | None = None, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Copy a folder, or unpack a zip archive, into a new folder.

    Parameters
    ----------
    source
        A folder or a ``.zip``. An archive that holds one folder and nothing else is unpacked as if it were that folder.
    target
        Must not exist; its parent must.
    limits
        :class:`Limits` by default.
    progress
        Called with (bytes done, bytes in all).

    Returns
    -------
    list of str
        The files, as paths relative to ``target`` with ``/`` between their parts, sorted.

    Raises
    ------
    CardError
        Naming what in the source is refused; ``target`` does not exist then.
    """
    limits = limits or Limits()
    target.mkdir()
    try:
        if source.is_dir():
            return _copy(source, target, limits, progress)
        if not zipfile.is_zipfile(source):
            raise CardError(f"{source}: neither a folder nor a zip archive")
        with zipfile.ZipFile(source) as archive:
            return _unpack(source, archive, target, limits, progress)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _copy(source: Path, target: Path, limits: Limits, progress: Callable[[int, int], None] | None) -> list[str]:
    root = source.resolve()
    found = list(_files(source, root, ()))
    _check_amount(source, len(found), sum(size for _, _, size in found), limits)
    done, total = 0, sum(size for _, _, size in found)
    for parts, _, _ in found:
        place = target.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _opened(source.joinpath(*parts), root) as stream, place.open("xb") as copy:
            for chunk in _chunks(stream):
                done += len(chunk)
                if done > limits.size:
                    raise CardError(f"{source}: holds more than {limits.size} bytes; no model is taken in above that")
                copy.write(chunk)
                if progress:
                    progress(done, total)
    return sorted("/".join(parts) for parts, _, _ in found)


def _opened(path: Path, root: Path) -> IO[bytes]:
    """Open what was a file below ``root`` when it was looked at; links may have taken its place, or a folder's, since.

    So it is not the name that is asked where it leads, but the open file where it lies (proc(5), ``/proc/PID/fd``).
    """
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    opened = Path(f"/proc/self/fd/{stream.fileno()}")
    real = (opened if opened.exists() else path).resolve()
    if real.is_relative_to(root) and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise CardError(f"{path}: changed while it was read")


def _files(folder: Path, root: Path, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Path, int]]:
    """Yield (relative parts, path, size) of each regular file; links within the folder are read, others refused."""
    if len(parts) > 32:
        raise CardError(f"{folder}: lies too deep")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in SKIPPED:
            continue
        path = Path(entry.path)
        _plain(str(folder), entry.name)
        if entry.is_symlink():
            real = path.resolve()
            if not real.is_relative_to(root):
                raise CardError(
                    f"{path}: a link that leads out of the folder; bring the files themselves in its place (cp -rL)"
                )
            if not real.is_file():
                raise CardError(f"{path}: a link to what is no file; bring the files themselves in its place (cp -rL)")
            yield (*parts, entry.name), path, real.stat().st_size
        elif entry.is_dir():
            yield from _files(path, root, (*parts, entry.name))
        elif entry.is_file():
            yield (*parts, entry.name), path, entry.stat().st_size
        else:
            raise CardError(f"{path}: neither a file nor a folder")


def _unpack(
    source: Path,
    archive: zipfile.ZipFile,
    target: Path,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    members: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    seen: set[tuple[str, ...]] = set()
    for member in archive.infolist():
        parts = _parts(source, member)
        if not parts or any(part in SKIPPED for part in parts) or member.is_dir():
            continue
        # On a system that does not tell case apart, the second would overwrite the first.
        same = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        if same in seen:
            raise CardError(f"{source}: {member.filename!r} stands in the archive twice")
        seen.add(same)
        members[parts] = member
    total = sum(member.file_size for member in members.values())
    _check_amount(source, len(members), total, limits)
    tops = {parts[0] for parts in members}
    drop = 1 if len(tops) == 1 and all(len(parts) > 1 for parts in members) else 0
    done = 0
    for parts, member in members.items():
        place = target.joinpath(*parts[drop:])
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as stream, place.open("xb") as copy:
                written = 0
                for chunk in _chunks(stream):
                    done, written = done + len(chunk), written + len(chunk)
                    _check_growth(source, member, written, done, limits)
                    copy.write(chunk)
                    if progress:
                        progress(done, total)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as problem:
            if isinstance(problem, OSError) and problem.errno not in _NAMES:
                raise
            raise CardError(f"{source}: {member.filename!r} cannot be unpacked ({type(problem).__name__})") from problem
    return sorted("/".join(parts[drop:]) for parts in members)


#: What a member's own name may be to blame for; any other error is the disk's.
_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


def _parts(source: Path, member: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the parts of a member's name, each a plain name."""
    name = member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise CardError(f"{source}: {name!r} is a link or a device; only files are taken in")
    if member.flag_bits & 0x1:
        raise CardError(f"{source}: {name!r} is encrypted")
    # What the archive itself says, before Python's reader put its own slashes in.
    written = getattr(member, "orig_filename", name)
    if "\\" in written or written.startswith("/") or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise CardError(f"{source}: {name!r} is no name below the folder")
    if "\x00" in written:
        raise CardError(f"{source}: {name!r} holds a character that no name has")
    raw = [part for part in written.split("/") if part]
    for part in raw:
        if part in (".", ".."):
            raise CardError(f"{source}: {name!r} leads out of the folder")
        _plain(str(source), part)
    if len(raw) > 32:
        raise CardError(f"{source}: {name!r} lies too deep")
    return PurePosixPath(*raw).parts if raw else ()


def _plain(where: str, name: str) -> None:
    if _CONTROL.search(name) or len(name.encode("utf-8", "surrogateescape")) > 255 or "\\" in name or "/" in name:
        raise CardError(f"{where}: {name!r} is no name that a model's file may have")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise CardError(f"{where}: {name!r} is no name that a model's file may have") from problem


def _check_amount(source: Path, files: int, size: int, limits: Limits) -> None:
    if files > limits.files or size > limits.size:
        raise CardError(
            f"{source}: holds {files} files of {size} bytes in all; at most {limits.files} files and {limits.size} "
            "bytes are taken in"
        )


def _check_growth(source: Path, member: zipfile.ZipInfo, written: int, done: int, limits: Limits) -> None:
    """Refuse what unpacks to more than was announced or than the packed bytes can honestly hold."""
    if written > member.file_size or done > limits.size:
        raise CardError(f"{source}: {member.filename!r} unpacks to more bytes than the archive says or may hold")
    if written > _RATIO_FROM and written > limits.ratio * max(member.compress_size, 1):
        raise CardError(
            f"{source}: {member.filename!r} unpacks to more than {limits.ratio:g} times its packed size: not a model"
        )


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
