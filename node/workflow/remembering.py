"""What a model has said of an input before is not computed again, and a picture that came before is pointed out.

The key of a result is all that it is a function of: the digests of the instances as recorded at receipt, which cover
every header value that a card can read and all geometry, and against which the files were held just before
(:mod:`node.workflow.soundness`), with their transfer syntaxes, roles and order; the digest of the card, which covers
its files and its engine with all options; and the versions of the software and the processor. What is stored is what
the engine said the first time: computing it again on several threads would not give the same last bits.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from inference.card import Card
from inference.runtime import CACHEABLE, runtime_of
from inference.wire import findings_from, findings_to
from node.workflow.way import Way
from storage import fingerprints, flags, results
from storage.records import Instance, Workitem

if TYPE_CHECKING:
    from inference.findings import Findings

__all__ = ["key_of", "recalled", "remember"]

_log = structlog.get_logger("overread.results")

#: Raised when what is stored, or what the key is made of, changes its form.
_FORM = 1
_ARRAYS = "arrays.npy"
#: What a file of a result may hold when it is unpacked: masks of the largest volumes, and no more.
_MOST_BYTES = 8 * 2**30
#: After so many new results it is looked whether there are too many.
_LOOK_EVERY = 64


def key_of(card: Card, input_set: Mapping[str, Sequence[Instance]], measured: Path) -> str | None:
    """Return the key of what a card says of an input set; None where its answers are not to be kept.

    Parameters
    ----------
    measured
        Where it is noted which way runs a model the fastest here: another way gives other last digits.
    """
    if card.engine not in CACHEABLE:
        return None
    roles = [
        [role, [[one.sop_instance_uid, one.transfer_syntax_uid, one.digest] for one in instances]]
        for role, instances in sorted(input_set.items())
    ]
    text = json.dumps(
        [_FORM, card.digest, card.engine, runtime_of(card.engine), _choices(card, measured), roles],
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()


def recalled(
    way: Way,
    key: str | None,
    input_set: Mapping[str, Sequence[Instance]],
    identity: tuple[str, str] | None = None,
) -> Findings | None:
    """Return what was found before under a key, if it is kept; whatever is wrong with it, it is as if it were not.

    Parameters
    ----------
    identity
        Provider and precision of the model where it is loaded now: what another has computed is not given out then.
    """
    if key is None or not way.settings.perform.results_mb:
        return None
    try:
        kept = results.find(way.database, way.results, key)
        if kept is None or (identity is not None and (kept.provider, kept.precision) != identity):
            return None
        if kept.file is None:
            findings = findings_from(kept.findings, way.scratch / _ARRAYS)
        else:
            with tempfile.TemporaryDirectory(dir=way.scratch, prefix="result-") as folder:
                _unpack(kept.file, Path(folder))
                findings = findings_from(kept.findings, Path(folder) / _ARRAYS)
    except (SQLAlchemyError, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as problem:
        _log.warning("a kept result cannot be used", error=type(problem).__name__)
        return None
    known = {one.sop_instance_uid for instances in input_set.values() for one in instances}
    if not known.issuperset(findings.images):
        return None
    return replace(findings, cached=True, seconds=0.0)


def remember(way: Way, workitem: Workitem, card: Card, key: str | None, findings: Findings) -> None:
    """Keep findings for the next time, with the hashes of their pictures; no trouble with it may cost the findings.

    What was not analysed is looked at again each time: the reason may have been the machine's.
    """
    keeps = key is not None and findings.not_analysed is None and bool(way.settings.perform.results_mb)
    if not keeps and not findings.fingerprints:
        return
    try:
        sealed = _sealed(way, findings) if keeps else None
        kind, hashes = _kind(card), findings.fingerprints
        with way.database.read() as connection:
            newest = fingerprints.newest(connection) if hashes else 0
            seen = [fingerprints.alike(connection, workitem.study_id, kind, value) for value in hashes.values()]
        # All others wait for this one: what takes long was done before it, and only what came since is compared again.
        with way.database.write() as connection:
            new = sealed is not None and results.put(
                connection,
                str(key),
                sealed,
                study_id=workitem.study_id,
                model=f"{card.name} {card.version}",
                provider=findings.provider,
                precision=findings.precision,
            )
            for value, before in zip(hashes.values(), seen, strict=True):
                since = fingerprints.alike(connection, workitem.study_id, kind, value, after=newest)
                like = min((one for one in (before, since) if one is not None), key=_different, default=None)
                if like is not None:
                    text = (
                        f"nearly the same picture as one of study {like.study_instance_uid} "
                        f"({like.different} of 256 bits differ); both were analysed, each for itself"
                    )
                    flags.raise_flag(connection, workitem.study_id, flags.LIKENESS, like.study_instance_uid, text)
            fingerprints.add(connection, workitem.study_id, kind, hashes)
        if sealed is not None and sealed.blob is not None and not new:
            way.results.delete(sealed.blob)
        if new and int(str(key)[:4], 16) % _LOOK_EVERY == 0:
            results.evict(way.database, way.results, way.settings.perform.results_mb * 2**20)
    except Exception as problem:  # noqa: BLE001 - whatever it is, a model has answered, and that is what counts
        _log.warning("a result cannot be kept", error=type(problem).__name__)


def _different(like: fingerprints.Likeness) -> int:
    return like.different


def _kind(card: Card) -> str:
    """Name how a card's pictures are prepared: only those that are prepared alike are compared."""
    return json.dumps([step.model_dump(mode="json", exclude_none=True) for step in card.preprocess], sort_keys=True)


def _choices(card: Card, measured: Path) -> list[str]:
    names = tuple(entry.sha256[:32] for entry in card.files.values())
    try:
        found = sorted(one for one in (measured / "choices").iterdir() if one.name.startswith(names))
        return [f"{one.name} {hashlib.sha256(one.read_bytes()).hexdigest()}" for one in found]
    except OSError:
        return []


def _sealed(way: Way, findings: Findings) -> results.Sealed:
    """Return findings ready to be kept, their arrays, if they have any, in a durable file."""
    with tempfile.TemporaryDirectory(dir=way.scratch, prefix="result-") as folder:
        values = findings_to(findings, Path(folder) / _ARRAYS)
        files = sorted(Path(folder).iterdir())
        if not files:
            return results.seal(way.results, values, None)
        packed = way.incoming / f"{uuid.uuid4().hex}.result"
        try:
            with zipfile.ZipFile(packed, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in files:
                    archive.write(file, file.name)
            return results.seal(way.results, values, way.results.adopt(packed))
        finally:
            packed.unlink(missing_ok=True)


def _unpack(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(one.file_size for one in members) > _MOST_BYTES:
            raise ValueError("a kept result is larger than any can be")
        for one in members:
            if Path(one.filename).name != one.filename:
                raise ValueError("a kept result names a folder")
            archive.extract(one, folder)
