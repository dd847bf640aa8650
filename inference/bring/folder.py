"""Ends the making of a model's folder: the digest of every file, and a card that has been read back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inference.card import Card, load_card

__all__ = ["write_card"]

#: The order of a card's keys for people: what it is, what it reads, what it says, what is known about it.
_ORDER = (
    *("name", "version", "title", "task", "engine", "files", "demonstration"),
    *("intended_use", "limits", "licence", "training_data", "performance", "made_by"),
    *("inputs", "tensors", "layout", "preprocess", "window", "postprocess", "outputs", "not_analysed"),
)
_CHUNK = 1 << 20


def write_card(
    folder: Path,
    values: Mapping[str, Any],
    files: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Card:
    """Write ``card.yaml`` over a model's files and read it back, so that what is written can be used.

    Parameters
    ----------
    folder
        Holds the files.
    values
        The card without its ``files``.
    files
        Relative to ``folder``, with ``/`` between their parts.
    progress
        Called with (bytes done, bytes in all) while the digests are taken.

    Raises
    ------
    CardError
        If the values make no card.
    """
    total = sum((folder / name).stat().st_size for name in files)
    done = 0
    digests: dict[str, dict[str, str]] = {}
    for name in files:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        digests[name] = {"sha256": digest.hexdigest()}
    content = {**values, "files": digests}
    ordered = {key: content[key] for key in _ORDER if key in content}
    ordered |= {key: value for key, value in content.items() if key not in ordered}
    text = yaml.dump(ordered, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=110)
    (folder / "card.yaml").write_text(text, encoding="utf-8")
    return load_card(folder)


class _Readable(yaml.SafeDumper):
    """Writes what is short on one line and never an alias: a card is read and changed by people."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        """Keep a code or a digest on its line."""
        short = isinstance(mapping, Mapping) and set(mapping) in ({"value", "scheme", "meaning"}, {"sha256"})
        return super().represent_mapping(tag, mapping, flow_style=True if short else flow_style)
