"""A key that stands twice in a mapping of YAML, where its readers would quietly keep the last."""

from __future__ import annotations

import yaml

__all__ = ["refuse_twice"]

_MERGE = "tag:yaml.org,2002:merge"


def refuse_twice(node: yaml.MappingNode) -> None:
    """Refuse a mapping, as it stands in the file, in which a key stands twice.

    Raises
    ------
    yaml.constructor.ConstructorError
        With the key and the place where it stands again.
    """
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
